-- Presence of processes, and jobs that outlive their worker: a job that lost its worker goes on as another row of
-- river_job, under the id that its first row had.

-- The processes that serve or work, each renewing its row; one that has not by expires_at is lost. A row outlives its
-- process for a day, and for as long as jobs are running in its name: the jobs of a process are taken from it only if it is
-- known to be gone. Of one that has no row nothing is known: it may be at work and of a version without presence.
CREATE TABLE medianest.worker (
    id text PRIMARY KEY,                   -- River client id
    mode text NOT NULL,                    -- up, serve, work
    host text NOT NULL,
    version text NOT NULL,
    volume text NOT NULL DEFAULT '',       -- media volume's id; '' where none is seen
    queues jsonb NOT NULL DEFAULT '{}',    -- name to jobs at a time
    held bigint[] NOT NULL DEFAULT '{}',   -- rows it has held for more than half a TTL
    running integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    renewed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    drain_asked_at timestamptz,
    drained_at timestamptz,
    gone_at timestamptz                    -- when it left or was found lost; NULL: present
);

-- The row that stands for a job now, for the few jobs that lost a worker; a job that is not here is its own row.
-- Written in the transaction that makes the successor.
CREATE TABLE medianest.job_map (
    public_id bigint PRIMARY KEY,          -- id of the job's first row, which everything but River calls it by
    row_id bigint NOT NULL UNIQUE
);

-- Where nodes share no volume: what has been fetched so far is on staged_on ('': nowhere). Workers of other volumes have
-- waited for one of that volume since staged_wait_from.
ALTER TABLE medianest.content ADD staged_on text NOT NULL DEFAULT '', ADD staged_wait_from timestamptz;

ALTER TABLE medianest.event ADD worker jsonb; -- of worker.*: {"id", "mode", "host"}

