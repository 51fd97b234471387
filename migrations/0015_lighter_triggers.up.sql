-- The triggers on jobs, for less. A function's SET clauses cost about as much as what these do, and a SQL function that is not
-- inlined is planned anew in each transaction. So they have none, and nothing in them is looked up by the caller's
-- search_path: names and operators are qualified, and public_id is bound when it is made. The conditions of triggers are copied
-- for each statement on the table, whether it is about such jobs or not: the long ones are in the functions now.

CREATE OR REPLACE FUNCTION medianest.public_id(row_id bigint, metadata jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN metadata ->> 'public_id' ~ '^[0-9]{1,18}$' THEN (metadata ->> 'public_id')::bigint ELSE row_id END;

CREATE OR REPLACE FUNCTION medianest.on_job_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $$
BEGIN
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::pg_catalog.text,
        CASE WHEN p.id OPERATOR(pg_catalog.=) n.id THEN '' ELSE 'running' END, p.id, n.kind, n.queue, n.attempt, ''
    FROM new_rows AS n
    CROSS JOIN LATERAL (
        SELECT CASE WHEN n.metadata OPERATOR(pg_catalog.?) 'public_id' THEN medianest.public_id(n.id, n.metadata) ELSE n.id END AS id
    ) AS p;
    RETURN NULL;
END
$$;

-- It is called for each insert of River's, too, since that could be an update (ON CONFLICT): where nothing was updated, it must
-- cost next to nothing. The plan is made at the first execution and kept for the connection: a full join cannot become nested
-- loops, which are quadratic, and no row is without its other half.
CREATE OR REPLACE FUNCTION medianest.on_job_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM new_rows) THEN
        RETURN NULL;
    END IF;
    INSERT INTO medianest.event (topic, state, previous_state, job_id, kind, queue, attempt, reason)
    SELECT 'job.state', n.state::pg_catalog.text, o.state::pg_catalog.text,
        CASE WHEN n.metadata OPERATOR(pg_catalog.?) 'public_id' THEN medianest.public_id(n.id, n.metadata) ELSE n.id END,
        n.kind, n.queue, n.attempt,
        CASE
            WHEN n.state::pg_catalog.text OPERATOR(pg_catalog.=) 'cancelled'
                AND n.metadata OPERATOR(pg_catalog.?) 'cancel_attempted_at' THEN 'cancelled'
            WHEN o.state::pg_catalog.text OPERATOR(pg_catalog.=) 'running'
                AND (n.metadata OPERATOR(pg_catalog.->>) 'reason_attempt') OPERATOR(pg_catalog.=) o.attempt::pg_catalog.text
                THEN coalesce(n.metadata OPERATOR(pg_catalog.->>) 'reason', '')
            ELSE ''
        END
    FROM new_rows AS n
    FULL JOIN old_rows AS o ON o.id OPERATOR(pg_catalog.=) n.id
    WHERE (o.state::pg_catalog.text OPERATOR(pg_catalog.=) n.state::pg_catalog.text) IS NOT TRUE
      AND (n.metadata OPERATOR(pg_catalog.?) 'superseded_by') IS NOT TRUE;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION medianest.gate_job() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' AND OLD.state::pg_catalog.text OPERATOR(pg_catalog.=) NEW.state::pg_catalog.text THEN
        RETURN NEW; -- it was available
    END IF;
    IF (pg_catalog.current_setting('medianest.admit', true) OPERATOR(pg_catalog.=) 'on') IS NOT TRUE THEN
        NEW.state := 'pending';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION medianest.keep_superseded() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF OLD.state::pg_catalog.text OPERATOR(pg_catalog.=) NEW.state::pg_catalog.text THEN
        RETURN NEW;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION medianest.admission_keys(metadata jsonb) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT CASE WHEN pg_catalog.octet_length(k.key) OPERATOR(pg_catalog.>) 300
            THEN pg_catalog.concat(pg_catalog.left(k.key, 60), '...', pg_catalog.md5(k.key)) ELSE k.key END AS key
        FROM pg_catalog.jsonb_array_elements_text(
            CASE WHEN pg_catalog.jsonb_typeof(metadata OPERATOR(pg_catalog.->) 'keys') OPERATOR(pg_catalog.=) 'array'
                THEN metadata OPERATOR(pg_catalog.->) 'keys' ELSE '[]' END) AS k (key)
        WHERE k.key OPERATOR(pg_catalog.<>) ''
        ORDER BY key
        LIMIT 32);
