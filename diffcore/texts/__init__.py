"""What a network is told by a caption: encoders of texts, and their embeddings beside the shards."""
