"""Lets the site show the docstrings that `virnucpro.config` makes from the options.

The site otherwise reads the source alone, where these docstrings are one line.
"""

from __future__ import annotations

import importlib
from typing import Any

import griffe


class SettingsDocstrings(griffe.Extension):
    """Replaces the docstrings of classes of settings by those that they have at run time."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Read the docstring of one class."""
        if cls.module.path.startswith("virnucpro.config.") and cls.docstring is not None:
            made = getattr(importlib.import_module(cls.module.path), cls.name)
            cls.docstring.value = made.__doc__
