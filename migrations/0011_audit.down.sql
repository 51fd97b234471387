DROP FUNCTION IF EXISTS medianest.trim_audit(interval, integer);
DROP TABLE medianest.audit;
DROP FUNCTION medianest.keep_audit();
