"""How many tokens a batch has: in general, and what `virnucpro profile` found best on a device.

The latter lie in a small file. They decide how fast a run is and nothing else, so a file that
cannot be used is passed over.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.backend.places import user_cache_dir
from virnucpro.checkpoints.whole_files import write_json
from virnucpro.errors import OutputError
from virnucpro.runtime.locks import in_turn

logger = logging.getLogger(__name__)

_PATH_VARIABLE = "VIRNUCPRO_BUDGETS"
_FORMAT = "virnucpro-budgets"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class BudgetKey:
    """What the best budget depends on.

    Attributes:
        device: The GPU's model, or `cpu`.
        backend: The backend's name.
        embedding_dim: Tells the sizes of a backend's models from each other; others of the same
            size, trained otherwise, are as fast.
        precision: What is computed in.
        attention: As in ComputeConfig.
    """

    device: str
    backend: str
    embedding_dim: int
    precision: str
    attention: str


def default_batch_tokens(device_type: str, precision: str) -> int:
    """Return what a batch has where nothing is stored and the memory allows it."""
    # Throughput hardly changes from 8,000 tokens on an H200.
    if device_type == "cuda":
        return 32_768
    # Small batches stay in the cache of a CPU, where numbers in half precision take half as much.
    return 2_048 if precision == "fp32" else 4_096


def budgets_path() -> Path:
    """Return where budgets are kept: by $VIRNUCPRO_BUDGETS, or else below the user's cache.

    Raises:
        RuntimeError: The user has no home directory.
    """
    given = os.environ.get(_PATH_VARIABLE)
    if given:
        return Path(given)
    return user_cache_dir() / "budgets.json"


def read_budget(key: BudgetKey) -> int | None:
    """Return the stored tokens of a batch, or None where there are none for `key`.

    A file that is damaged or of something else is passed over with a warning.
    """
    entry = _find_entry(key)
    return None if entry is None else int(entry["batch_tokens"])


def read_speed(key: BudgetKey) -> float | None:
    """Return the stored tokens/s, or None where there are none for `key`."""
    # Files of earlier versions have no speed.
    speed = (_find_entry(key) or {}).get("tokens_per_s")
    return float(speed) if isinstance(speed, int | float) and speed > 0 else None


def _find_entry(key: BudgetKey) -> dict[str, Any] | None:
    try:
        path = budgets_path()
    # Without a home directory, nothing can have been stored.
    except RuntimeError:
        return None
    return next((entry for entry in _read_entries(path) if _is_of(entry, key)), None)


def _is_of(entry: dict[str, Any], key: BudgetKey) -> bool:
    # By all of the key: on another card or in another precision, another budget is best.
    return entry.items() >= dataclasses.asdict(key).items()


def store_budget(key: BudgetKey, batch_tokens: int, tokens_per_s: float | None = None) -> Path:
    """Keep the tokens of a batch for later runs, and the speed for `predict --dry-run`.

    They take the place of what is stored for `key`.

    Returns:
        The file, which is replaced as a whole, so that a run never reads half of it.

    Raises:
        OutputError: The file cannot be written, or the user has no home directory.
    """
    try:
        path = budgets_path()
    except RuntimeError as error:
        raise OutputError(
            "the number of tokens in a batch cannot be stored, because you have no home "
            f"directory; name a file in {_PATH_VARIABLE}, or set HOME"
        ) from error
    entry = {**dataclasses.asdict(key), "batch_tokens": batch_tokens, "tokens_per_s": tokens_per_s}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two models may be measured at the same time, and none of the two budgets must get lost.
        with in_turn(path.with_name(f".{path.name}.lock")):
            others = [one for one in _read_entries(path) if not _is_of(one, key)]
            document = {
                "format": _FORMAT,
                "format_version": _FORMAT_VERSION,
                "budgets": [*others, entry],
            }
            write_json(path, document)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); name another file in {_PATH_VARIABLE}"
        ) from error
    return path


def _read_entries(path: Path) -> list[dict[str, Any]]:
    """Return the stored budgets with what they belong to; none of a file that is no use."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    # Deeply nested JSON raises RecursionError. The file only makes runs faster: it never ends one.
    except (OSError, RecursionError, ValueError) as error:
        return _pass_over(path, str(error))
    header = (_FORMAT, _FORMAT_VERSION)
    if not isinstance(document, dict) or header != (
        document.get("format"),
        document.get("format_version"),
    ):
        return _pass_over(path, f"it is not a {_FORMAT} file of version {_FORMAT_VERSION}")
    entries = document.get("budgets")
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        return _pass_over(path, "its budgets are not whole numbers of at least 1")
    return entries


def _is_entry(entry: object) -> bool:
    tokens = entry.get("batch_tokens") if isinstance(entry, dict) else None
    # Not isinstance: `True` is an int for Python.
    return type(tokens) is int and tokens >= 1


def _pass_over(path: Path, reason: str) -> list[dict[str, Any]]:
    logger.warning(
        "%s: ignored (%s); batch sizes are chosen without it, and `virnucpro profile` writes it "
        "anew",
        path,
        reason,
    )
    return []
