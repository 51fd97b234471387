DROP TABLE medianest.duty;
DROP TABLE medianest.idempotency;
DROP TABLE medianest.job_viewer;
DROP TABLE medianest.files;
DROP TABLE medianest.downloads;
DROP TABLE medianest.content;
DROP TABLE medianest.tokens;
DROP TABLE medianest.users;
