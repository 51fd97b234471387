DROP TRIGGER IF EXISTS medianest_gate_insert ON river.river_job;
DROP TRIGGER IF EXISTS medianest_gate_update ON river.river_job;
DROP TRIGGER IF EXISTS medianest_note_insert ON river.river_job;
DROP TRIGGER IF EXISTS medianest_note_update ON river.river_job;
DROP TRIGGER IF EXISTS medianest_note_delete ON river.river_job;
DROP FUNCTION medianest.gate_job();
DROP FUNCTION medianest.note_job();
DROP FUNCTION medianest.admission_keys(jsonb);
DROP TABLE medianest.breaker;
DROP TABLE medianest.admission;
DROP TABLE medianest.limit_use;
DROP TABLE medianest.limits;
-- What waited for admission would wait for ever.
UPDATE river.river_job SET state = 'available' WHERE state = 'pending' AND metadata ? 'keys';
