DROP TRIGGER IF EXISTS medianest_keep_superseded ON river.river_job;
DROP FUNCTION medianest.keep_superseded();
