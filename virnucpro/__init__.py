"""Tells which short contigs and reads are viral.

The public names are loaded when first used, so that `import virnucpro` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from virnucpro.version import __version__ as __version__

if TYPE_CHECKING:
    from virnucpro.config import (
        CalibrateConfig,
        CallConfig,
        EmbedConfig,
        EvaluateConfig,
        MergeConfig,
        PredictConfig,
        ReportConfig,
        TrainConfig,
    )
    from virnucpro.reports.record_results import PredictResult
    from virnucpro.workflows.calibrate import CalibrateResult, calibrate
    from virnucpro.workflows.call import call
    from virnucpro.workflows.embed import embed
    from virnucpro.workflows.evaluate import Evaluation, evaluate
    from virnucpro.workflows.merge import merge
    from virnucpro.workflows.predict import predict, predict_shard
    from virnucpro.workflows.read_run import FinishedRun, read_run
    from virnucpro.workflows.report import report
    from virnucpro.workflows.scorer import ScoredRecords, Scorer, embed_sequences
    from virnucpro.workflows.train import TrainResult, train

__all__ = [
    "CalibrateConfig",
    "CalibrateResult",
    "CallConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "Evaluation",
    "FinishedRun",
    "MergeConfig",
    "PredictConfig",
    "PredictResult",
    "ReportConfig",
    "ScoredRecords",
    "Scorer",
    "TrainConfig",
    "TrainResult",
    "calibrate",
    "call",
    "embed",
    "embed_sequences",
    "evaluate",
    "merge",
    "predict",
    "predict_shard",
    "read_run",
    "report",
    "train",
]

_HOMES = {
    "CalibrateConfig": "virnucpro.config",
    "CalibrateResult": "virnucpro.workflows.calibrate",
    "CallConfig": "virnucpro.config",
    "EmbedConfig": "virnucpro.config",
    "EvaluateConfig": "virnucpro.config",
    "Evaluation": "virnucpro.workflows.evaluate",
    "FinishedRun": "virnucpro.workflows.read_run",
    "MergeConfig": "virnucpro.config",
    "PredictConfig": "virnucpro.config",
    "PredictResult": "virnucpro.reports.record_results",
    "ReportConfig": "virnucpro.config",
    "ScoredRecords": "virnucpro.workflows.scorer",
    "Scorer": "virnucpro.workflows.scorer",
    "TrainConfig": "virnucpro.config",
    "TrainResult": "virnucpro.workflows.train",
    "calibrate": "virnucpro.workflows.calibrate",
    "call": "virnucpro.workflows.call",
    "embed": "virnucpro.workflows.embed",
    "embed_sequences": "virnucpro.workflows.scorer",
    "evaluate": "virnucpro.workflows.evaluate",
    "merge": "virnucpro.workflows.merge",
    "predict": "virnucpro.workflows.predict",
    "predict_shard": "virnucpro.workflows.predict",
    "read_run": "virnucpro.workflows.read_run",
    "report": "virnucpro.workflows.report",
    "train": "virnucpro.workflows.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'virnucpro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
