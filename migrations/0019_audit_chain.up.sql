-- The audit, sealed in an order of its own into a chain: who changes or removes an entry, or puts one in, breaks it. Writers do
-- not wait for each other, nor for the chain: entries are sealed afterwards, one sealer at a time, whatever order their
-- transactions ended in. What may have to be erased (addresses, details) is in the chain by a salted digest only.

ALTER TABLE medianest.audit
    ADD COLUMN salt bytea DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    ADD COLUMN erased_at timestamptz,
    ADD COLUMN sealed boolean NOT NULL DEFAULT false;
CREATE INDEX audit_unsealed_idx ON medianest.audit (id) WHERE NOT sealed;

CREATE TABLE medianest.audit_seal (
    n bigint PRIMARY KEY,                      -- without gaps, but for those that retention removed from the beginning
    audit_id bigint NOT NULL UNIQUE,
    sealed_at timestamptz NOT NULL DEFAULT now(),
    private bytea NOT NULL,                    -- audit_private of the entry, which erasure leaves
    previous bytea NOT NULL,                   -- hash of n-1
    hash bytea NOT NULL                        -- SHA-256 of previous, audit_public, private
);

-- audit_public is the digest of what is never erased of an entry.
CREATE FUNCTION medianest.audit_public(a medianest.audit) RETURNS bytea
LANGUAGE sql STABLE SET timezone = 'UTC'
RETURN sha256(convert_to(jsonb_build_array(a.id, a.at, a.actor_id, a.action, a.subject, a.request_id, a.status)::text, 'UTF8'));

-- audit_private is the digest of the rest, which the salt keeps from being guessed once it is erased.
CREATE FUNCTION medianest.audit_private(a medianest.audit) RETURNS bytea
LANGUAGE sql STABLE
RETURN sha256(a.salt || convert_to(jsonb_build_array(a.client, a.detail)::text, 'UTF8'));

-- keep_audit lets an entry be completed once, be sealed, and be erased; nothing else of it changes.
CREATE OR REPLACE FUNCTION medianest.keep_audit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was medianest.audit := OLD;
BEGIN
    IF NEW.sealed AND NOT OLD.sealed THEN
        was.sealed := true;
    ELSIF NEW.erased_at IS NOT NULL THEN
        was.erased_at := NEW.erased_at;
        was.client := '';
        was.detail := '{}';
        was.salt := NULL;
    ELSIF OLD.status IS NULL AND NOT OLD.sealed THEN
        was.status := NEW.status;
        was.detail := NEW.detail;
    END IF;
    IF was IS DISTINCT FROM NEW THEN
        RAISE EXCEPTION 'row % of the audit is complete', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
DROP TRIGGER medianest_keep ON medianest.audit;
CREATE TRIGGER medianest_keep BEFORE UPDATE ON medianest.audit FOR EACH ROW EXECUTE FUNCTION medianest.keep_audit();

-- seal_audit seals up to in_batch entries, the oldest ids first, and returns how many. One that is not complete is left for
-- ten minutes. Whoever finds another sealer at it does nothing.
CREATE FUNCTION medianest.seal_audit(in_batch integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    entry medianest.audit;
    last_n bigint;
    last_hash bytea;
    private bytea;
    sealed bigint := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7239610442313) THEN
        RETURN 0;
    END IF;
    SELECT s.n, s.hash INTO last_n, last_hash FROM medianest.audit_seal AS s ORDER BY s.n DESC LIMIT 1;
    last_n := coalesce(last_n, 0);
    last_hash := coalesce(last_hash, sha256(''));
    FOR entry IN
        SELECT a.*
        FROM medianest.audit AS a
        WHERE NOT a.sealed AND (a.status IS NOT NULL OR a.at < now() - interval '10 minutes')
        ORDER BY a.id
        LIMIT in_batch
        FOR UPDATE SKIP LOCKED
    LOOP
        last_n := last_n + 1;
        -- One that was erased before it could be sealed has no salt any more.
        private := coalesce(medianest.audit_private(entry), sha256(''));
        INSERT INTO medianest.audit_seal (n, audit_id, private, previous, hash)
        VALUES (last_n, entry.id, private, last_hash, sha256(last_hash || medianest.audit_public(entry) || private))
        RETURNING hash INTO last_hash;
        UPDATE medianest.audit SET sealed = true WHERE id = entry.id;
        sealed := sealed + 1;
    END LOOP;
    RETURN sealed;
END
$$;

