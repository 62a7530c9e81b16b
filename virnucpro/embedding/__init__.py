"""Turns rows of sequences into parts with their embeddings."""
