-- Jobs that lost a worker go by the id of their present row again.
UPDATE medianest.content AS c SET job_id = m.row_id FROM medianest.job_map AS m WHERE c.job_id = m.public_id;
UPDATE medianest.downloads AS d SET job_id = m.row_id FROM medianest.job_map AS m WHERE d.job_id = m.public_id;
UPDATE medianest.job_viewer AS v SET job_id = m.row_id FROM medianest.job_map AS m WHERE v.job_id = m.public_id;

CREATE OR REPLACE FUNCTION medianest.on_job_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::text, '', n.id, n.kind, n.queue, n.attempt, ''
    FROM new_rows n;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION medianest.on_job_update() RETURNS trigger
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

CREATE OR REPLACE FUNCTION medianest.on_job_delete() RETURNS trigger
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

DROP FUNCTION medianest.events_after(text, bigint, bigint, bigint, integer, uuid);
DELETE FROM medianest.event WHERE topic LIKE 'worker.%';
ALTER TABLE medianest.event DROP COLUMN worker;
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

DROP TABLE medianest.worker;
DROP TABLE medianest.job_map;
DROP FUNCTION medianest.on_worker_insert();
DROP FUNCTION medianest.on_worker_update();
DROP FUNCTION medianest.on_worker_delete();
DROP FUNCTION medianest.public_id(bigint, jsonb);
ALTER TABLE medianest.content DROP COLUMN staged_on, DROP COLUMN staged_wait_from;
