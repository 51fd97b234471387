-- As before.
CREATE OR REPLACE FUNCTION medianest.public_id(row_id bigint, metadata jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN metadata ->> 'public_id' ~ '^[0-9]{1,18}$' THEN (metadata ->> 'public_id')::bigint ELSE row_id END
$$;

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

CREATE OR REPLACE FUNCTION medianest.gate_job() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('medianest.admit', true) IS DISTINCT FROM 'on' THEN
        NEW.state := 'pending';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION medianest.keep_superseded() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION medianest.admission_keys(metadata jsonb) RETURNS text[]
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

CREATE OR REPLACE FUNCTION medianest.note_job() RETURNS trigger
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
