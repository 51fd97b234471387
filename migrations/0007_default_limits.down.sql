REVOKE SELECT ON medianest.limit_use FROM medianest_worker;
DELETE FROM medianest.limits WHERE key IN ('host:youtube.com', 'kind:download', 'user:*') AND updated_by IS NULL;
