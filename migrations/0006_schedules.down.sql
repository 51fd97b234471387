DROP TABLE medianest.schedule_run;
DROP TABLE medianest.schedule;
