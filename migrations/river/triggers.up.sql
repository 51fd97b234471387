-- Run after River's own migrations, each time: River's migrations never see our triggers, and a table they rebuild
-- gets them again. The canary that follows proves them.
CREATE TRIGGER medianest_insert AFTER INSERT ON river.river_job
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_job_insert();
CREATE TRIGGER medianest_update AFTER UPDATE ON river.river_job
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_job_update();
CREATE TRIGGER medianest_delete AFTER DELETE ON river.river_job
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION medianest.on_job_delete();

-- Jobs with keys go through admission. For all others these triggers cost the look at a condition, and no call: what
-- names no keys is asked first. Conditions are short, since each statement on the table has its copy of them: what else there is
-- to ask is in the functions.
CREATE TRIGGER medianest_gate_insert BEFORE INSERT ON river.river_job
    FOR EACH ROW WHEN (NEW.metadata ? 'keys' AND NEW.state = 'available') EXECUTE FUNCTION medianest.gate_job();
CREATE TRIGGER medianest_gate_update BEFORE UPDATE OF state ON river.river_job
    FOR EACH ROW WHEN (NEW.metadata ? 'keys' AND NEW.state = 'available') EXECUTE FUNCTION medianest.gate_job();
CREATE TRIGGER medianest_note_insert AFTER INSERT ON river.river_job
    FOR EACH ROW WHEN (NEW.metadata ? 'keys') EXECUTE FUNCTION medianest.note_job();
CREATE TRIGGER medianest_note_update AFTER UPDATE ON river.river_job
    FOR EACH ROW WHEN (NEW.metadata ? 'keys' OR OLD.metadata ? 'keys') EXECUTE FUNCTION medianest.note_job();
CREATE TRIGGER medianest_note_delete AFTER DELETE ON river.river_job
    FOR EACH ROW WHEN (OLD.metadata ? 'keys') EXECUTE FUNCTION medianest.note_job();

-- A final row whose job goes on as another stays final. Nearly every row is not final, which is asked first.
CREATE TRIGGER medianest_keep_superseded BEFORE UPDATE OF state ON river.river_job
    FOR EACH ROW WHEN (OLD.finalized_at IS NOT NULL AND OLD.metadata ? 'superseded_by')
    EXECUTE FUNCTION medianest.keep_superseded();

-- The pause of a queue is kept where River does not forget it.
CREATE TRIGGER medianest_queue_insert BEFORE INSERT ON river.river_queue
    FOR EACH ROW EXECUTE FUNCTION medianest.on_queue_insert();
CREATE TRIGGER medianest_queue_pause AFTER UPDATE OF paused_at ON river.river_queue
    FOR EACH ROW WHEN ((OLD.paused_at IS NULL) <> (NEW.paused_at IS NULL)) EXECUTE FUNCTION medianest.on_queue_pause();

-- While the triggers were away or not yet there, nobody kept what they keep. Nobody writes jobs now.
DELETE FROM medianest.admission AS a
WHERE NOT EXISTS (
    SELECT FROM river.river_job AS j
    WHERE j.id = a.row_id AND j.state IN ('pending', 'available', 'running') AND j.metadata ? 'keys');
INSERT INTO medianest.admission AS a (row_id, queue, priority, keys, user_key, scheduled_at, admitted_at)
SELECT j.id, j.queue, j.priority, k.keys,
    coalesce((SELECT u FROM unnest(k.keys) AS u WHERE starts_with(u, 'user:') LIMIT 1), ''),
    j.scheduled_at, CASE WHEN j.state <> 'pending' THEN now() END
FROM river.river_job AS j
CROSS JOIN medianest.admission_keys(j.metadata) AS k (keys)
WHERE j.state IN ('pending', 'available', 'running') AND j.metadata ? 'keys'
ON CONFLICT (row_id) DO UPDATE
SET keys = excluded.keys, user_key = excluded.user_key, queue = excluded.queue, priority = excluded.priority,
    scheduled_at = excluded.scheduled_at,
    admitted_at = CASE WHEN excluded.admitted_at IS NOT NULL THEN coalesce(a.admitted_at, excluded.admitted_at) END;

ALTER TABLE river.river_job SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0, fillfactor = 90);

GRANT USAGE ON SCHEMA river TO medianest_api, medianest_worker, medianest_river;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA river TO medianest_river, medianest_api, medianest_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA river TO medianest_river, medianest_api, medianest_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA river TO medianest_river, medianest_api, medianest_worker;
