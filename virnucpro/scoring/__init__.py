"""From embeddings to scores, and from scores to calls of chunks and records."""
