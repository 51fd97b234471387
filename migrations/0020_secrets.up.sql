-- What must be kept and shown to nobody: tokens of other systems, cookie jars, secrets of webhooks. Sealed by a key that is not in
-- the database (AES-256-GCM), each for its place: moved to another name it opens nothing.
CREATE TABLE medianest.secret (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._:-]{0,199}$'),
    sealed bytea NOT NULL,
    key_id text NOT NULL,                      -- that it is sealed under
    user_id uuid REFERENCES medianest.users ON DELETE CASCADE, -- whose; NULL: the platform's
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by uuid
);
CREATE INDEX secret_key_id_idx ON medianest.secret (key_id);
CREATE INDEX secret_user_id_idx ON medianest.secret (user_id) WHERE user_id IS NOT NULL;
ALTER TABLE medianest.secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_user ON medianest.secret TO medianest_api USING (
    (SELECT medianest.acts_for_everyone()) OR user_id = (SELECT medianest.acting_user()));
CREATE POLICY of_everyone ON medianest.secret TO medianest_worker USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.secret TO medianest_api;
GRANT SELECT, UPDATE ON medianest.secret TO medianest_worker;
