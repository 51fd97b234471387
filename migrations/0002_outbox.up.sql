-- The outbox: one narrow row per changed state, written by statement triggers in the transaction that changes it, and
-- the ticks that put those rows in an order every reader agrees on (PgQ's snapshot ticks; Skytools PgQ, "ticker").

CREATE TABLE medianest.event (
    id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1), -- CACHE 1: per job, a later writer must draw a later number
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    topic text NOT NULL,                   -- job.state, download.state
    state text NOT NULL,
    previous_state text NOT NULL,          -- '' for a row that began
    job_id bigint,
    kind text,
    queue text,
    attempt integer,
    reason text,
    user_id uuid,                          -- download.state: the owner; job.state: see job_viewer
    download_id uuid,
    parent_id uuid
);
-- No primary key: nothing looks an event up by id, and each index is paid for on every change of every job.
CREATE INDEX event_xid_idx ON medianest.event (xid);
ALTER TABLE medianest.event SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

-- Batch n is what is visible in tick n's snapshot and not in tick n-1's, ORDER BY event.id. Ids have no gaps.
CREATE TABLE medianest.tick (
    id bigint PRIMARY KEY,
    snapshot pg_snapshot NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO medianest.tick (id, snapshot) VALUES (1, pg_current_snapshot());

-- What the stream's epoch is made of besides the cluster (see medianest.stream_epoch), and the epoch that the ticks in
-- medianest.tick were taken in. A restore renews random, or empties the table.
CREATE TABLE medianest.epoch (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    random uuid NOT NULL,
    history text NOT NULL DEFAULT ''
);
INSERT INTO medianest.epoch (random) VALUES (gen_random_uuid());

-- How far durable consumers are: everything up to this event of this tick is done.
CREATE TABLE medianest.consumer (
    name text PRIMARY KEY,
    epoch text NOT NULL,
    tick bigint NOT NULL,
    event_id bigint NOT NULL,
    rebuilt_to uuid,                       -- a rebuild from the present is under way and has done the rows up to this id
    behind uuid[] NOT NULL DEFAULT '{}'    -- rows that somebody held locked, to be done later
);

-- stream_epoch names this very history of ticks. It changes whenever ticks could go back or be told twice: another
-- cluster, a promoted replica or point-in-time recovery (timeline), a dump restored into another database or over
-- dropped tables (oids), a restore that says so (random).
-- In plpgsql, as its neighbours, because that keeps plans: it runs with each tick and each look at the head.
CREATE FUNCTION medianest.stream_epoch() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN substr(md5(concat_ws(':',
        (SELECT system_identifier FROM pg_control_system()),
        substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        'medianest.tick'::regclass::oid,
        (SELECT random FROM medianest.epoch WHERE singleton))), 1, 12);
END
$$;

-- stream_head says which ticks there are. No row: their history belongs to another epoch, and the next advance_tick
-- begins a new one.
CREATE FUNCTION medianest.stream_head() RETURNS TABLE (epoch text, oldest bigint, newest bigint, newest_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    current_epoch text := medianest.stream_epoch();
BEGIN
    RETURN QUERY
    SELECT e.history, (SELECT min(k.id) FROM medianest.tick k), n.id, n.at
    FROM medianest.epoch e
    CROSS JOIN (SELECT k.id, k.at FROM medianest.tick k ORDER BY k.id DESC LIMIT 1) n
    WHERE e.singleton AND e.history = current_epoch;
END
$$;

-- advance_tick stores a tick if there is news, and says which; NULL if there is none or another process is at it.
-- It must run in READ COMMITTED: the statements after the lock take new snapshots, which see the last holder's tick.
-- Sequential scans are off because a question without an answer, asked twenty times a second, must not read the table.
CREATE FUNCTION medianest.advance_tick() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    last medianest.tick;
    ticked bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7239610442301) THEN
        RETURN NULL;
    END IF;
    SELECT * INTO last FROM medianest.tick ORDER BY id DESC LIMIT 1;
    IF NOT FOUND OR medianest.stream_epoch() IS DISTINCT FROM (SELECT history FROM medianest.epoch WHERE singleton) THEN
        -- A new history. What is left of another one has transaction ids and snapshots that mean nothing here: events of
        -- the past are never told again and go with retention, those that would seem new must go now. Readers notice the
        -- epoch and begin anew; what they have not read is in the tables that the events were about.
        DELETE FROM medianest.event WHERE xid >= pg_snapshot_xmin(pg_current_snapshot());
        DELETE FROM medianest.tick;
        INSERT INTO medianest.tick (id, snapshot) VALUES (coalesce(last.id, 0) + 1, pg_current_snapshot()) RETURNING id INTO ticked;
        INSERT INTO medianest.epoch (random) VALUES (gen_random_uuid()) ON CONFLICT (singleton) DO UPDATE SET random = excluded.random;
        UPDATE medianest.epoch SET history = medianest.stream_epoch();
        RETURN ticked;
    END IF;
    -- One statement, hence one snapshot, for the question "is there news" and for what the tick will show.
    INSERT INTO medianest.tick (id, snapshot)
    SELECT last.id + 1, pg_current_snapshot()
    WHERE EXISTS (SELECT FROM medianest.event WHERE xid >= pg_snapshot_xmax(last.snapshot))
       OR EXISTS (SELECT FROM medianest.event WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(last.snapshot))))
    RETURNING id INTO ticked;
    RETURN ticked;
