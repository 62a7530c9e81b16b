"""`virnucpro models`: the published models, downloaded, checked, found and removed.

A directory with models holds the classifiers as files, and each model of the hub in a directory
`owner/name@revision` with a file SHA256SUMS. `--to` makes such a directory, VIRNUCPRO_MODELS names
one, and `--mirror` takes models from one. Without any of them, models of the hub lie in the hub's
own cache, which other programs share.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from virnucpro.backend.digests import read_sha256
from virnucpro.backend.places import CHECKSUMS, MODELS_VARIABLE, find_model, models_dir
from virnucpro.backend.remembered import forget, get_state, read_remembered
from virnucpro.backend.weights import fetch_snapshot, find_download, find_weight_files
from virnucpro.checkpoints.whole_files import open_whole
from virnucpro.config import PUBLISHED, PublishedModel
from virnucpro.errors import UsageError, WeightsError, brief, is_denied
from virnucpro.runtime.downloads import digest_like, fetch_file
from virnucpro.runtime.locks import in_turn

logger = logging.getLogger(__name__)

# The last three are small, and other programs want them.
_PATTERNS = (
    "config.json",
    "tokenizer.json",
    "model*.safetensors*",
    "pytorch_model*.bin*",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_FILES_AT_ONCE = 4
# A plain name of a file: a list from elsewhere must not write outside the directory.
_CHECKSUM = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<file>[\w-][\w.-]*)")


@dataclass(frozen=True)
class CheckedFile:
    """A file of a model, and its digest.

    Attributes:
        path: The file.
        wanted: The digest that it should have; None if none is known.
        found: The digest that it has; None if it was not looked for.
    """

    path: Path
    wanted: str | None
    found: str | None


def find_published(model: PublishedModel) -> Path | None:
    """Return the file or the directory of a model if it is on this machine."""
    if model.ships:
        return Path(model.location)
    return find_download(model.location)


def download_model(name: str, to: Path | None = None, mirror: str | None = None) -> Path:
    """Download a model unless it is there, check it, and return its file or directory.

    Args:
        name: Of a published model.
        to: The directory for models; None for VIRNUCPRO_MODELS or the user's cache.
        mirror: A directory with models or its address; None for where the model is published.

    Raises:
        UsageError: The mirror is not there, or the user has no home directory.
        WeightsError: The model cannot be fetched, or a file of it has another digest.
    """
    model = PUBLISHED[name]
    if model.ships:
        return Path(model.location)
    # The hub's cache is shared with other programs. All other cases have a directory of ours.
    if to is None and model.url is None and mirror is None and MODELS_VARIABLE not in os.environ:
        return _fetch_from_hub(model, None)
    try:
        path = (models_dir() if to is None else to) / model.location
    except RuntimeError as error:
        raise UsageError(f"no home directory: {error}; name a directory with --to") from error
    try:
        if model.url is not None:
            source = model.url if mirror is None else _join(mirror, model.location)
            fetch_file(source, path, model.digests[model.location])
        elif not _is_whole(model, path):
            _fetch_directory(model, path, mirror)
    except OSError as error:
        if not is_denied(error):
            raise
        raise WeightsError(
            f"{error.filename}: there is no permission to write it, so {name} cannot be "
            "downloaded; name a directory where you may write with --to"
        ) from error
    return path


def _fetch_directory(model: PublishedModel, path: Path, mirror: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Jobs of an array start at the same time, and all want the same model.
    with in_turn(path.with_name(f".{path.name}.lock")):
        if _is_whole(model, path):
            return
        if mirror is not None:
            _fetch_from_mirror(model, mirror, path)
        else:
            _fetch_from_hub(model, path)


def _is_whole(model: PublishedModel, path: Path) -> bool:
    """Tell whether all files of a model of the hub are in its directory, without a network."""
    if not (path / CHECKSUMS).is_file():
        return False
    try:
        digests = _known_digests(model, path)
        _check(model, path, digests)
    # The download repairs what is damaged.
    except WeightsError:
        return False
    return bool(digests) and all((path / name).is_file() for name in digests)


def verify_model(name: str) -> list[CheckedFile]:
    """Compare every file of a model with its digest, without a network.

    Raises:
        WeightsError: The model is not here, or a file has another digest.
    """
    model = PUBLISHED[name]
    path = require_published(name)
    if model.ships:
        return []
    return _check(model, path, _known_digests(model, path))


def verify_remembered() -> list[CheckedFile]:
    """Read all files whose digests are remembered, and compare.

    Raises:
        WeightsError: A file has another digest, though the system reports no change.
    """
    checked = []
    for name, entry in read_remembered().items():
        path = Path(name)
        wanted = f"sha256:{entry['sha256']}"
        # A file that is gone or was changed since is read again by the next run.
        if not path.is_file() or get_state(path) != entry["state"]:
            continue
        found = digest_like(path, wanted)
        if found != wanted:
            forget(name)
            raise WeightsError(
                f"{path}: has the digest {found}, and an earlier run found {wanted}; the file is "
                "damaged. Replace it, and repeat what you made with it since"
            )
        checked.append(CheckedFile(path, wanted, found))
    return checked


def remove_model(name: str) -> list[Path]:
    """Remove a model from this machine, and return what was removed.

    Raises:
        UsageError: It is part of this package.
    """
    model = PUBLISHED[name]
    if model.ships:
        raise UsageError(f"{name}: is a part of virnucpro and cannot be removed alone")
    removed = []
    # A model may lie in several places, and the next one would be found again.
    while (path := find_published(model)) is not None:
        if path.is_file():
            path.unlink()
        elif path == find_model(model.location):
            shutil.rmtree(path)
        else:
            from huggingface_hub import scan_cache_dir

            # Only such models lie in the hub's cache.
            assert model.hub_id is not None
            # Revisions share files in the hub's cache. Its library knows which are still needed.
            scan_cache_dir().delete_revisions(model.hub_id[1]).execute()
        removed.append(path)
    return removed


def require_published(name: str) -> Path:
    """Return the file or the directory of a model.

    Raises:
        WeightsError: It is not on this machine.
    """
    path = find_published(PUBLISHED[name])
    if path is None:
        raise WeightsError(
            f"{name}: is not on this machine; get it with `virnucpro models download {name}`"
        )
    return path


def _fetch_from_hub(model: PublishedModel, directory: Path | None) -> Path:
    """Fetch a model from the hub into its cache or into `directory`, and check it."""
    path = fetch_snapshot(model.location, _PATTERNS, directory)
    # The hub's cache names files by their digests; a directory of the user's choice does not.
    wanted = _known_digests(model, path) if directory is None else _ask_hub(model, path)
    try:
        _check(model, path, wanted)
    except WeightsError as error:
        logger.warning("%s. It is downloaded again", error)
        # Once more, and only once: a second wrong file is no accident of the network.
        path = fetch_snapshot(model.location, _PATTERNS, directory, anew=True)
        _check(model, path, wanted)
    if directory is not None:
        _write_checksums(path)
    return path


def _ask_hub(model: PublishedModel, path: Path) -> dict[str, str]:
    """Return the digest of each file: the pinned one, or the one that the hub states."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    assert model.hub_id is not None
    repository, revision = model.hub_id
    names = [file.name for file in _list_files(path)]
    stated = HfApi().get_paths_info(repository, names, revision=revision)
    digests = {
        one.path: f"sha256:{one.lfs.sha256}" if one.lfs else f"git:{one.blob_id}"
        for one in stated
        if isinstance(one, RepoFile)
    }
    # What this package pins wins over what the hub says.
    return digests | dict(model.digests)


