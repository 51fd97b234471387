-- The attempts of jobs that have something to tell: those that did not simply complete, and those that fetched. Of a job that
-- completed at once, its row tells all there is. The newest of each job are kept, for as long as the job is.
CREATE TABLE medianest.attempt (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,                -- public
    attempt integer NOT NULL,              -- its number; one that costs none is given out again
    worker text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT now(),
    outcome text NOT NULL,
    reason text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    bytes bigint                           -- how much of what is fetched was there at its end; NULL: not known
);
CREATE INDEX attempt_job_id_idx ON medianest.attempt (job_id, id DESC);

GRANT SELECT, INSERT, DELETE ON medianest.attempt TO medianest_river;
GRANT SELECT, DELETE ON medianest.attempt TO medianest_api, medianest_worker;
