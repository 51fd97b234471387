-- The limits that a platform begins with, as rows like any other: shown, changed and deleted by the API. One that is there
-- already stays as it is, and one that is deleted stays away.
INSERT INTO medianest.limits (key, max_running, spacing_s, jitter_s)
VALUES
    ('host:youtube.com', 2, 10, 10), -- what it takes from one address without asking for a sign-in, by what peers report
    ('kind:download', 6, 0, 0),
    ('user:*', 2, 0, 0)
ON CONFLICT (key) DO NOTHING;

-- A worker that looks what has become of its job may find it waiting again, and is told for what.
GRANT SELECT ON medianest.limit_use TO medianest_worker;
