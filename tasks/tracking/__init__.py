"""MLflow: a view of what the stages wrote, and the only rooms that know it."""
