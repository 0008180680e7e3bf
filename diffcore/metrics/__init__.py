"""What samples are worth: feature networks, distances, likelihood, the frontier."""
