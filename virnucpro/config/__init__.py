"""The settings of each command, each stated once: frozen, and checked when they are made."""

from collections.abc import Mapping

from virnucpro.config.calls import DEFAULT_THRESHOLD, PRESETS, CallConfig, CallsConfig
from virnucpro.config.embed import EmbedConfig
from virnucpro.config.evaluate import CalibrateConfig, EvaluateConfig
from virnucpro.config.export import ExportConfig
from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.config.measure import BenchmarkConfig, ProfileConfig
from virnucpro.config.merge import MergeConfig
from virnucpro.config.migrate import MigrateConfig
from virnucpro.config.models import (
    DownloadModelsConfig,
    ListModelsConfig,
    ModelConfig,
    VerifyModelsConfig,
)
from virnucpro.config.options import GROUPS, Config, Option, options_of
from virnucpro.config.predict import (
    MINI_LENGTHS_BP,
    MODEL_TYPES,
    CheckPrecisionConfig,
    PredictConfig,
)
from virnucpro.config.published import MINI_DIRECTORY, PUBLISHED, PublishedModel
from virnucpro.config.shared import (
    STDIN,
    ComputeConfig,
    DeviceConfig,
    FramesConfig,
    LaunchConfig,
    ProgressConfig,
    RunConfig,
    SummaryConfig,
    input_stem,
)
from virnucpro.config.train import TrainConfig
from virnucpro.config.utilities import (
    BackendsConfig,
    DoctorConfig,
    FrameTableConfig,
    GenerateConfigConfig,
    MonitorConfig,
    ReportConfig,
    ShowCheckpointsConfig,
    ValidateCheckpointsConfig,
    ValidateConfig,
    VerifyCheckpointsConfig,
)

# In the order of `--help`: what most people need comes first.
COMMANDS: Mapping[str, tuple[type[Config], ...]] = {
    "predict": (PredictConfig, LaunchConfig, SummaryConfig),
    "frames": (FrameTableConfig,),
    "embed": (EmbedConfig, LaunchConfig),
    "train": (TrainConfig, LaunchConfig),
    "merge": (MergeConfig, SummaryConfig),
    "call": (CallConfig, SummaryConfig),
    "evaluate": (EvaluateConfig,),
    "report": (ReportConfig,),
    "calibrate": (CalibrateConfig,),
    "migrate": (MigrateConfig,),
    "export": (ExportConfig,),
    "check-precision": (CheckPrecisionConfig, ProgressConfig),
    "checkpoints show": (ShowCheckpointsConfig,),
    "checkpoints verify": (VerifyCheckpointsConfig,),
    "models list": (ListModelsConfig,),
    "models download": (DownloadModelsConfig,),
    "models verify": (VerifyModelsConfig,),
    "models path": (ModelConfig,),
    "models remove": (ModelConfig,),
    "monitor": (MonitorConfig,),
    "profile": (ProfileConfig,),
    "benchmark": (BenchmarkConfig,),
    "backends": (BackendsConfig,),
    "doctor": (DoctorConfig,),
    "utils validate": (ValidateConfig,),
    "utils generate-config": (GenerateConfigConfig,),
    "utils validate-checkpoints": (ValidateCheckpointsConfig,),
}
"""The classes of settings of each command that has some."""


def command_options(command: str) -> dict[str, Option]:
    """Return all options of a command by name, in the order of their groups."""
    options = [one for config in COMMANDS[command] for one in options_of(config).values()]
    return {one.name: one for one in sorted(options, key=lambda one: GROUPS.index(one.group))}


__all__ = [
    "COMMANDS",
    "DEFAULT_THRESHOLD",
    "MINI_DIRECTORY",
    "MINI_LENGTHS_BP",
    "MODEL_TYPES",
    "OPEN_RULE",
    "PRESETS",
    "PUBLISHED",
    "STDIN",
    "BackendsConfig",
    "BenchmarkConfig",
    "CalibrateConfig",
    "CallConfig",
    "CallsConfig",
    "CheckPrecisionConfig",
    "ComputeConfig",
    "Config",
    "DeviceConfig",
    "DoctorConfig",
    "DownloadModelsConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FrameRule",
    "FrameTableConfig",
    "FramesConfig",
    "GenerateConfigConfig",
    "LaunchConfig",
    "ListModelsConfig",
    "MergeConfig",
    "MigrateConfig",
    "ModelConfig",
    "MonitorConfig",
    "Option",
    "PredictConfig",
    "ProfileConfig",
    "ProgressConfig",
    "PublishedModel",
    "ReportConfig",
    "RunConfig",
    "ShowCheckpointsConfig",
    "SummaryConfig",
    "TrainConfig",
    "ValidateCheckpointsConfig",
    "ValidateConfig",
    "VerifyCheckpointsConfig",
    "VerifyModelsConfig",
    "command_options",
    "input_stem",
    "options_of",
]
