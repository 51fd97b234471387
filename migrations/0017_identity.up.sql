-- Who people are, how they sign in, and on what conditions they may do what their role allows.

ALTER TABLE medianest.users
    ADD COLUMN password_hash text,             -- argon2id in PHC form; NULL: no password
    ADD COLUMN quota_bytes bigint CHECK (quota_bytes >= 0),         -- of files in the library; NULL: the role's
    ADD COLUMN quota_downloads integer CHECK (quota_downloads >= 0), -- asked for in 24 hours; NULL: the role's
    ADD COLUMN erased_at timestamptz;          -- the person is gone; the row goes when the last file has

-- What users of a role may have, unless it is said of the user. NULL: any amount.
CREATE TABLE medianest.role_quota (
    role text PRIMARY KEY CHECK (role IN ('admin', 'manager', 'member', 'viewer')),
    bytes bigint CHECK (bytes >= 0),
    downloads integer CHECK (downloads >= 0)
);
INSERT INTO medianest.role_quota (role, downloads) VALUES ('admin', NULL), ('manager', NULL), ('member', 500), ('viewer', 0);

ALTER TABLE medianest.tokens
    ADD COLUMN scopes text[],                  -- of those of the user's role; NULL: all of them
    ADD COLUMN networks cidr[];                -- from which it is taken; NULL: from anywhere

-- Who a person is elsewhere: an account of plex.tv, a subject of an OpenID provider.
CREATE TABLE medianest.user_identity (
    provider text NOT NULL,                    -- "plex", or the issuer
    subject text NOT NULL,
    user_id uuid NOT NULL REFERENCES medianest.users ON DELETE CASCADE,
    name text NOT NULL DEFAULT '',             -- as the provider calls them, to be shown
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    PRIMARY KEY (provider, subject)
);
CREATE INDEX user_identity_user_id_idx ON medianest.user_identity (user_id);

-- A browser that is signed in. What it carries is signed and short-lived; whether it counts is decided here.
CREATE TABLE medianest.session (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES medianest.users ON DELETE CASCADE,
    token_id uuid REFERENCES medianest.tokens ON DELETE CASCADE, -- signed in by this token: ends with it, may no more
    method text NOT NULL,                      -- password, token, invitation, plex, oidc
    remember boolean NOT NULL,
    client text NOT NULL DEFAULT '',           -- address at sign-in
    user_agent text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(), -- renewed, that is
    expires_at timestamptz NOT NULL,           -- unless renewed before
    ends_at timestamptz NOT NULL,              -- whatever is renewed
    revoked_at timestamptz,
    revoked_for text NOT NULL DEFAULT ''       -- signed_out, revoked, reuse
);
CREATE INDEX session_user_id_idx ON medianest.session (user_id);
CREATE INDEX session_expires_at_idx ON medianest.session (expires_at);
CREATE INDEX session_token_id_idx ON medianest.session (token_id) WHERE token_id IS NOT NULL;

-- Refresh tokens of a session: each is good once. One that comes a second time was stolen, or its successor was.
CREATE TABLE medianest.refresh_token (
    hash bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    session_id uuid NOT NULL REFERENCES medianest.session ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz
);
CREATE INDEX refresh_token_session_id_idx ON medianest.refresh_token (session_id);

-- Codes that are good once and for a short time: invitations, tickets of event streams, sign-ins under way elsewhere.
CREATE TABLE medianest.one_time (
    hash bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    purpose text NOT NULL,
    user_id uuid REFERENCES medianest.users ON DELETE CASCADE,
    session_id uuid REFERENCES medianest.session ON DELETE CASCADE, -- ends with it
    token_id uuid REFERENCES medianest.tokens ON DELETE CASCADE,    -- ends with it, may no more
    detail jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX one_time_user_id_idx ON medianest.one_time (user_id);
CREATE INDEX one_time_expires_at_idx ON medianest.one_time (expires_at);
CREATE INDEX one_time_session_id_idx ON medianest.one_time (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX one_time_token_id_idx ON medianest.one_time (token_id) WHERE token_id IS NOT NULL;

-- Who failed to sign in how often: per name and per network, for all replicas.
CREATE TABLE medianest.sign_in_failure (
    key text PRIMARY KEY,                      -- "user:anna", "net:192.0.2.7/32"
    count integer NOT NULL,
    last_at timestamptz NOT NULL,
    until timestamptz NOT NULL                 -- no try before
);
CREATE INDEX sign_in_failure_last_at_idx ON medianest.sign_in_failure (last_at);

-- Conditions on scopes: whom a rule names may use them only from its networks and only within its windows.
CREATE TABLE medianest.access_rule (
    name text PRIMARY KEY,
    roles text[] NOT NULL DEFAULT '{}',        -- of whom; with user_ids, either
    user_ids uuid[] NOT NULL DEFAULT '{}',
    scopes text[] NOT NULL,
    networks cidr[],                           -- NULL: from anywhere
    windows jsonb,                             -- see window_opens_at; NULL: at any time
    timezone text NOT NULL DEFAULT 'UTC',      -- of the windows
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by uuid
);

GRANT SELECT, INSERT, UPDATE, DELETE ON
    medianest.user_identity, medianest.session, medianest.refresh_token, medianest.one_time, medianest.sign_in_failure,
    medianest.access_rule, medianest.role_quota
    TO medianest_api;
GRANT DELETE ON medianest.session, medianest.one_time, medianest.sign_in_failure TO medianest_worker;
GRANT SELECT ON medianest.session, medianest.one_time, medianest.sign_in_failure TO medianest_worker;
GRANT DELETE ON medianest.users TO medianest_worker; -- of people who are gone, with their last file
