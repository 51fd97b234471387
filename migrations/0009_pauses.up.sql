-- What is to stand still: keys as limits have them. River keeps the pause of a queue itself, and forgets it when nobody works
-- the queue for a day; this is what people want, and stays.
CREATE TABLE medianest.pause (
    key text PRIMARY KEY,
    note text NOT NULL DEFAULT '',
    paused_at timestamptz NOT NULL DEFAULT now(),
    paused_by uuid                         -- NULL: by River UI, or a statement typed by hand
);

-- on_queue_insert has a queue that River makes (anew) stand still where it is paused. River's workers announce their queues
-- so; it must not fail.
CREATE FUNCTION medianest.on_queue_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.paused_at IS NULL THEN
        NEW.paused_at := (SELECT p.paused_at FROM medianest.pause AS p WHERE p.key = 'queue:' || NEW.name);
    END IF;
    RETURN NEW;
END
$$;

-- on_queue_pause keeps what River UI, or anybody else, makes of River's own pause.
CREATE FUNCTION medianest.on_queue_pause() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.paused_at IS NULL THEN
        DELETE FROM medianest.pause AS p WHERE p.key = 'queue:' || NEW.name;
    ELSE
        INSERT INTO medianest.pause (key, paused_at)
        VALUES ('queue:' || NEW.name, NEW.paused_at)
        ON CONFLICT (key) DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON medianest.pause TO medianest_api;
GRANT SELECT ON medianest.pause TO medianest_worker, medianest_river;
