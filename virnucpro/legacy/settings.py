"""The keys of the fork's settings file, and the settings that they stand for today."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virnucpro.config import MODEL_TYPES, PredictConfig, options_of
from virnucpro.config.settings_file import Key
from virnucpro.runtime.environment import reads_settings_first

logger = logging.getLogger(__name__)

# The keys that still mean something, and the fields of `PredictConfig` that they set.
_FIELDS = {
    "prediction.sequences_per_file": "sequences_per_file",
    "prediction.default_model_type": "model_type",
    # Two keys for one setting: the model type decides between them.
    "prediction.models.300": "model_path",
    "prediction.models.500": "model_path",
    "device.default": "device",
    "features.dnabert.model_name": "dna_weights",
    "features.dnabert.batch_size": "dna_batch_tokens",
    "features.esm.model_name": "protein_weights",
    "features.esm.toks_per_batch": "protein_batch_tokens",
    "files.auto_cleanup": "keep_intermediate",
}

_WITHOUT_MEANING = (
    "version",
    "prediction.batch_size",
    "prediction.num_workers",
    "device.fallback_to_cpu",
    "features.dnabert.trust_remote_code",
    "features.esm.truncation_seq_length",
    "features.esm.representation_layer",
    "parallelization.enabled",
    "parallelization.num_workers",
    "checkpointing.enabled",
    "checkpointing.checkpoint_dir",
    "checkpointing.keep_history",
    "files.keep_files",
    "logging.default_level",
    "logging.format",
    "logging.auto_log_file",
    "progress.enabled",
    "progress.bar_width",
    "progress.update_interval",
    "validation.warn_ambiguous_bases",
    "validation.max_ambiguous_percent",
    "validation.check_duplicate_ids",
)

FORK_KEYS: Mapping[str, Key] = {
    **{
        name: Key(name, options_of(PredictConfig)[field].convert) for name, field in _FIELDS.items()
    },
    **{name: Key(name, None) for name in _WITHOUT_MEANING},
}


def read_fork_fields(
    path: Path, found: Mapping[str, Any], model_type: str | None = None
) -> dict[str, Any]:
    """Return the fields of `PredictConfig` that the keys of the fork set.

    Names the keys that no longer have a meaning in one warning.

    Args:
        path: The settings file, for that warning.
        found: The values by key; other keys than the fork's are left out.
        model_type: The model type if another source has set it: it chooses the file among
            `prediction.models`.
    """
    # `version` sets nothing, so nobody misses its effect.
    unused = [name for name in found if name in _WITHOUT_MEANING and name != "version"]
    if unused and reads_settings_first():
        logger.warning(
            "%s: these keys no longer have a meaning and are ignored: %s", path, ", ".join(unused)
        )
    model_type = model_type or found.get("prediction.default_model_type", "500")
    # The file names a classifier for each model type. Only that of the chosen type counts.
    other_models = {f"prediction.models.{other}" for other in MODEL_TYPES if other != model_type}
    fields = {
        _FIELDS[name]: value
        for name, value in found.items()
        if name in _FIELDS and name not in other_models
    }
    if "keep_intermediate" in fields:
        # The fork's key says the opposite: whether intermediate files are removed.
        fields["keep_intermediate"] = not fields["keep_intermediate"]
    if re.fullmatch(r"esm2_t\d+_\w+_UR50D", fields.get("protein_weights", "")):
        # The fork names ESM-2 as fair-esm does. The hub has the same model under this name.
        fields["protein_weights"] = f"facebook/{fields['protein_weights']}"
    for name in ("dna_weights", "protein_weights"):
        default = getattr(PredictConfig, name)
        # The same model without a pin: take ours, which is pinned to one revision.
        if default.startswith(f"{fields.get(name)}@"):
            fields[name] = default
    return fields
