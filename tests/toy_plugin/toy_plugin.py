"""Brings the toy backend that virnucpro ships for tests, as a stranger's package would."""

from virnucpro.backend.testing.toy import backend

__all__ = ["backend"]
