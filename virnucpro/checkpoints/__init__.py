"""Checkpoints: where a run keeps its files, what is in them, and how old ones come along."""
