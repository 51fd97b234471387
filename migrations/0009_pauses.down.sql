-- The triggers go with their functions; River's own pauses stay.
DROP FUNCTION IF EXISTS medianest.on_queue_insert() CASCADE;
DROP FUNCTION IF EXISTS medianest.on_queue_pause() CASCADE;
DROP TABLE IF EXISTS medianest.pause;
