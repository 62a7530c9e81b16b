"""Finding and safely reading files of model weights, for backends and classifiers.

Nothing from a file is ever executed: torch's weights-only loader reads pickles with a list of
allowed classes, and safetensors hold no code. torch and huggingface_hub are imported when needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnucpro.backend.contents import (
    ADAPTER,
    explain_directory,
    explain_file,
    explain_hub_cache,
    explain_no_weights,
    explain_no_zip,
)
from virnucpro.backend.digests import digest_files as digest_files
from virnucpro.backend.places import find_model
from virnucpro.backend.tensor_names import with_new_names
from virnucpro.backend.tensor_names import without_wrappers as without_wrappers
from virnucpro.backend.tensors import check_state_dict
from virnucpro.errors import WeightsError, brief, first_line, is_denied, on_one_line

if TYPE_CHECKING:
    import torch

_HUB_SECONDS = 4

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def locate_weights(location: str, patterns: Sequence[str]) -> Path:
    """Return the local path of `location`, downloading it from the hub if it is a hub id.

    Files that `virnucpro models download --to` has fetched are preferred to the hub and its cache.

    Args:
        location: A file, a directory, or `owner/name[@revision]` on the Hugging Face hub.
        patterns: The files to fetch from the hub, as globs.

    Raises:
        WeightsError: `location` does not exist and cannot be downloaded, or is a file that holds no
            weights.
    """
    path = Path(location)
    # `~name` of an unknown user is an ordinary name.
    with contextlib.suppress(RuntimeError):
        path = path.expanduser()
    # A path that exists wins over a hub id of the same spelling.
    if path.exists():
        mistake = explain_hub_cache(path) or explain_no_weights(path)
        if mistake is not None:
            raise WeightsError(f"{path}: {mistake}; wanted the weights of a model")
        return path
    if HUB_ID.fullmatch(location) is None:
        raise WeightsError(
            f"{location}: no such file or directory, and not a hub id (owner/name[@revision]) or "
            "the name of a model that `virnucpro models list` shows"
        )
    found = find_model(location)
    return found if found is not None else fetch_snapshot(location, patterns)


def find_download(location: str) -> Path | None:
    """Return where `location` was downloaded to, without asking the hub; None if it was not.

    Args:
        location: `owner/name[@revision]`, or the name of a file among the downloaded models.
    """
    found = find_model(location)
    repository, _, revision = location.partition("@")
    if found is not None or HUB_ID.fullmatch(location) is None:
        return found
    # Not by the hub's own function, whose import takes longer than a small command.
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    try:
        snapshot = cache / "snapshots" / (revision or (cache / "refs/main").read_text())
        find_weight_files(snapshot)
    except (OSError, WeightsError):
        return None
    return snapshot


def fetch_snapshot(
    location: str, patterns: Sequence[str], directory: Path | None = None, *, anew: bool = False
) -> Path:
    """Return the directory with the files of a hub id, after downloading those that are missing.

    Args:
        location: `owner/name[@revision]`.
        patterns: The files to fetch, as globs.
        directory: Where the files go; None for the hub's own cache.
        anew: Whether to download also what is there.

    Raises:
        WeightsError: The hub does not give them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    drop_hub_handler()
    repository, _, revision = location.partition("@")
    obstacle = _find_obstacle_to_hub()

    def fetch(ignored: Sequence[str]) -> Path:
        if obstacle is not None and directory is not None:
            # Nothing tells whether all of it is there.
            raise LocalEntryNotFoundError(obstacle)
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                local_dir=directory,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
                force_download=anew,
                # Otherwise the hub's package tries for half a minute, with a warning each time.
                local_files_only=obstacle is not None,
            )
        )

    try:
        # Many repositories hold the same tensors in both formats.
        # Safetensors first, because they hold no code.
        path = fetch(["pytorch_model*.bin*"])
        return path if any(path.glob("model*.safetensors")) else fetch([])
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{location}: no such file or directory, the hub's cache (HF_HOME) lacks it or "
            "files of it, and the Hugging Face hub cannot be reached "
            f"({obstacle or on_one_line(error)}); give a local path, or try again with a network. "
            "`virnucpro models download --to` fetches models for a machine without one"
        ) from error
    # The releases of huggingface_hub raise errors of three HTTP libraries.
    except Exception as error:
        if is_denied(error):
            raise WeightsError(
                f"{location}: cannot be downloaded, because there is no permission for "
                f"{getattr(error, 'filename', None)}; name a directory where you may write, with "
                "HF_HOME or with `virnucpro models download --to`"
            ) from error
        raise WeightsError(
            f"{location}: no such file or directory here, and the Hugging Face hub did not give it "
            f"({on_one_line(error)}); give a local path, or check the id and the network"
        ) from error


def drop_hub_handler() -> None:
    """Leave the messages of the hub's package to our handlers; its own would say them again."""
    logging.getLogger("huggingface_hub").handlers.clear()


