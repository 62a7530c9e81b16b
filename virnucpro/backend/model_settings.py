"""The settings of a model that change its numbers: a backend follows them, or refuses them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virnucpro.errors import WeightsError, brief

_NEVER: dict[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": {},
}
"""No backend here computes with other values of these settings of transformers."""

DEFAULT_ROPE_THETA = 10000.0


def check_settings(path: Path, fields: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse settings of a config.json that a backend would have to ignore.

    Args:
        path: The file that `fields` were read from.
        fields: The settings; a setting that is missing or null is left to the backend.
        wanted: The one value of each setting that the backend computes with.

    Raises:
        WeightsError: A setting has another value.
    """
    for name, value in {**_NEVER, **wanted}.items():
        found = fields.get(name)
        # transformers writes only the settings that differ from its defaults.
        if found is not None and found != value:
            raise WeightsError(
                f"{path}: {name} is {brief(found)}, which changes the numbers of the model, and "
                f"this backend computes with {brief(value)} only; give another model, or remove "
                "the setting if it is a mistake"
            )


def get_switch(path: Path, fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a setting that is true or false.

    Raises:
        WeightsError: The setting is neither.
    """
    value = fields.get(name)
    if value is None:
        return default
    # Not by its truth: the text "false" would count as true.
    if type(value) is not bool:
        raise WeightsError(f"{path}: {name} should be true or false, found {brief(value)}")
    return value


def get_rope_theta(path: Path, fields: Mapping[str, Any]) -> float:
    """Return the base of rotary positions, which transformers has stored in several places.

    Raises:
        WeightsError: The base is not one number above 1, or positions are scaled.
    """
    # Up to version 4, transformers had `rope_theta` and `rope_scaling`. Version 5 has
    # `rope_parameters`.
    found = [fields.get("rope_theta")]
    for name in ("rope_parameters", "rope_scaling"):
        nested = fields.get(name) or {}
        kind = nested.get("rope_type", nested.get("type")) if isinstance(nested, dict) else nested
        if kind not in (None, "default"):
            raise WeightsError(
                f"{path}: {name} is {brief(nested)}, which scales rotary positions, and this "
                "backend does not"
            )
        found.append(nested.get("rope_theta"))
    values = [value for value in found if value is not None] or [DEFAULT_ROPE_THETA]
    for value in values:
        # Two places may contradict each other. NaN is in no range.
        if type(value) not in (int, float) or not 1 < value < math.inf or value != values[0]:
            raise WeightsError(
                f"{path}: rope_theta should be one number above 1, found {brief(values)}"
            )
    return float(values[0])
