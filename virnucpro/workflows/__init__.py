"""One story per command: `virnucpro X` is `workflows/x.py`."""
