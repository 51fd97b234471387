REVOKE DELETE ON medianest.users FROM medianest_worker;
DROP TABLE medianest.access_rule, medianest.sign_in_failure, medianest.one_time, medianest.refresh_token, medianest.session,
    medianest.user_identity, medianest.role_quota;
ALTER TABLE medianest.tokens DROP COLUMN networks, DROP COLUMN scopes;
ALTER TABLE medianest.users
    DROP COLUMN erased_at, DROP COLUMN quota_downloads, DROP COLUMN quota_bytes, DROP COLUMN password_hash;
