"""What samples are worth: feature networks, metrics (`measures/`, one file each), the floor, the frontier."""
