"""A run's settings, one class for each command: frozen, and checked when they are made."""

from virnucpro.config.embed import EmbedConfig
from virnucpro.config.evaluate import EvaluateConfig
from virnucpro.config.predict import MINI_DIRECTORY, MINI_LENGTHS_BP, MODEL_TYPES, PredictConfig
from virnucpro.config.shared import (
    ATTENTIONS,
    COMPILE_SETTINGS,
    PRECISIONS,
    STDIN,
    ComputeConfig,
    FramesConfig,
    RunConfig,
    input_stem,
)
from virnucpro.config.train import TrainConfig

__all__ = [
    "ATTENTIONS",
    "COMPILE_SETTINGS",
    "MINI_DIRECTORY",
    "MINI_LENGTHS_BP",
    "MODEL_TYPES",
    "PRECISIONS",
    "STDIN",
    "ComputeConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "FramesConfig",
    "PredictConfig",
    "RunConfig",
    "TrainConfig",
    "input_stem",
]
