-- What administrators did, and what came of it. A row is written before the deed; of one without a status it is not known
-- whether it was done.
CREATE TABLE medianest.audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor_id uuid,                         -- NULL: the platform itself
    action text NOT NULL,                  -- operation of the API, or river.* for what was asked of River UI
    subject text NOT NULL DEFAULT '',      -- what it was done to: "key=host:youtube.com"
    detail jsonb NOT NULL DEFAULT '{}',
    request_id text NOT NULL DEFAULT '',
    client text NOT NULL DEFAULT '',       -- address
    status integer                         -- of the answer, as in HTTP; NULL: not known
);
CREATE INDEX audit_at_idx ON medianest.audit (at);
CREATE INDEX audit_action_idx ON medianest.audit (action, id);
CREATE INDEX audit_actor_id_idx ON medianest.audit (actor_id, id);

-- keep_audit lets a row be completed once, and nothing of it be changed afterwards.
CREATE FUNCTION medianest.keep_audit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'row % of the audit is complete', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER medianest_keep BEFORE UPDATE ON medianest.audit
    FOR EACH ROW WHEN (OLD.status IS NOT NULL) EXECUTE FUNCTION medianest.keep_audit();

-- trim_audit removes up to in_batch of the rows that are older than in_age and a month, the oldest first, and returns how
-- many. Nobody removes younger ones.
CREATE FUNCTION medianest.trim_audit(in_age interval, in_batch integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH removed AS (
        DELETE FROM medianest.audit
        WHERE id IN (
            SELECT a.id
            FROM medianest.audit AS a
            WHERE a.at < now() - greatest(in_age, interval '30 days')
            ORDER BY a.at, a.id
            LIMIT in_batch
            FOR UPDATE SKIP LOCKED
        )
        RETURNING id
    )
    SELECT count(*) FROM removed
$$;
REVOKE EXECUTE ON FUNCTION medianest.trim_audit(interval, integer) FROM PUBLIC;

-- The API adds and completes. Nobody deletes but by the function.
GRANT SELECT, INSERT, UPDATE (detail, status) ON medianest.audit TO medianest_api;
GRANT EXECUTE ON FUNCTION medianest.trim_audit(interval, integer) TO medianest_api, medianest_worker;
