-- Admission: jobs that name keys ("host:youtube.com", "user:0190...", "kind:download") wait as pending, and become
-- available in a decision round only, which keeps each key within its limits. Here are what the round decides on, and
-- the gate that no way into available goes past. The triggers on river_job are with the others.

-- What is allowed per key. "host:*" is for each host that has no row of its own.
CREATE TABLE medianest.limits (
    key text PRIMARY KEY,
    max_running integer CHECK (max_running >= 0),           -- NULL: as many as there are workers
    max_starts integer CHECK (max_starts > 0),              -- at most so many starts per period_s
    period_s integer CHECK (period_s > 0),
    spacing_s double precision NOT NULL DEFAULT 0 CHECK (spacing_s >= 0), -- between two starts, at least
    jitter_s double precision NOT NULL DEFAULT 0 CHECK (jitter_s >= 0),   -- added to the spacing, at most, at random
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by uuid,
    CHECK ((max_starts IS NULL) = (period_s IS NULL))
);

-- The starts of users, who are served in turn, and of keys that have a pace; for the round alone, which forgets what
-- matters no more.
CREATE TABLE medianest.limit_use (
    key text PRIMARY KEY,                  -- '' for jobs of nobody
    last_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,          -- by spacing and jitter
    starts timestamptz[] NOT NULL DEFAULT '{}' -- within the period, oldest first
);

-- Keys that nothing starts under for a while, since what stands behind them asked for less or fails: then one job at a
-- time, the probe, until one is answered, which deletes the row. A probe that trips it again leads up the ladder.
CREATE TABLE medianest.breaker (
    key text PRIMARY KEY,
    step integer NOT NULL DEFAULT 0,       -- on the ladder of waits, from 0
    open_until timestamptz NOT NULL,       -- no start before; then a probe
    probe_job bigint,                      -- public id; of no account once the job is not admitted any more
    tripped_at timestamptz NOT NULL DEFAULT now(), -- last
    trips integer NOT NULL DEFAULT 1,
    reason text NOT NULL DEFAULT ''        -- of the failure that tripped it last
);

-- The jobs with keys that wait for admission (admitted_at is NULL) or hold their keys' slots (available and running).
-- Narrow, since it is what a round reads; written by the triggers on river_job.
CREATE TABLE medianest.admission (
    row_id bigint PRIMARY KEY,             -- of river_job
    queue text NOT NULL,
    priority smallint NOT NULL,
    keys text[] NOT NULL,                  -- sorted, each once
    user_key text NOT NULL,                -- the key that begins with "user:", or ''
    scheduled_at timestamptz NOT NULL,
    admitted_at timestamptz,
    blocked_on text NOT NULL DEFAULT ''    -- the key that had no room at the last look; '': not looked at, or no free slot
);
-- Waiting jobs in the order of a round, so that it reads the first of each user and not all.
CREATE INDEX admission_waiting_idx ON medianest.admission (queue, blocked_on, priority, user_key, scheduled_at, row_id)
    WHERE admitted_at IS NULL;
CREATE INDEX admission_admitted_idx ON medianest.admission (queue, admitted_at) WHERE admitted_at IS NOT NULL;
ALTER TABLE medianest.admission SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0, fillfactor = 80);

-- gate_job turns a job that would become available into a pending one, unless the transaction is the admission's own.
-- Whoever asks: an insert, a retry, River's scheduler and rescuer, River UI, a statement typed by hand.
CREATE FUNCTION medianest.gate_job() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('medianest.admit', true) IS DISTINCT FROM 'on' THEN
        NEW.state := 'pending';
    END IF;
    RETURN NEW;
END
$$;

-- admission_keys are the keys that a job's metadata names, sorted and each once. It cannot fail, whatever the metadata,
-- and what it returns fits into an index: what is no list of keys is none, a longer key is cut and marked, so that the
-- default for its form still holds for it, and the first 32 keys count.
CREATE FUNCTION medianest.admission_keys(metadata jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT ARRAY(
        SELECT DISTINCT CASE WHEN octet_length(k.key) > 300 THEN left(k.key, 60) || '...' || md5(k.key) ELSE k.key END AS key
        FROM jsonb_array_elements_text(
            CASE WHEN jsonb_typeof(metadata -> 'keys') = 'array' THEN metadata -> 'keys' ELSE '[]' END) AS k (key)
        WHERE k.key <> ''
        ORDER BY key
        LIMIT 32)
$$;

-- note_job keeps medianest.admission. It runs inside River's own writes, for jobs with keys: it must not fail, whatever
-- the row.
CREATE FUNCTION medianest.note_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    wanted text[];
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM medianest.admission WHERE row_id = OLD.id;
        RETURN NULL;
    END IF;
    IF NEW.state::text NOT IN ('pending', 'available', 'running') OR NOT NEW.metadata ? 'keys' THEN
        DELETE FROM medianest.admission WHERE row_id = NEW.id;
        RETURN NULL;
    END IF;
    wanted := medianest.admission_keys(NEW.metadata);
    INSERT INTO medianest.admission AS a (row_id, queue, priority, keys, user_key, scheduled_at, admitted_at)
    VALUES (NEW.id, NEW.queue, NEW.priority, wanted,
        coalesce((SELECT k FROM unnest(wanted) AS k WHERE starts_with(k, 'user:') LIMIT 1), ''),
        NEW.scheduled_at, CASE WHEN NEW.state::text <> 'pending' THEN now() END)
    ON CONFLICT (row_id) DO UPDATE
    SET queue = excluded.queue, priority = excluded.priority, keys = excluded.keys, user_key = excluded.user_key,
        scheduled_at = excluded.scheduled_at,
        admitted_at = CASE WHEN excluded.admitted_at IS NOT NULL THEN coalesce(a.admitted_at, excluded.admitted_at) END,
        blocked_on = '';
    RETURN NULL;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.limits TO medianest_api;
GRANT SELECT ON medianest.limits TO medianest_worker, medianest_river;
GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.limit_use TO medianest_river;
GRANT SELECT ON medianest.limit_use TO medianest_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.breaker TO medianest_river, medianest_worker, medianest_api;
GRANT SELECT, UPDATE ON medianest.admission TO medianest_river;
GRANT SELECT ON medianest.admission TO medianest_api, medianest_worker;
