"""From a user's images to shards, and from shards to batches."""
