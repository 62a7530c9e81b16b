"""Sequences: reading files, cutting records into chunks and frames, and storing them on disk."""