-- public_id is the id that a row's job is known by. It cannot fail, whatever the metadata.
CREATE FUNCTION medianest.public_id(row_id bigint, metadata jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN metadata ->> 'public_id' ~ '^[0-9]{1,18}$' THEN (metadata ->> 'public_id')::bigint ELSE row_id END
$$;

-- As in 0002, with the worker that an event is about. worker.* events concern admins only: no user is theirs.
DROP FUNCTION medianest.events_after(text, bigint, bigint, bigint, integer, uuid);
CREATE FUNCTION medianest.events_after(
    in_epoch text, after_tick bigint, after_id bigint, to_tick bigint, max_rows integer, for_user uuid
)
RETURNS TABLE (
    tick bigint, id bigint, at timestamptz, topic text, state text, previous_state text, job_id bigint, kind text, queue text,
    attempt integer, reason text, user_id uuid, download_id uuid, parent_id uuid, worker jsonb
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    prev pg_snapshot;
    t medianest.tick;
    left_over integer := max_rows;
    got integer;
BEGIN
    SELECT k.snapshot INTO prev
    FROM medianest.tick k, medianest.epoch e
    WHERE k.id = after_tick - 1 AND e.singleton AND e.history = in_epoch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'tick % of epoch % is not there', after_tick - 1, in_epoch USING ERRCODE = 'MN001';
    END IF;
    FOR t IN SELECT k.* FROM medianest.tick k WHERE k.id BETWEEN after_tick AND to_tick ORDER BY k.id LOOP
        RETURN QUERY
        SELECT t.id, e.id, e.at, e.topic, e.state, e.previous_state, e.job_id, e.kind, e.queue,
            e.attempt, e.reason, e.user_id, e.download_id, e.parent_id, e.worker
        FROM (
            SELECT x.* FROM medianest.event x
            WHERE x.xid >= pg_snapshot_xmax(prev) AND x.xid < pg_snapshot_xmax(t.snapshot)
            UNION ALL
            -- the late committers: running when the last tick was taken
            SELECT x.* FROM medianest.event x
            WHERE x.xid = ANY (ARRAY(SELECT pg_snapshot_xip(prev)))
        ) e
        WHERE pg_visible_in_snapshot(e.xid, t.snapshot)
          AND NOT pg_visible_in_snapshot(e.xid, prev)
          AND (t.id > after_tick OR e.id > after_id)
          -- LIMIT keeps the planner from reading all of the user's jobs for each tick
          AND (for_user IS NULL OR e.user_id = for_user OR e.topic = 'job.state' AND coalesce(
              (SELECT true FROM medianest.job_viewer v WHERE v.job_id = e.job_id AND v.user_id = for_user LIMIT 1), false))
        ORDER BY e.id
        LIMIT left_over;
        GET DIAGNOSTICS got = ROW_COUNT;
        left_over := left_over - got;
        EXIT WHEN left_over <= 0;
        prev := t.snapshot;
    END LOOP;
END
$$;

-- A successor's beginning is the event of the loss: to everybody else the job's row is the one it always was.
CREATE OR REPLACE FUNCTION medianest.on_job_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::text,
        CASE WHEN medianest.public_id(n.id, n.metadata) = n.id THEN '' ELSE 'running' END,
        medianest.public_id(n.id, n.metadata), n.kind, n.queue, n.attempt, ''
    FROM new_rows n;
    RETURN NULL;
END
$$;

-- As in 0002. A superseded row speaks for no job any more, whatever becomes of it.
CREATE OR REPLACE FUNCTION medianest.on_job_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::text, o.state::text, medianest.public_id(n.id, n.metadata), n.kind, n.queue, n.attempt,
        CASE
            WHEN n.state::text = 'cancelled' AND n.metadata ? 'cancel_attempted_at' THEN 'cancelled'
            WHEN o.state::text = 'running' AND n.metadata ->> 'reason_attempt' = o.attempt::text
                THEN coalesce(n.metadata ->> 'reason', '')
            ELSE ''
        END
    FROM new_rows n
    JOIN old_rows o ON o.id = n.id
    WHERE o.state IS DISTINCT FROM n.state
      AND (n.metadata ? 'superseded_by') IS NOT TRUE;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION medianest.on_job_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', 'deleted', o.state::text, medianest.public_id(o.id, o.metadata), o.kind, o.queue, o.attempt, ''
    FROM old_rows o
    WHERE o.finalized_at IS NULL
      AND (o.metadata ? 'superseded_by') IS NOT TRUE;
    RETURN NULL;
END
$$;

-- Processes that come and go. The state columns are empty: a process has none here.
CREATE FUNCTION medianest.on_worker_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, worker)
    SELECT 'worker.joined', '', '', jsonb_build_object('id', n.id, 'mode', n.mode, 'host', n.host)
    FROM new_rows n
    WHERE n.gone_at IS NULL;
    RETURN NULL;
END
$$;

CREATE FUNCTION medianest.on_worker_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, worker)
    SELECT
        CASE
            WHEN n.gone_at IS NULL THEN 'worker.joined'
            WHEN n.expires_at <= now() THEN 'worker.lost'
            ELSE 'worker.left'
        END,
        '', '', jsonb_build_object('id', n.id, 'mode', n.mode, 'host', n.host)
    FROM new_rows n
    JOIN old_rows o ON o.id = n.id
    WHERE (o.gone_at IS NULL) <> (n.gone_at IS NULL);
    RETURN NULL;
END
$$;

CREATE FUNCTION medianest.on_worker_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, worker)
    SELECT CASE WHEN o.expires_at <= now() THEN 'worker.lost' ELSE 'worker.left' END, '', '',
        jsonb_build_object('id', o.id, 'mode', o.mode, 'host', o.host)
    FROM old_rows o
    WHERE o.gone_at IS NULL;
    RETURN NULL;
END
$$;

CREATE TRIGGER medianest_insert AFTER INSERT ON medianest.worker
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_worker_insert();
CREATE TRIGGER medianest_update AFTER UPDATE ON medianest.worker
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_worker_update();
CREATE TRIGGER medianest_delete AFTER DELETE ON medianest.worker
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_worker_delete();

GRANT SELECT, INSERT, UPDATE ON medianest.worker, medianest.job_map TO medianest_river;
GRANT SELECT ON medianest.worker, medianest.job_map TO medianest_api, medianest_worker;
GRANT UPDATE (drain_asked_at) ON medianest.worker TO medianest_api;
GRANT DELETE ON medianest.worker, medianest.job_map TO medianest_api, medianest_worker;
