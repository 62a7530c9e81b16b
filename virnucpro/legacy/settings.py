"""The fork's YAML file of settings, and which of its keys still mean something."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from virnucpro.config import MODEL_TYPES, PredictConfig
from virnucpro.errors import UsageError
from virnucpro.runtime.environment import reads_settings_first

logger = logging.getLogger(__name__)


class _Key(NamedTuple):
    """What a key of the fork's YAML means: a field of PredictConfig, or nothing any more."""

    field: str | None
    types: tuple[type, ...] = (object,)


_KEYS = {
    "prediction.sequences_per_file": _Key("sequences_per_file", (int,)),
    "prediction.default_model_type": _Key("model_type", (str, int)),
    "prediction.models.300": _Key("model_path", (str,)),
    "prediction.models.500": _Key("model_path", (str,)),
    "device.default": _Key("device", (str, int)),
    "features.dnabert.model_name": _Key("dna_weights", (str,)),
    "features.dnabert.batch_size": _Key("dna_batch_tokens", (int,)),
    "features.esm.model_name": _Key("protein_weights", (str,)),
    "features.esm.toks_per_batch": _Key("protein_batch_tokens", (int,)),
    "files.auto_cleanup": _Key("keep_intermediate", (bool,)),
} | dict.fromkeys(
    (
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
    ),
    _Key(None),
)
_TYPE_NAMES = {int: "a whole number", str: "text", bool: "true or false"}
_SECTIONS = {name[: dot.start()] for name in _KEYS for dot in re.finditer(r"\.", name)}


def read_settings(path: Path, model_type: str | None = None) -> dict[str, Any]:
    """Return the fields of `PredictConfig` that the fork's YAML file at `path` sets.

    Keys that no longer have a meaning are accepted, and named in one warning. A key without a value
    is as good as absent.

    Args:
        path: The file; docs/command-line.md lists its keys.
        model_type: Given elsewhere, and stronger: it picks the model among `prediction.models`.

    Raises:
        UsageError: The file cannot be read, or has an unknown key or a value of a wrong type.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        found = list(_walk(path, loader, root)) if root is not None else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as YAML ({reason})") from error
    unused = [name for name, _ in found if _KEYS[name].field is None and name != "version"]
    if unused and reads_settings_first():
        logger.warning(
            "%s: these keys no longer have a meaning and are ignored: %s", path, ", ".join(unused)
        )
    return _make_fields({name: value for name, value in found if value is not None}, model_type)


def _walk(
    path: Path, loader: yaml.SafeLoader, section: yaml.Node, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of all known keys below `section`."""
    if not isinstance(section, yaml.MappingNode):
        where = f"{path}, line {section.start_mark.line + 1}"
        raise UsageError(f"{where}: found {section.value!r}, wanted `key: value` lines")
    for key_node, node in section.value:
        name = f"{prefix}{key_node.value}"
        where = f"{path}, line {key_node.start_mark.line + 1}"
        if name in _SECTIONS:
            if node.tag != "tag:yaml.org,2002:null":
                yield from _walk(path, loader, node, f"{name}.")
        elif name in _KEYS:
            value = loader.construct_object(node, deep=True)
            _check_type(where, name, value)
            yield name, value
        else:
            raise UsageError(f"{where}: unknown key {name!r}{_suggest_key(name)}")


def _check_type(where: str, name: str, value: Any) -> None:
    types = _KEYS[name].types
    # bool is a kind of int in Python, but not here.
    if value is None or types == (object,) or type(value) in types:
        return
    wanted = " or ".join(_TYPE_NAMES[kind] for kind in types)
    raise UsageError(f"{where}: {name} is {value!r}, wanted {wanted}")


def _suggest_key(name: str) -> str:
    known = sorted(_KEYS.keys() | _SECTIONS)
    # A key may also have been put into another section.
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1) or [
        other for other in known if other.rpartition(".")[2] == last
    ]
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _make_fields(values: dict[str, Any], model_type: str | None) -> dict[str, Any]:
    model_type = model_type or str(values.get("prediction.default_model_type", "500"))
    other_models = {f"prediction.models.{other}" for other in MODEL_TYPES if other != model_type}
    fields = {
        field: value
        for name, value in values.items()
        if name not in other_models and (field := _KEYS[name].field) is not None
    }
    for name in ("model_type", "device"):
        if name in fields:
            fields[name] = str(fields[name])
    if "keep_intermediate" in fields:
        fields["keep_intermediate"] = not fields["keep_intermediate"]
    if PredictConfig.dna_weights.startswith(f"{fields.get('dna_weights')}@"):
        fields["dna_weights"] = PredictConfig.dna_weights
    if re.fullmatch(r"esm2_t\d+_\w+_UR50D", fields.get("protein_weights", "")):
        fields["protein_weights"] = f"facebook/{fields['protein_weights']}"
    return fields
