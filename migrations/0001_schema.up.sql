-- The domain tables. River's own tables live in schema river (River's migrations make them); everything here is
-- ours. Roles are groups without login: a process connects as any member and takes its role at connect time.
-- The runner creates the roles and both schemas before this file.

CREATE TABLE medianest.users (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    role text NOT NULL CHECK (role IN ('admin', 'manager', 'member', 'viewer')),
    created_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

-- API tokens: only the SHA-256 of a token is kept.
CREATE TABLE medianest.tokens (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES medianest.users ON DELETE CASCADE,
    name text NOT NULL,
    hash bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX tokens_user_id_idx ON medianest.tokens (user_id);

-- One row per thing that can be fetched, however many users wish for it.
CREATE TABLE medianest.content (
    id uuid PRIMARY KEY,
    key text NOT NULL UNIQUE,              -- profile + canonical URL, or profile + extractor:id where an id is globally unique
    url text NOT NULL,                     -- what yt-dlp is given
    profile text NOT NULL,
    job_id bigint,                         -- the River job that fetches it, or fetched it last
    generation integer NOT NULL DEFAULT 0, -- counts fetches begun; each has a staging folder of its own
    is_collection boolean NOT NULL DEFAULT false, -- a page, playlist or feed: it has children and no file
    extractor text NOT NULL DEFAULT '',
    extractor_id text NOT NULL DEFAULT '',
    title text NOT NULL DEFAULT '',
    probe jsonb,                           -- yt-dlp's info of the thing, kept so that it is never extracted twice
    probed_at timestamptz,
    failure_detail text NOT NULL DEFAULT '', -- of the last failed attempt, fit to be shown
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row per user's wish. State, cancel and delete are the user's alone.
CREATE TABLE medianest.downloads (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES medianest.users,
    content_id uuid NOT NULL REFERENCES medianest.content,
    parent_id uuid REFERENCES medianest.downloads ON DELETE CASCADE,
    position integer NOT NULL DEFAULT 0,   -- place among its parent's children, from 0
    url text NOT NULL,
    profile text NOT NULL,
    title text NOT NULL DEFAULT '',
    is_collection boolean NOT NULL DEFAULT false,
    state text NOT NULL CHECK (state IN ('queued', 'waiting', 'running', 'paused', 'completed', 'failed', 'cancelled')),
    waiting_on text NOT NULL DEFAULT '',
    next_try_at timestamptz,
    job_id bigint,                         -- the River job whose states this download follows
    cancelled_at timestamptz,              -- the user's cancel: from then on the job's states are not followed
    failure_reason text NOT NULL DEFAULT '',
    failure_detail text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz
);
-- Lists show what was asked for, without the items of collections, which may be most of the rows.
CREATE INDEX downloads_user_id_idx ON medianest.downloads (user_id, id DESC) WHERE parent_id IS NULL;
CREATE INDEX downloads_id_idx ON medianest.downloads (id DESC) WHERE parent_id IS NULL;
CREATE INDEX downloads_state_idx ON medianest.downloads (state, id DESC) WHERE parent_id IS NULL;
CREATE INDEX downloads_content_id_idx ON medianest.downloads (content_id);
CREATE INDEX downloads_parent_id_idx ON medianest.downloads (parent_id, position) WHERE parent_id IS NOT NULL;
CREATE INDEX downloads_job_id_idx ON medianest.downloads (job_id);
-- "The same wish by the same user while one is active is one download" is kept by locking the content row, not by a
-- unique index: the outbox's consumer must be able to follow a job that comes back to life, whatever else exists.

-- Files in the library. Each user who wished for a content has a path of their own (a hard link to the same bytes),
-- so deleting one user's file leaves the others'.
CREATE TABLE medianest.files (
    id uuid PRIMARY KEY,
    content_id uuid NOT NULL REFERENCES medianest.content,
    user_id uuid NOT NULL REFERENCES medianest.users,
    path text NOT NULL UNIQUE,             -- relative to the media root, slashes
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX files_content_id_idx ON medianest.files (content_id, user_id);

-- Who may see a job's events, and as which of their downloads. Written in the transaction that ties a download to a job.
CREATE TABLE medianest.job_viewer (
    job_id bigint NOT NULL,
    user_id uuid NOT NULL,
    download_id uuid NOT NULL,
    gone_at timestamptz,                   -- when the job's row was first found gone: its events are no younger
    PRIMARY KEY (job_id, user_id, download_id)
);
CREATE INDEX job_viewer_user_id_idx ON medianest.job_viewer (user_id, job_id DESC);

-- Answers to POSTs that carried an Idempotency-Key.
CREATE TABLE medianest.idempotency (
    user_id uuid NOT NULL REFERENCES medianest.users ON DELETE CASCADE,
    key text NOT NULL,
    fingerprint bytea NOT NULL,            -- SHA-256 of method, path and body
    resource_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_created_at_idx ON medianest.idempotency (created_at);

-- Work that one process at a time does for the fleet (ticks, the consumer, trims). The lease only saves the others
-- idle queries: correctness never rests on it, but on the locks that each duty takes in its own transaction.
CREATE TABLE medianest.duty (
    name text PRIMARY KEY,
    holder text NOT NULL,
    expires_at timestamptz NOT NULL
);

GRANT USAGE ON SCHEMA medianest TO medianest_api, medianest_worker, medianest_river;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    medianest.content, medianest.downloads, medianest.files, medianest.job_viewer, medianest.idempotency, medianest.duty
    TO medianest_api, medianest_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.users, medianest.tokens TO medianest_api;
GRANT SELECT ON medianest.users TO medianest_worker;