-- verify_audit looks through the chain after a link, up to in_limit links, and returns the first fault, or the last link
-- without one.
CREATE FUNCTION medianest.verify_audit(in_after bigint, in_limit integer, OUT n bigint, OUT hash bytea, OUT checked bigint, OUT fault text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH link AS MATERIALIZED (
        SELECT s.n, s.hash, s.previous, lag(s.n) OVER w AS last_n, lag(s.hash) OVER w AS last_hash, s.private,
            a.id IS NULL AS gone, medianest.audit_public(a) AS public, a.erased_at IS NOT NULL AS erased, medianest.audit_private(a) AS now_private
        FROM (
            SELECT *
            FROM medianest.audit_seal
            WHERE n >= in_after
            ORDER BY n
            LIMIT in_limit + 1
        ) AS s
        LEFT JOIN medianest.audit AS a ON a.id = s.audit_id
        WINDOW w AS (ORDER BY s.n)
    ), judged AS (
        SELECT l.n, l.hash, CASE
            WHEN l.gone THEN 'entry removed'
            WHEN l.last_n IS NOT NULL AND l.n <> l.last_n + 1 THEN 'link removed'
            WHEN l.last_n IS NOT NULL AND l.previous <> l.last_hash THEN 'link replaced'
            WHEN NOT l.erased AND l.now_private IS DISTINCT FROM l.private THEN 'entry changed'
            WHEN l.hash <> sha256(l.previous || l.public || l.private) THEN 'entry changed'
        END AS fault
        FROM link AS l
    )
    SELECT j.n, j.hash, (SELECT count(*) FROM judged), j.fault
    FROM judged AS j
    ORDER BY j.fault IS NULL, CASE WHEN j.fault IS NULL THEN -j.n ELSE j.n END
    LIMIT 1
$$;

-- erase_audit takes what tells of a person out of what they did: addresses, details, and the name in tries to sign in.
CREATE FUNCTION medianest.erase_audit(in_actor uuid, in_name text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH erased AS (
        UPDATE medianest.audit
        SET client = '', detail = '{}', salt = NULL, erased_at = now()
        WHERE erased_at IS NULL AND (actor_id = in_actor OR actor_id IS NULL AND action LIKE 'auth.%' AND detail ->> 'name' = in_name)
        RETURNING id
    )
    SELECT count(*) FROM erased
$$;

-- trim_audit removes up to in_batch of the entries that are older than in_age and a month, with their links, the oldest
-- first, and returns how many. Nobody removes younger ones, and the chain goes on from where it is cut.
CREATE OR REPLACE FUNCTION medianest.trim_audit(in_age interval, in_batch integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH old AS (
        SELECT s.n, s.audit_id
        FROM medianest.audit_seal AS s
        JOIN medianest.audit AS a ON a.id = s.audit_id
        WHERE a.at < now() - greatest(in_age, interval '30 days')
            -- from the beginning of the chain, without a gap
            AND s.n < coalesce((
                SELECT min(y.n)
                FROM medianest.audit_seal AS y
                JOIN medianest.audit AS b ON b.id = y.audit_id
                WHERE b.at >= now() - greatest(in_age, interval '30 days')
            ), 9223372036854775807)
        ORDER BY s.n
        LIMIT in_batch
    ), links AS (
        DELETE FROM medianest.audit_seal WHERE n IN (SELECT o.n FROM old AS o)
    ), removed AS (
        DELETE FROM medianest.audit WHERE id IN (SELECT o.audit_id FROM old AS o)
        RETURNING id
    )
    SELECT count(*) FROM removed
$$;

-- How far a receiver outside has the chain.
CREATE TABLE medianest.audit_forward (
    target text PRIMARY KEY,
    n bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

REVOKE EXECUTE ON FUNCTION medianest.seal_audit(integer), medianest.verify_audit(bigint, integer), medianest.erase_audit(uuid, text) FROM PUBLIC;
GRANT SELECT ON medianest.audit_seal TO medianest_api, medianest_worker;
GRANT SELECT ON medianest.audit, medianest.users TO medianest_worker;
GRANT SELECT, INSERT, UPDATE ON medianest.audit_forward TO medianest_worker;
GRANT EXECUTE ON FUNCTION medianest.seal_audit(integer) TO medianest_worker, medianest_api;
GRANT EXECUTE ON FUNCTION medianest.verify_audit(bigint, integer) TO medianest_api;
GRANT EXECUTE ON FUNCTION medianest.erase_audit(uuid, text) TO medianest_api;
