-- Run after River's own migrations, each time: River's migrations never see our triggers, and a table they rebuild
-- gets them again. The canary that follows proves them.
CREATE TRIGGER medianest_insert AFTER INSERT ON river.river_job
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_job_insert();
CREATE TRIGGER medianest_update AFTER UPDATE ON river.river_job
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_job_update();
CREATE TRIGGER medianest_delete AFTER DELETE ON river.river_job
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_job_delete();

ALTER TABLE river.river_job SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0, fillfactor = 90);

GRANT USAGE ON SCHEMA river TO medianest_api, medianest_worker, medianest_river;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA river TO medianest_river, medianest_api, medianest_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA river TO medianest_river, medianest_api, medianest_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA river TO medianest_river, medianest_api, medianest_worker;
