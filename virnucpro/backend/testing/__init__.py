"""For authors of backends: the contract that every backend keeps, and a toy as an example.

The names are loaded when first used: the contract needs pytest and torch, the toy neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.backend.testing.contract import BackendContract
    from virnucpro.backend.testing.toy import ToyBackend
    from virnucpro.backend.testing.toy.model import write_toy_weights

__all__ = ["BackendContract", "ToyBackend", "write_toy_weights"]

_HOMES = {
    "BackendContract": "virnucpro.backend.testing.contract",
    "ToyBackend": "virnucpro.backend.testing.toy",
    "write_toy_weights": "virnucpro.backend.testing.toy.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'virnucpro.backend.testing' has no attribute {name!r}")
    if name == "BackendContract":
        try:
            import pytest
        except ImportError as error:
            raise ImportError(
                "virnucpro.backend.testing.BackendContract is a pytest suite, and pytest is not "
                "installed: pip install pytest"
            ) from error
        # pytest rewrites only test files and what is registered: then a failure shows the values.
        pytest.register_assert_rewrite(_HOMES[name], "virnucpro.backend.testing.trainable_contract")
    return getattr(importlib.import_module(_HOMES[name]), name)
