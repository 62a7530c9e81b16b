"""Tells which short contigs and reads are viral.

The public names are loaded when first used, so that `import virnucpro` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.config import EmbedConfig, PredictConfig
    from virnucpro.embed_records import embed
    from virnucpro.outputs import PredictResult
    from virnucpro.pipeline import predict

__version__ = "0.1.0"

__all__ = ["EmbedConfig", "PredictConfig", "PredictResult", "embed", "predict"]

_HOMES = {
    "EmbedConfig": "virnucpro.config",
    "PredictConfig": "virnucpro.config",
    "PredictResult": "virnucpro.outputs",
    "embed": "virnucpro.embed_records",
    "predict": "virnucpro.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'virnucpro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