END
$$;

-- events_after returns up to max_rows events of the ticks [after_tick, to_tick], without those of after_tick up to
-- after_id, in stream order (tick, id). With for_user, only those that concern the user. Error MN001 says that the events
-- after that point are not all there any more, or that the ticks are of another epoch by now.
CREATE FUNCTION medianest.events_after(
    in_epoch text, after_tick bigint, after_id bigint, to_tick bigint, max_rows integer, for_user uuid
)
RETURNS TABLE (
    tick bigint, id bigint, at timestamptz, topic text, state text, previous_state text, job_id bigint, kind text, queue text,
    attempt integer, reason text, user_id uuid, download_id uuid, parent_id uuid
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
            e.attempt, e.reason, e.user_id, e.download_id, e.parent_id
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

-- The triggers' functions. They run inside River's own writes: an error or a long wait here stops the queue. So: no
-- foreign keys, no checks, nothing that can be NULL where it must not, text instead of enums. Nested loops and
-- compilation are off because the plan is made at the first execution and kept for the connection: after one row it would
-- be quadratic for ten thousand, after a million it would compile for each one. A statement changes a row once: there is
-- no order among its events to keep.

CREATE FUNCTION medianest.on_job_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::text, '', n.id, n.kind, n.queue, n.attempt, ''
    FROM new_rows n;
    RETURN NULL;
END
$$;

-- reason is what the worker said of the attempt that just ended; an older attempt's is not passed off as this one's.
-- A job that ends cancelled because somebody asked for it says 'cancelled', whatever its worker died of.
CREATE FUNCTION medianest.on_job_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::text, o.state::text, n.id, n.kind, n.queue, n.attempt,
        CASE
            WHEN n.state::text = 'cancelled' AND n.metadata ? 'cancel_attempted_at' THEN 'cancelled'
            WHEN o.state::text = 'running' AND n.metadata ->> 'reason_attempt' = o.attempt::text
                THEN coalesce(n.metadata ->> 'reason', '')
            ELSE ''
        END
    FROM new_rows n
    JOIN old_rows o ON o.id = n.id
    WHERE o.state IS DISTINCT FROM n.state;
    RETURN NULL;
END
$$;

-- Rows in a final state are deleted by retention: no news. Any other deletion ends the job.
CREATE FUNCTION medianest.on_job_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', 'deleted', o.state::text, o.id, o.kind, o.queue, o.attempt, ''
    FROM old_rows o
    WHERE o.finalized_at IS NULL;
    RETURN NULL;
END
$$;

-- A download's own changes: a cancel by one of several users, a parent's end, which no job's state shows.
CREATE FUNCTION medianest.on_download_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, reason, user_id, download_id, parent_id)
    SELECT 'download.state', n.state, '', n.job_id, n.failure_reason, n.user_id, n.id, n.parent_id
    FROM new_rows n;
    RETURN NULL;
END
$$;

CREATE FUNCTION medianest.on_download_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, reason, user_id, download_id, parent_id)
    SELECT 'download.state', n.state, o.state, n.job_id, n.failure_reason, n.user_id, n.id, n.parent_id
    FROM new_rows n
    JOIN old_rows o ON o.id = n.id
    WHERE o.state IS DISTINCT FROM n.state;
    RETURN NULL;
END
$$;

CREATE FUNCTION medianest.on_download_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, reason, user_id, download_id, parent_id)
    SELECT 'download.state', 'deleted', o.state, o.job_id, o.failure_reason, o.user_id, o.id, o.parent_id
    FROM old_rows o;
    RETURN NULL;
END
$$;

CREATE TRIGGER medianest_insert AFTER INSERT ON medianest.downloads
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_download_insert();
CREATE TRIGGER medianest_update AFTER UPDATE ON medianest.downloads
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_download_update();
CREATE TRIGGER medianest_delete AFTER DELETE ON medianest.downloads
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_download_delete();

GRANT SELECT ON medianest.event, medianest.tick, medianest.consumer, medianest.epoch TO medianest_api, medianest_worker, medianest_river;
GRANT INSERT, UPDATE ON medianest.consumer TO medianest_api, medianest_worker;
GRANT DELETE ON medianest.event, medianest.tick TO medianest_api, medianest_worker;
