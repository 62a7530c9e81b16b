"""Tells which short contigs and reads are viral.

The public names are loaded when first used, so that `import virnucpro` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.config import EmbedConfig, EvaluateConfig, PredictConfig, TrainConfig
    from virnucpro.embed_records import embed
    from virnucpro.evaluation.runs import Evaluation, evaluate
    from virnucpro.pipeline import predict
    from virnucpro.reports.run_results import PredictResult
    from virnucpro.training.runs import TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "EmbedConfig",
    "EvaluateConfig",
    "Evaluation",
    "PredictConfig",
    "PredictResult",
    "TrainConfig",
    "TrainResult",
    "embed",
    "evaluate",
    "predict",
    "train",
]

_HOMES = {
    "EmbedConfig": "virnucpro.config",
    "EvaluateConfig": "virnucpro.config",
    "Evaluation": "virnucpro.evaluation.runs",
    "PredictConfig": "virnucpro.config",
    "PredictResult": "virnucpro.reports.run_results",
    "TrainConfig": "virnucpro.config",
    "TrainResult": "virnucpro.training.runs",
    "embed": "virnucpro.embed_records",
    "evaluate": "virnucpro.evaluation.runs",
    "predict": "virnucpro.pipeline",
    "train": "virnucpro.training.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'virnucpro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
