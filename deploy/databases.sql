-- Run by PostgreSQL's image when its data folder is made: one database for each server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
