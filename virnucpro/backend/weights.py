"""Finding, digesting and safely reading files of model weights, for backends and classifiers.

Nothing here executes anything from a file: pickles go through torch's weights-only loader with an
allow-list, and safetensors hold no code. torch and huggingface_hub are imported when called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnucpro.errors import WeightsError, first_line, on_one_line

if TYPE_CHECKING:
    import torch

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def locate_weights(location: str, patterns: Sequence[str]) -> Path:
    """Return the local path of `location`, downloading it from the hub if it is a hub id.

    Args:
        location: A file, a directory, or `owner/name[@revision]` on the Hugging Face hub.
        patterns: The files to fetch from the hub, as globs.

    Raises:
        WeightsError: `location` is neither there nor to be downloaded.
    """
    path = Path(location)
    with contextlib.suppress(RuntimeError):  # no such user: taken as it stands
        path = path.expanduser()
    if path.exists():
        return path
    hub_id = HUB_ID.fullmatch(location)
    if hub_id is None:
        raise WeightsError(
            f"{location}: no such file or directory, and not a hub id (owner/name[@revision])"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id["repo"], revision=hub_id["revision"], allow_patterns=list(patterns)
            )
        )
    except Exception as error:  # its releases let errors of three HTTP libraries through
        raise WeightsError(
            f"{location}: no such file or directory here, and the Hugging Face hub did not give it "
            f"({on_one_line(error)}); give a local path, or check the id and the network"
        ) from error


def digest_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of one file, or of the names and SHA-256s of several, as `sha256:HEX`.

    The same bytes under the same names give the same digest wherever they lie.

    Raises:
        WeightsError: A file cannot be read.
    """
    digests = []
    for path in sorted(paths, key=lambda path: path.name):
        try:
            with path.open("rb") as file:
                digests.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error})") from error
    if len(digests) == 1:
        return f"sha256:{digests[0][1]}"
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        WeightsError: The file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def find_weight_files(directory: Path) -> list[Path]:
    """Return the files that hold the tensors of a transformers-style directory.

    Safetensors are preferred to pickles, and a sharded checkpoint's index names its files.

    Raises:
        WeightsError: None of the known names is there, or an index names a missing file.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _find_shards(index)
    raise WeightsError(
        f"{directory}: holds neither model.safetensors nor pytorch_model.bin (nor an index of them)"
    )


def _find_shards(index: Path) -> list[Path]:
    """Return the files that `index` names; it is untrusted and may name none but its neighbours."""
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names:
        raise WeightsError(f"{index}: has no weight_map that names files")
    for name in names:
        is_plain = isinstance(name, str) and Path(name).name == name
        if not is_plain or not (index.parent / name).is_file():
            raise WeightsError(f"{index}: names {name!r}, and no such file is beside it")
    return [index.parent / name for name in sorted(set(names))]


def read_tensors(path: Path, safe_globals: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
    """Return the state dict in one weights file, memory-mapped on the CPU.

    Raises:
        WeightsError: The file is damaged, holds more than tensors, or would run code on loading.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:  # a damaged header makes it raise almost anything
            raise WeightsError(
                f"{path}: not a readable safetensors file ({first_line(error)})"
            ) from error
    value = read_pickle(path, safe_globals)
    import torch

    if not isinstance(value, Mapping):
        raise WeightsError(f"{path}: a plain state dict was expected, found {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"{path}: a plain state dict was expected, found a dict where {name!r} is a "
                f"{type(tensor).__name__}"
            )
    check_sizes(path, value)
    return dict(value)


def check_sizes(path: Path, tensors: Mapping[str, Any]) -> None:
    """Let the tensors of `path` pass only if the file has room for each; some repeat one number.

    Raises:
        WeightsError: Copying one of them would take more memory than the file takes on disk.
    """
    num_bytes = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > num_bytes:
            raise WeightsError(
                f"{path}: refused, because {name} claims the shape {tuple(tensor.shape)}, for "
                f"which a file of {num_bytes:,} bytes has no room"
            )


def read_pickle(path: Path, safe_globals: Sequence[Any] = ()) -> Any:
    """Return what `torch.save` wrote to `path`, if it is made of tensors and plain containers.

    Args:
        path: A `.pt`, `.pth` or `.bin` file.
        safe_globals: Classes allowed besides torch's own list, as for
            `torch.serialization.safe_globals`.

    Raises:
        WeightsError: The file is damaged, or names anything that is not allowed; nothing of it
            was executed.
    """
    import pickle

    import torch

    check_torch_zip(path)
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" It names {found[1].rstrip('.')}." if found else ""
        raise WeightsError(
            f"{path}: refused, because loading it could run code or it is damaged.{what} Only "
            "tensors and plain containers are read from pickles; save it as safetensors or as a "
            "state dict."
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise WeightsError(
            f"{path}: cannot be read as a PyTorch file ({first_line(error)})"
        ) from error


def check_torch_zip(path: Path) -> None:
    """Let a file pass only if it is an archive as `torch.save` makes them since PyTorch 1.6.

    These are never compressed: what is could fill any memory.

    Raises:
        WeightsError: It is no zip archive, or one that is compressed or claims more than its size.
    """
    try:
        num_bytes = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged directory makes it raise almost anything
        raise WeightsError(
            f"{path}: refused, because it is no whole zip archive ({first_line(error)}), which "
            "torch.save writes since PyTorch 1.6; it is damaged, or older: then load it where you "
            "trust it, and save it again"
        ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(
            f"{path}: refused, because it is a compressed zip archive, which torch.save never "
            "writes and which could fill the memory"
        )
    if sum(member.file_size for member in members) > num_bytes:
        raise WeightsError(
            f"{path}: refused, because it claims to hold more than its {num_bytes:,} bytes"
        )
