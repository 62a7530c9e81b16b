"""Tells which contigs and reads are viral.

The public names are loaded when first used, so that `import virnucpro` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

# Before anything else: the modules that say the version import it from here.
__version__ = "0.1.0"

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
    name: module
    for module, names in {
        "config": [name for name in __all__ if name.endswith("Config")],
        "reports.record_results": ["PredictResult"],
        "workflows.calibrate": ["CalibrateResult", "calibrate"],
        "workflows.call": ["call"],
        "workflows.embed": ["embed"],
        "workflows.evaluate": ["Evaluation", "evaluate"],
        "workflows.merge": ["merge"],
        "workflows.predict": ["predict", "predict_shard"],
        "workflows.read_run": ["FinishedRun", "read_run"],
        "workflows.report": ["report"],
        "workflows.scorer": ["ScoredRecords", "Scorer", "embed_sequences"],
        "workflows.train": ["TrainResult", "train"],
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'virnucpro' has no attribute {name!r}")
    return getattr(importlib.import_module(f"virnucpro.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
