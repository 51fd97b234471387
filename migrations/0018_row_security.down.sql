DROP POLICY of_user ON medianest.refresh_token;
ALTER TABLE medianest.refresh_token DISABLE ROW LEVEL SECURITY;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['downloads', 'files', 'job_viewer', 'idempotency', 'tokens', 'session', 'user_identity'] LOOP
        EXECUTE format('DROP POLICY of_user ON medianest.%I', name);
        EXECUTE format('DROP POLICY of_everyone ON medianest.%I', name);
        EXECUTE format('ALTER TABLE medianest.%I DISABLE ROW LEVEL SECURITY', name);
    END LOOP;
END
$$;
DROP FUNCTION medianest.acts_for_everyone();
DROP FUNCTION medianest.acting_user();