def _find_obstacle_to_hub() -> str | None:
    """Return why the hub cannot be reached, within seconds; None if it answers."""
    from huggingface_hub import constants, get_session

    # The thread below replaces this if the hub answers in time.
    obstacles = [f"no answer within {_HUB_SECONDS} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
            obstacles.clear()
        except Exception as error:
            obstacles[:] = [first_line(error)]

    # Looking up the name of the hub has no limit of its own, so it is not waited for.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_SECONDS)
    return next(iter(obstacles), None)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        WeightsError: The file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path.parent}: lacks {path.name}{explain_directory(path.parent)}; give a directory "
            "with all files of the model"
        ) from error
    except (OSError, RecursionError, ValueError) as error:
        kind = explain_file(path) if path.is_file() else ""
        raise WeightsError(f"{path}: cannot be read as JSON ({first_line(error)}){kind}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def get_size(path: Path, fields: Mapping[str, Any], name: str) -> int:
    """Return one of a model's sizes among the settings that were read from `path`.

    Raises:
        WeightsError: The size is missing, or not a positive whole number.
    """
    value = fields.get(name)
    # Not isinstance: `True` is an int for Python.
    if type(value) is not int or value < 1:
        raise WeightsError(f"{path}: {name} should be a positive number, found {brief(value)}")
    return value


def find_weight_files(directory: Path) -> list[Path]:
    """Return the files that hold the tensors of a transformers-style directory.

    Safetensors are preferred to pickles. If the weights are in several files, an index names them.

    Raises:
        WeightsError: The directory has none of these files, or an index names a missing file.
    """
    # In this order, because safetensors hold no code.
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            break
    else:
        raise WeightsError(
            f"{directory}: holds neither model.safetensors nor pytorch_model.bin (nor an index of "
            f"them){explain_directory(directory)}"
        )
    weight_map = read_json(index).get("weight_map")
    # The index names a file once for each of its tensors.
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names:
        raise WeightsError(f"{index}: has no weight_map that names files")
    for name in names:
        # The index is untrusted: it must not make us read a file of another directory.
        is_plain = isinstance(name, str) and Path(name).name == name
        if not is_plain or not (directory / name).is_file():
            raise WeightsError(
                f"{index}: names {brief(name)}, but this file is not in the same directory"
            )
    return [directory / name for name in sorted(set(names))]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in one weights file, memory-mapped on the CPU.

    Names are without the prefix of DistributedDataParallel or torch.compile, and
    layer norms have `weight` and `bias`, not the old names `gamma` and `beta`.

    Raises:
        WeightsError: The file is damaged, holds more than tensors, or would run code on loading.
    """
    tensors = with_new_names(path, without_wrappers(_read_state_dict(path)))
    # Its tensors alone are no model. Without this, the message would list what is missing.
    if any(".lora_" in name for name in tensors):
        raise WeightsError(f"{path}: holds {ADAPTER}")
    return tensors


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        # With a damaged header it raises many kinds of errors.
        except Exception as error:
            raise WeightsError(
                f"{path}: not a readable safetensors file ({first_line(error)}){explain_file(path)}"
            ) from error
    return check_state_dict(path, read_pickle(path))


def read_pickle(path: Path, safe_globals: Sequence[Any] = ()) -> Any:
    """Return what `torch.save` wrote to `path`, if it consists of tensors and plain containers.

    Args:
        path: A `.pt`, `.pth` or `.bin` file.
        safe_globals: Classes to allow besides torch's own list, as for
            `torch.serialization.safe_globals`.

    Raises:
        WeightsError: The file is damaged, or names a class that is not allowed. Nothing of it was
            executed.
    """
    import pickle

    import torch

    # Before torch sees it: a zip that claims too much could fill the memory.
    check_torch_zip(path)
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            # Mapped: all processes share weights of 12 GB, and read only what they use.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" It names {found[1].rstrip('.')}." if found else ""
        raise WeightsError(
            f"{path}: refused, because it is damaged, or loading it could run code.{what} Only "
            "tensors and plain containers are read from pickles; save it as safetensors or as a "
            "state dict."
        ) from error
    # With a damaged file torch raises many kinds of errors.
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be read as a PyTorch file ({first_line(error)})"
        ) from error


def check_torch_zip(path: Path) -> None:
    """Check that a file is a zip archive like those of `torch.save` since PyTorch 1.6.

    These are never compressed. A compressed archive could fill the memory.

    Raises:
        WeightsError: It is not a zip archive, it is compressed, or it claims more than its size.
    """
    try:
        num_bytes = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    # With a damaged directory it raises many kinds of errors.
    except Exception as error:
        raise WeightsError(
            f"{path}: refused, because it is not a whole zip archive ({first_line(error)}), which "
            f"torch.save writes since PyTorch 1.6{explain_no_zip(path)}"
        ) from error
    if not any(member.filename.rpartition("/")[2] == "data.pkl" for member in members):
        raise WeightsError(
            f"{path}: is a zip archive, but not one of torch.save (it has no data.pkl); unpack it, "
            "and give a file or directory in it"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(
            f"{path}: refused, because it is a compressed zip archive, which torch.save never "
            "writes and which could fill the memory"
        )
    # Members may overlap in a hostile archive, so that a small file unpacks to any size.
    if sum(member.file_size for member in members) > num_bytes:
        raise WeightsError(
            f"{path}: refused, because it claims to hold more than its {num_bytes:,} bytes"
        )
