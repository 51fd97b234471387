DROP FUNCTION medianest.window_opens_at(jsonb, text, timestamptz);
ALTER TABLE medianest.limits DROP COLUMN windows, DROP COLUMN timezone;