def _fetch_from_mirror(model: PublishedModel, mirror: str, path: Path) -> None:
    """Fetch the files that the mirror's SHA256SUMS lists, several at once."""
    source = _join(mirror, f"{model.location}/{CHECKSUMS}")
    listing = path / f"{CHECKSUMS}.part"
    # Nobody knows a digest of the list itself.
    fetch_file(source, listing, "")
    # What this package pins wins over what the mirror says.
    digests = _read_checksums(listing, source) | dict(model.digests)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        sources = [_join(mirror, f"{model.location}/{name}") for name in digests]
        paths = [path / name for name in digests]
        # A list, because `map` raises an error only when its results are read.
        list(pool.map(fetch_file, sources, paths, digests.values()))
    find_weight_files(path)
    # Last: a directory with this list counts as whole.
    listing.replace(path / CHECKSUMS)


def _join(mirror: str, name: str) -> str:
    if "://" in mirror:
        return f"{mirror.rstrip('/')}/{quote(name, safe='/@')}"
    if not Path(mirror).is_dir():
        raise UsageError(f"mirror {mirror}: wanted a directory that exists, or an address")
    return (Path(mirror).resolve() / name).as_uri()


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted({file for pattern in _PATTERNS for file in path.glob(pattern)})


def _known_digests(model: PublishedModel, path: Path) -> dict[str, str]:
    """Return the digests that are known without a network, by file."""
    digests = {}
    for file in _list_files(path):
        # The hub's cache names its files by their digests, and links to them.
        if file.is_symlink():
            name = file.readlink().name
            digests[file.name] = f"sha256:{name}" if len(name) == 64 else f"git:{name}"
    if (path / CHECKSUMS).is_file():
        digests |= _read_checksums(path / CHECKSUMS, str(path / CHECKSUMS))
    return digests | dict(model.digests)


def _check(model: PublishedModel, path: Path, digests: dict[str, str]) -> list[CheckedFile]:
    checked = []
    for file in _list_files(path):
        wanted = digests.get(file.name)
        # Without a known digest there is nothing to compare, and a large file need not be read.
        found = None if wanted is None else digest_like(file, wanted)
        if found != wanted:
            raise WeightsError(
                f"{file}: has the digest {found}, wanted {wanted}; the file is damaged. Replace it "
                f"with `virnucpro models download {model.name}`"
            )
        checked.append(CheckedFile(file, wanted, found))
    return checked


def _read_checksums(path: Path, source: str) -> dict[str, str]:
    digests = {}
    # A server may send anything, and the error quotes the line.
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        match = _CHECKSUM.fullmatch(line)
        if match is None:
            raise WeightsError(
                f"{source}, line {number}: wanted a SHA-256, two spaces and the name of a file, as "
                f"sha256sum writes them, found {brief(line)}; the directory of a mirror is made by "
                "`virnucpro models download --to`"
            )
        digests[match["file"]] = f"sha256:{match['digest']}"
    return digests


def _write_checksums(path: Path) -> None:
    with open_whole(path / CHECKSUMS) as file:
        for one in _list_files(path):
            file.write(f"{read_sha256(one)}  {one.name}\n")
