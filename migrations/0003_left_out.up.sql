-- What of a collection was not made children, in words fit to be shown.
ALTER TABLE medianest.downloads ADD COLUMN left_out text NOT NULL DEFAULT '';
