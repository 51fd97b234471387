-- keep_superseded leaves a row as it is that is final and whose job goes on as another row: made available again, it would
-- be worked as well as its successor. Whoever asks; a retry by River or River UI finds the row unchanged, as it does one
-- that runs, and no statement that ends other jobs with it fails.
CREATE FUNCTION medianest.keep_superseded() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NULL;
END
$$;
