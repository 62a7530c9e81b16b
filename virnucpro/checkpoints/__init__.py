"""The files of a run: where they are, how they are written whole, and how they are read."""
