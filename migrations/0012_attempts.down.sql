DROP TABLE medianest.attempt;
