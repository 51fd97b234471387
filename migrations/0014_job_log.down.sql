DROP TABLE medianest.job_log;
