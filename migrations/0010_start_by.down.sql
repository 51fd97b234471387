ALTER TABLE medianest.downloads DROP COLUMN start_by;
