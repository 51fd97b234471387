DROP TABLE medianest.secret;
