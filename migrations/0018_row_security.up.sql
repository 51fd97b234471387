-- The second wall between users: what belongs to one is not there for a connection of the API that acts for another, or for
-- nobody, whatever a statement forgets to ask. A connection acts for a user by medianest.user_id, or for everyone by
-- medianest.everyone; it begins as nobody's. Workers act for everyone. Owners are not bound.

-- acting_user is whom the connection acts for; NULL: nobody.
CREATE FUNCTION medianest.acting_user() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(pg_catalog.current_setting('medianest.user_id', true), '')::uuid;

-- acts_for_everyone says whether it acts for everyone.
CREATE FUNCTION medianest.acts_for_everyone() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(pg_catalog.current_setting('medianest.everyone', true), '') = 'on';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['downloads', 'files', 'job_viewer', 'idempotency', 'tokens', 'session', 'user_identity'] LOOP
        EXECUTE format('ALTER TABLE medianest.%I ENABLE ROW LEVEL SECURITY', name);
        -- Each is asked once a statement, not once a row.
        EXECUTE format('CREATE POLICY of_user ON medianest.%I TO medianest_api USING (
            (SELECT medianest.acts_for_everyone()) OR user_id = (SELECT medianest.acting_user()))', name);
        EXECUTE format('CREATE POLICY of_everyone ON medianest.%I TO medianest_worker, medianest_river USING (true)', name);
    END LOOP;
END
$$;

-- Refresh tokens are a session's.
ALTER TABLE medianest.refresh_token ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_user ON medianest.refresh_token TO medianest_api USING (
    (SELECT medianest.acts_for_everyone()) OR EXISTS (SELECT FROM medianest.session AS s WHERE s.id = session_id));
