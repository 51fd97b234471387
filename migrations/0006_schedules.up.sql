-- Schedules: jobs that are enqueued at their times, by whichever process looks first. What a schedule is comes from the
-- API; the platform's own are put there by the processes that know them.
CREATE TABLE medianest.schedule (
    id uuid PRIMARY KEY,
    system_key text UNIQUE,                -- of the platform's own, which may be changed and paused but not deleted
    name text NOT NULL UNIQUE,
    enabled boolean NOT NULL DEFAULT true,
    kind text NOT NULL,
    args jsonb NOT NULL DEFAULT '{}',
    cron text NOT NULL DEFAULT '',         -- '': by interval
    timezone text NOT NULL DEFAULT 'UTC',  -- of cron
    interval_s integer CHECK (interval_s > 0),
    anchor_at timestamptz NOT NULL,        -- what intervals count from
    jitter_s integer NOT NULL DEFAULT 0 CHECK (jitter_s >= 0),
    overlap text NOT NULL CHECK (overlap IN ('skip', 'queue_one', 'cancel_previous')),
    misfire text NOT NULL CHECK (misfire IN ('skip', 'run_once', 'run_all')),
    misfire_max integer NOT NULL CHECK (misfire_max > 0), -- of run_all
    next_tick timestamptz,                 -- NULL: never, or not enabled
    revision bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by uuid,                       -- NULL: the platform itself
    CHECK ((cron = '') = (interval_s IS NOT NULL)),
    CHECK (enabled OR next_tick IS NULL)
);
CREATE INDEX schedule_due_idx ON medianest.schedule (next_tick) WHERE next_tick IS NOT NULL;

-- What became of each tick, the newest of each schedule. A row of a tick is made in the transaction that enqueues its
-- job and moves the schedule on to its next tick.
CREATE TABLE medianest.schedule_run (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schedule_id uuid NOT NULL REFERENCES medianest.schedule ON DELETE CASCADE,
    tick timestamptz NOT NULL,
    is_manual boolean NOT NULL DEFAULT false, -- asked for by somebody: tick is when
    state text NOT NULL CHECK (state IN ('waiting', 'enqueued', 'completed', 'failed', 'cancelled', 'skipped', 'missed')),
    reason text NOT NULL DEFAULT '',       -- why it is not, or did not become, completed
    job_id bigint,
    run_at timestamptz,                    -- tick with jitter: from when on the job may run
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
-- Whatever else goes wrong, a tick is one run.
CREATE UNIQUE INDEX schedule_run_tick_idx ON medianest.schedule_run (schedule_id, tick) WHERE NOT is_manual;
CREATE INDEX schedule_run_schedule_id_idx ON medianest.schedule_run (schedule_id, id DESC);
CREATE INDEX schedule_run_open_idx ON medianest.schedule_run (schedule_id, state, id) WHERE state IN ('waiting', 'enqueued');
-- Each is written three times and read by few: what is dead is in the way of the looks for what is open.
ALTER TABLE medianest.schedule_run SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);

GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.schedule, medianest.schedule_run TO medianest_api;
GRANT SELECT, INSERT, UPDATE ON medianest.schedule TO medianest_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.schedule_run TO medianest_worker;
