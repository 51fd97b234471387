-- When jobs under a key may begin, by the clocks of a time zone.
ALTER TABLE medianest.limits
    ADD COLUMN windows jsonb,                          -- see window_opens_at; NULL: at any time
    ADD COLUMN timezone text NOT NULL DEFAULT 'UTC';   -- of the windows

-- window_opens_at is when the next of the windows opens, or NULL if one is open at the time, or there are none. A window is
-- {"days": ["mon", "tue"], "from": "23:00", "to": "07:00"} by the zone's clocks; without days it is every day's, and one that
-- ends before it begins ends on the next day. One that falls into an hour that is skipped is left out. It cannot fail: what
-- is no window is none, and a zone that the database does not know (any more) is UTC.
CREATE FUNCTION medianest.window_opens_at(windows jsonb, zone text, at timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    opens_at timestamptz;
BEGIN
    IF windows IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT CASE WHEN NOT coalesce(bool_or(s.opens <= at AND at < s.closes), false)
        -- the next two weeks have one, or it is looked for again
        THEN coalesce(min(s.opens) FILTER (WHERE s.opens > at), at + interval '14 days') END
    INTO opens_at
    FROM jsonb_array_elements(windows) AS w (v)
    CROSS JOIN generate_series(-1, 14) AS n (days)
    CROSS JOIN LATERAL (SELECT (at AT TIME ZONE zone)::date + n.days AS day, (w.v ->> 'from')::interval AS "from",
        (w.v ->> 'to')::interval AS "to") AS d
    CROSS JOIN LATERAL (
        SELECT (d.day + d."from") AT TIME ZONE zone AS opens,
            (d.day + d."to" + CASE WHEN d."to" <= d."from" THEN interval '1 day' ELSE interval '0' END) AT TIME ZONE zone AS closes
    ) AS s
    WHERE (NOT w.v ? 'days' OR w.v -> 'days' ? to_char(d.day, 'dy')) AND s.opens < s.closes;
    RETURN opens_at;
EXCEPTION WHEN data_exception THEN
    IF zone = 'UTC' THEN
        RETURN NULL;
    END IF;
    RETURN medianest.window_opens_at(windows, 'UTC', at);
END
$$;
