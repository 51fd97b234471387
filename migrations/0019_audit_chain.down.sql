REVOKE SELECT ON medianest.audit FROM medianest_worker;
DROP FUNCTION medianest.seal_audit(integer);
DROP FUNCTION medianest.verify_audit(bigint, integer);
DROP FUNCTION medianest.erase_audit(uuid, text);
DROP TABLE medianest.audit_forward;
DROP TABLE medianest.audit_seal;
DROP TRIGGER medianest_keep ON medianest.audit;
DROP FUNCTION medianest.keep_audit();
DROP FUNCTION medianest.audit_public(medianest.audit);
DROP FUNCTION medianest.audit_private(medianest.audit);
ALTER TABLE medianest.audit DROP COLUMN sealed, DROP COLUMN erased_at, DROP COLUMN salt;
CREATE FUNCTION medianest.keep_audit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'row % of the audit is complete', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER medianest_keep BEFORE UPDATE ON medianest.audit
    FOR EACH ROW WHEN (OLD.status IS NOT NULL) EXECUTE FUNCTION medianest.keep_audit();
CREATE OR REPLACE FUNCTION medianest.trim_audit(in_age interval, in_batch integer) RETURNS bigint
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
