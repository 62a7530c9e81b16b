"""What is written for people: tables, run.json, metrics and figures."""
