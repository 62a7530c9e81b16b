"""Reads and writes the files of classifiers, and executes nothing from them.

A classifier comes in three kinds of file: the published pickle of a whole module, a state dict, and
our own safetensors, which also say what the classifier was trained for. The content of a file, not
its name, decides which kind it is. Only our own files can hold a head over chunks.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from virnucpro.backend.changes import Changes
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.backend.tensors import check_sizes
from virnucpro.backend.weights import digest_files, read_pickle
from virnucpro.checkpoints.whole_files import replace_when_whole
from virnucpro.config import OPEN_RULE, FrameRule
from virnucpro.errors import ClassifierError, WeightsError, brief
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.changes_file import name_tensors, take_changes
from virnucpro.scoring.chunk_head import ChunkHeadSizes
from virnucpro.scoring.classifier import (
    BATCH_NORM_EPS,
    CLASS_NAMES,
    ChunkClassifier,
    Classifier,
    ClassifierMetadata,
    FrameClassifier,
)
from virnucpro.scoring.region_model import RegionModel

FORMAT_VERSION = 4
"""Version 2 adds the identities of the weights, the calibration and the origin to version 1.
Version 3 adds the frame rule, the kind of head and the threshold; a file of version 2 means `open`
and `frame`, without a threshold. `regions` came later and may be left out.
Version 4 adds tensors that change the encoders; a file without such tensors has a lower version."""

# Of the frame rule in a file: each chunk takes memory for so many.
_MAX_STRETCHES = 256

# One key that holds JSON: safetensors writes several keys in a random order, which would give the
# same classifier another digest each time.
_METADATA_KEY = "virnucpro_classifier"


class ClassifierContent(NamedTuple):
    """What the file of a classifier holds, in the order of the arguments of `save_classifier`.

    Attributes:
        state: The tensors of the classifier itself.
        metadata: What it was trained for; None if the file does not say.
        changes: What it changes in the weights of the encoders, by alphabet.
    """

    state: dict[str, torch.Tensor]
    metadata: ClassifierMetadata | None
    changes: Mapping[Alphabet, Changes]


class _StandIn:
    """Replaces every module class in a published pickle; it only has attributes."""


_STAND_INS = [
    (_StandIn, name)
    for name in (
        "__main__.MLPClassifier",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.batchnorm.BatchNorm1d",
        "torch.nn.modules.dropout.Dropout",
    )
]


def load_classifier(path: Path) -> Classifier:
    """Load the classifier in `path`.

    The published files are pickles of a whole `__main__.MLPClassifier`
    (https://github.com/Li-Jing-1997/VirNucPro); a state dict has the same names of tensors.

    Args:
        path: A whole-module pickle, a state dict or a safetensors file.

    Raises:
        ClassifierError: The file is missing, damaged or unsafe, or contains something else.
    """
    with _explaining(path):
        state, metadata, changes = _read(path)
        identity = digest_files([path])
        if metadata is not None and metadata.chunk_head is not None:
            return ChunkClassifier(state, metadata, identity, changes)
        return FrameClassifier(state, metadata, identity, changes)


def read_classifier(path: Path) -> ClassifierContent:
    """Return what the file of a classifier holds, to write it again with other metadata.

    Raises:
        ClassifierError: As for `load_classifier`.
    """
    with _explaining(path):
        return _read(path)


def save_classifier(
    path: Path,
    state: Mapping[str, torch.Tensor],
    metadata: ClassifierMetadata,
    changes: Mapping[Alphabet, Changes] = {},
) -> None:
    """Write a classifier as safetensors: its tensors in float32, and its metadata.

    Args:
        path: The file to write; an existing one is replaced.
        state: The state dict of a `ChunkHead`, or of a module with `hidden_layer`, `bn1` and
            `output_layer`.
        metadata: What the classifier was trained for.
        changes: What it changes in the weights of the encoders, by alphabet.

    Raises:
        ClassifierError: The tensors do not make a classifier, or do not fit the metadata.
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save

    # Checked before writing too: a training that failed must not leave a file that looks well.
    tensors = check_state(path, state, metadata)
    tensors_of_changes = name_tensors(changes)
    _check_changes(path, metadata, take_changes(path, dict(tensors_of_changes)))
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION if tensors_of_changes else 3,
        "class_names": list(CLASS_NAMES),
        **asdict(metadata),
    }
    # The same bytes as ever.
    for name in ("regions", "finetuned"):
        if document[name] is None:
            del document[name]
    if metadata.calibration is not None and not metadata.calibration.offset_growth:
        del document["calibration"]["offset_growth"]
    sizes = document.pop("chunk_head")
    document["head"] = {"kind": "frame"} if sizes is None else {"kind": "chunk", **sizes}
    is_plain = sizes is None and metadata.frame_rule == str(OPEN_RULE) and not tensors_of_changes
    if is_plain and metadata.threshold is None:
        # The same bytes as ever, which earlier versions read too.
        del document["frame_rule"], document["head"], document["threshold"]
        document["format_version"] = 2
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    contiguous |= tensors_of_changes
    with replace_when_whole(path) as temporary:
        temporary.write_bytes(save(contiguous, {_METADATA_KEY: json.dumps(document)}))


