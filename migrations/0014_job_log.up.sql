-- What jobs say of themselves while they run, for those who may see them: the newest lines of each, for as long as it is
-- there. Jobs that say nothing have no rows.
CREATE TABLE medianest.job_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,                -- public
    attempt integer NOT NULL,
    at timestamptz NOT NULL,               -- by the clock of the worker
    level text NOT NULL,                   -- info, warning, error
    text text NOT NULL
);
CREATE INDEX job_log_job_id_idx ON medianest.job_log (job_id, id DESC);

GRANT SELECT, INSERT, DELETE ON medianest.job_log TO medianest_river;
GRANT SELECT, DELETE ON medianest.job_log TO medianest_api, medianest_worker;