END
$$;

-- As in 0005. What changes nothing that is kept is passed over: a fetch (available to running), River's writes of progress. Where
-- the keys are the same, as when a job is admitted, they are not taken apart again.
CREATE OR REPLACE FUNCTION medianest.note_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    wanted pg_catalog.text[];
    began timestamp with time zone; -- the names of types in SQL are nobody's to redefine, "timestamptz" is
    same_keys boolean := false;
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        DELETE FROM medianest.admission WHERE row_id OPERATOR(pg_catalog.=) OLD.id;
        RETURN NULL;
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        same_keys := coalesce((OLD.metadata OPERATOR(pg_catalog.->) 'keys') OPERATOR(pg_catalog.=) (NEW.metadata OPERATOR(pg_catalog.->) 'keys'), false);
        IF same_keys AND OLD.queue OPERATOR(pg_catalog.=) NEW.queue AND (
            OLD.state::pg_catalog.text OPERATOR(pg_catalog.=) 'available' AND NEW.state::pg_catalog.text OPERATOR(pg_catalog.=) 'running'
            OR OLD.state::pg_catalog.text OPERATOR(pg_catalog.=) NEW.state::pg_catalog.text AND (
                NEW.state::pg_catalog.text OPERATOR(pg_catalog.<>) 'pending'
                OR OLD.priority OPERATOR(pg_catalog.=) NEW.priority AND OLD.scheduled_at OPERATOR(pg_catalog.=) NEW.scheduled_at))
        THEN
            RETURN NULL;
        END IF;
    END IF;
    IF (NEW.state::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{pending,available,running}'::pg_catalog.text[])) IS NOT TRUE
        OR (NEW.metadata OPERATOR(pg_catalog.?) 'keys') IS NOT TRUE THEN
        DELETE FROM medianest.admission WHERE row_id OPERATOR(pg_catalog.=) NEW.id;
        RETURN NULL;
    END IF;
    IF NEW.state::pg_catalog.text OPERATOR(pg_catalog.<>) 'pending' THEN
        began := pg_catalog.now();
    END IF;
    IF same_keys THEN
        UPDATE medianest.admission AS a
        SET queue = NEW.queue, priority = NEW.priority, scheduled_at = NEW.scheduled_at,
            admitted_at = CASE WHEN began IS NOT NULL THEN coalesce(a.admitted_at, began) END, blocked_on = ''
        WHERE a.row_id OPERATOR(pg_catalog.=) NEW.id;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    wanted := medianest.admission_keys(NEW.metadata);
    INSERT INTO medianest.admission AS a (row_id, queue, priority, keys, user_key, scheduled_at, admitted_at)
    VALUES (NEW.id, NEW.queue, NEW.priority, wanted,
        coalesce((SELECT u.key FROM pg_catalog.unnest(wanted) AS u (key) WHERE pg_catalog.starts_with(u.key, 'user:') LIMIT 1), ''),
        NEW.scheduled_at, began)
    ON CONFLICT (row_id) DO UPDATE
    SET queue = excluded.queue, priority = excluded.priority, keys = excluded.keys, user_key = excluded.user_key,
        scheduled_at = excluded.scheduled_at,
        admitted_at = CASE WHEN excluded.admitted_at IS NOT NULL THEN coalesce(a.admitted_at, excluded.admitted_at) END,
        blocked_on = '';
    RETURN NULL;
END
$$;