def check_state(
    path: Path, state: Mapping[str, Any], metadata: ClassifierMetadata | None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a classifier in float32, without `module.` before their names.

    Raises:
        ClassifierError: They do not make a classifier, or do not fit the metadata.
    """
    # torch.nn.DataParallel adds `module.` to every name of a state dict.
    found = {name.removeprefix("module."): value for name, value in state.items()}
    # A counter of the training, which scores do not need.
    found.pop("bn1.num_batches_tracked", None)
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in found.items()}
    sizes = None if metadata is None else metadata.chunk_head
    wanted = _wanted_shapes(found) if sizes is None else sizes.shapes()
    wrong = [
        f"{name} is {shapes.get(name, 'missing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(shapes.keys() | wanted.keys())
        if shapes.get(name) != wanted.get(name)
    ]
    if wrong:
        raise ClassifierError(f"{path}: not a VirNucPro classifier: {'; '.join(wrong[:8])}")
    # A file may hold half precision, or tensors of a GPU that is not here.
    tensors = {name: value.detach().to("cpu", torch.float32) for name, value in found.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or (name == "bn1.running_var" and tensor.min() < 0):
            raise ClassifierError(
                f"{path}: {name} holds NaN, infinity or a negative variance; the file is damaged "
                "or its training failed"
            )
    if metadata is not None:
        _check_dims(path, metadata, wanted)
    return tensors


def _wanted_shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a classifier, given that of its first layer."""
    # The first layer says the sizes. All other shapes follow, and are compared with the file.
    first_shape = tuple(getattr(state.get("hidden_layer.weight"), "shape", ()))
    num_hidden, input_dim = (*first_shape, 0, 0)[:2]
    return {
        "hidden_layer.weight": (num_hidden, input_dim),
        "hidden_layer.bias": (num_hidden,),
        "bn1.weight": (num_hidden,),
        "bn1.bias": (num_hidden,),
        "bn1.running_mean": (num_hidden,),
        "bn1.running_var": (num_hidden,),
        "output_layer.weight": (len(CLASS_NAMES), num_hidden),
        "output_layer.bias": (len(CLASS_NAMES),),
    }


def _check_dims(
    path: Path, metadata: ClassifierMetadata, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    dims = (metadata.dna_dim, metadata.protein_dim)
    sizes = metadata.chunk_head
    if sizes is not None:
        if dims != (sizes.dna_dim, sizes.protein_dim):
            raise ClassifierError(
                f"{path}: the head wants {sizes.dna_dim} + {sizes.protein_dim} numbers, but the "
                f"metadata say {dims[0]} + {dims[1]}"
            )
    elif sum(dims) != shapes["hidden_layer.weight"][1]:
        raise ClassifierError(
            f"{path}: the first layer wants {shapes['hidden_layer.weight'][1]} numbers, but the "
            f"metadata say {dims[0]} + {dims[1]}"
        )


def _check_changes(
    path: Path, metadata: ClassifierMetadata, changes: Mapping[Alphabet, Changes]
) -> None:
    identities = (metadata.dna_weights_identity, metadata.protein_weights_identity)
    for alphabet, identity in zip(ALPHABETS, identities, strict=True):
        # Otherwise they would be merged into any weights of these shapes.
        if alphabet in changes and not isinstance(identity, str):
            raise ClassifierError(
                f"{path}: changes the {alphabet} encoder, but does not say which weights it had; "
                "the file is damaged"
            )


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn whatever reading a classifier raises into one error that names the file."""
    try:
        yield
    except ClassifierError:
        raise
    except WeightsError as error:
        raise ClassifierError(str(error)) from error
    except FileNotFoundError as error:
        raise ClassifierError(
            f"{path}: no such classifier; give the path of one, or get a published one with "
            "`virnucpro models download`"
        ) from error
    except Exception as error:
        # A damaged or hostile file can hold any type anywhere, and break the readers in any way.
        reason = str(error) or type(error).__name__
        raise ClassifierError(f"{path}: cannot be read as a classifier ({reason})") from error


def _read(path: Path) -> ClassifierContent:
    metadata = None
    if _is_safetensors(path):
        state, metadata = _read_safetensors(path)
    else:
        state = _read_pickled_state(path)
    check_sizes(path, {name: value for name, value in state.items() if torch.is_tensor(value)})
    changes: Mapping[Alphabet, Changes] = {}
    if metadata is not None:
        state = dict(state)
        changes = take_changes(path, state)
        _check_changes(path, metadata, changes)
    return ClassifierContent(check_state(path, state, metadata), metadata, changes)


def _is_safetensors(path: Path) -> bool:
    # The format starts with the length of its JSON header in eight bytes, then the header.
    with path.open("rb") as file:
        # A zip file could begin with the same byte in this place, so both are asked.
        return file.read(9)[8:] == b"{" and not zipfile.is_zipfile(path)


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], ClassifierMetadata | None]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = (file.metadata() or {}).get(_METADATA_KEY)
    return state, None if written is None else _parse_metadata(path, json.loads(written))


def _parse_metadata(path: Path, document: Mapping[str, Any]) -> ClassifierMetadata:
    # run.json will contain this document, and may not contain NaN.
    json.dumps(document, allow_nan=False)
    if document["format_version"] not in range(1, FORMAT_VERSION + 1):
        raise ClassifierError(
            f"{path}: a classifier file of version {brief(document['format_version'])}, and this "
            f"program reads versions 1 to {FORMAT_VERSION}; update virnucpro"
        )
    if tuple(document["class_names"]) != CLASS_NAMES:
        raise ClassifierError(
            f"{path}: the classes are {brief(document['class_names'])}, wanted {list(CLASS_NAMES)}"
        )
    values = {
        field.name: document[field.name]
        for field in fields(ClassifierMetadata)
        # Fields that earlier versions lack have a default.
        if field.default is MISSING or field.name in document
    }
    # Not a field of the file: `head` says it.
    values["chunk_head"] = _parse_head(path, document)
    threshold = values.get("threshold")
    if threshold is not None and not (type(threshold) is float and 0 < threshold < 1):
        raise ClassifierError(
            f"{path}: the threshold is {brief(threshold)}, wanted a probability between 0 and 1"
        )
    if values.get("calibration") is not None:
        values["calibration"] = Calibration(**values["calibration"])
    if values.get("regions") is not None:
        values["regions"] = RegionModel(**values["regions"])
    return ClassifierMetadata(**values)


def _parse_head(path: Path, document: Mapping[str, Any]) -> ChunkHeadSizes | None:
    """Return the sizes of the head over chunks; None for the MLP over frames."""
    rule = FrameRule.parse(document.get("frame_rule", str(OPEN_RULE)))
    sizes = dict(document.get("head", {"kind": "frame"}))
    kind = sizes.pop("kind")
    if kind != "chunk" and (kind, rule.kind) != ("frame", "open"):
        raise ClassifierError(
            f"{path}: a head of the kind {brief(kind)} with the frame rule {rule}; wanted chunk, "
            "or frame with open"
        )
    if kind == "frame":
        return None
    if rule.max_stretches > _MAX_STRETCHES:
        raise ClassifierError(
            f"{path}: the frame rule {rule} takes more than {_MAX_STRETCHES} stretches of a chunk; "
            "the file is damaged"
        )
    # `type`, because True is an int. A size below 1 would fail far from here.
    if any(type(size) is not int or size < 1 for size in sizes.values()):
        raise ClassifierError(
            f"{path}: the sizes of the head are {brief(sizes)}, wanted whole numbers"
        )
    return ChunkHeadSizes(**sizes)


def _read_pickled_state(path: Path) -> Mapping[str, Any]:
    value = read_pickle(path, _STAND_INS)
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, _StandIn):
        raise ClassifierError(
            f"{path}: a pickled MLPClassifier or a state dict was expected, found "
            f"{type(value).__name__}"
        )
    parts = vars(value)["_modules"]
    # The pickle may say another number, and our own arithmetic would then give other scores.
    eps = vars(parts["bn1"])["eps"]
    if eps != BATCH_NORM_EPS:
        raise ClassifierError(f"{path}: bn1.eps is {brief(eps)}, wanted {BATCH_NORM_EPS}")
    return {
        f"{part}.{name}": tensor
        for part in ("hidden_layer", "bn1", "output_layer")
        for kind in ("_parameters", "_buffers")
        for name, tensor in vars(parts[part])[kind].items()
    }
