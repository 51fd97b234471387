ALTER TABLE medianest.downloads DROP COLUMN left_out;
