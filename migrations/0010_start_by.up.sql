-- By when a download is to have begun: later, nobody wants it any more.
ALTER TABLE medianest.downloads ADD COLUMN start_by timestamptz;
CREATE INDEX downloads_start_by_idx ON medianest.downloads (start_by)
    WHERE start_by IS NOT NULL AND started_at IS NULL AND finished_at IS NULL;
