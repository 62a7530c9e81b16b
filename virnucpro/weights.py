"""Finding, digesting and safely reading files of model weights, for backends and classifiers.

Nothing here executes anything from a file: pickles go through torch's weights-only loader with an
allow-list, and safetensors hold no code. torch and huggingface_hub are imported when called.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnucpro.errors import WeightsError

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
    path = Path(location).expanduser()
    if path.exists():
        return path
    hub_id = HUB_ID.fullmatch(location)
    if hub_id is None:
        raise WeightsError(
            f"{location}: no such file or directory, and not a hub id (owner/name[@revision])"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                hub_id["repo"], revision=hub_id["revision"], allow_patterns=list(patterns)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{location}: no such file or directory here, and the Hugging Face hub did not give it "
            f"({str(error).splitlines()[0]}); give a local path, or check the id and the network"
        ) from error


def digest_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of one file, or of the names and SHA-256s of several, as `sha256:HEX`.

    The same bytes under the same names give the same digest wherever they lie.
    """
    digests = []
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            digests.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
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
    except (OSError, ValueError) as error:
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
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            shards = [directory / shard for shard in names]
            # An index is untrusted: it may name nothing outside its own directory.
            bad = [s for s in names if Path(s).name != s or not (directory / s).is_file()]
            if bad or not shards:
                raise WeightsError(f"{index}: names files that are not there: {bad}")
            return shards
    raise WeightsError(
        f"{directory}: holds neither model.safetensors nor pytorch_model.bin (nor an index of them)"
    )


def read_tensors(path: Path, safe_globals: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
    """Return the state dict in one weights file, memory-mapped on the CPU.

    Raises:
        WeightsError: The file is damaged, holds more than tensors, or would run code on loading.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    value = read_pickle(path, safe_globals)
    import torch

    if not isinstance(value, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in value.values()
    ):
        raise WeightsError(f"{path}: a plain state dict was expected, found {type(value).__name__}")
    return dict(value)


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
    import zipfile

    import torch

    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        found = re.search(
            r"GLOBAL (\S+)|[Uu]nsupported (?:global|class|operand)[^\w]*(\S+)", str(error)
        )
        what = f" It names {found[1] or found[2]}." if found else ""
        raise WeightsError(
            f"{path}: refused, because loading it could run code or it is damaged.{what} Only "
            "tensors and plain containers are read from pickles; save it as safetensors or as a "
            "state dict."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as a PyTorch file ({reason})") from error
