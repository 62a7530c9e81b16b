"""The classifier: the MLP that turns a frame's two embeddings into P(others) and P(virus).

Three kinds of file hold one: the published pickle of the whole module, a plain state dict, and our
own safetensors, which also say what the classifier was made for. The contents tell the kind.

Shapes: N frames, B frames in a block, D numbers for a frame (its DNA embedding, then its protein
embedding), H hidden units, C the two classes of `CLASS_NAMES`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from virnucpro.backend.weights import check_sizes, digest_files, read_pickle
from virnucpro.checkpoints.whole_files import replace_when_whole
from virnucpro.errors import ClassifierError, WeightsError
from virnucpro.scoring.calibration import Calibration

CLASS_NAMES = ("others", "virus")
"""The columns of the scores, in the published models' order."""

FORMAT_VERSION = 2
"""Version 2 adds the identities of the weights, the calibration and the origin to version 1."""

# One key holding JSON: safetensors writes several keys in a random order, and the same classifier
# would have another digest each time.
_METADATA_KEY = "virnucpro_classifier"
_BLOCK_ROWS = 1024
_BATCH_NORM_EPS = 1e-5  # of torch.nn.BatchNorm1d; a state dict does not tell it


class _StandIn:
    """Takes the place of every module class in a published pickle: it only has attributes."""


_STAND_INS = [
    (_StandIn, name)
    for name in (
        "__main__.MLPClassifier",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.batchnorm.BatchNorm1d",
        "torch.nn.modules.dropout.Dropout",
    )
]


@dataclass(frozen=True, slots=True)
class ClassifierMetadata:
    """What a classifier was trained for; only our own files tell it.

    Attributes:
        dna_backend: Name of the backend that made the DNA embeddings.
        protein_backend: Of the one that made the protein embeddings.
        dna_dim: Numbers in a DNA embedding.
        protein_dim: Numbers in a protein embedding.
        chunk_length_bp: The length that records were cut to.
        dna_weights_identity: `Weights.identity` of the DNA backend's weights; None if not known.
        protein_weights_identity: The same of the protein backend.
        calibration: What makes probabilities of its scores; None if they are none.
        origin: What it was trained on and how, as JSON knows values; None if not known.
    """

    dna_backend: str
    protein_backend: str
    dna_dim: int
    protein_dim: int
    chunk_length_bp: int
    dna_weights_identity: str | None = None
    protein_weights_identity: str | None = None
    calibration: Calibration | None = None
    origin: Mapping[str, Any] | None = None


class Classifier:
    """A loaded classifier: `Linear -> BatchNorm1d -> ReLU -> Linear -> softmax`, in eval mode.

    Attributes:
        input_dim: D, the numbers it wants for a frame.
        metadata: What it was trained for; None when its file does not tell.
        identity: The digest of its file.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        metadata: ClassifierMetadata | None,
        identity: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.metadata = metadata
        self.identity = identity
        self._device = torch.device(device)
        tensors = {name: tensor.to(self._device, torch.float64) for name, tensor in state.items()}
        # In eval mode the normalization is a scale and a shift, which the first layer takes in.
        scale_H = tensors["bn1.weight"] / (tensors["bn1.running_var"] + _BATCH_NORM_EPS).sqrt()
        centred_H = tensors["hidden_layer.bias"] - tensors["bn1.running_mean"]
        self._hidden_weight_DH = (tensors["hidden_layer.weight"] * scale_H[:, None]).T.contiguous()
        self._hidden_bias_H = centred_H * scale_H + tensors["bn1.bias"]
        self._output_weight_HC = tensors["output_layer.weight"].T.contiguous()
        self._output_bias_C = tensors["output_layer.bias"]
        self.input_dim = self._hidden_weight_DH.shape[0]

    @property
    def calibration(self) -> Calibration | None:
        """What makes probabilities of the scores; None if they are none."""
        return None if self.metadata is None else self.metadata.calibration

    def check_fits(
        self,
        dna: tuple[str, int],
        protein: tuple[str, int],
        chunk_length_bp: int,
        weights_identities: tuple[str, str],
    ) -> None:
        """Check that the classifier goes with the backends, their weights and the chunk length.

        Args:
            dna: Name and embedding dimension of the DNA backend.
            protein: The same of the protein backend.
            chunk_length_bp: The length that records are cut to.
            weights_identities: Of the weights of the DNA and of the protein backend.

        Raises:
            ClassifierError: It was made for other dimensions, backends, weights or chunks.
        """
        made_for = self.metadata
        given = _describe_features(dna, protein)
        if made_for is None:
            wanted, fits = str(self.input_dim), self.input_dim == dna[1] + protein[1]
        else:
            wanted_dna = made_for.dna_backend, made_for.dna_dim
            wanted_protein = made_for.protein_backend, made_for.protein_dim
            wanted = _describe_features(wanted_dna, wanted_protein)
            fits = (wanted_dna, wanted_protein) == (dna, protein)
        if not fits:
            raise ClassifierError(
                f"the classifier wants {wanted} numbers for a frame, the backends give {given}; "
                "choose the backends and weights that it was trained on, or another classifier"
            )
        if made_for is not None and made_for.chunk_length_bp != chunk_length_bp:
            raise ClassifierError(
                f"the classifier was trained on chunks of {made_for.chunk_length_bp} bp, the run "
                f"cuts chunks of {chunk_length_bp} bp; set the expected length to "
                f"{made_for.chunk_length_bp}, or choose another classifier"
            )
        if made_for is not None:
            _check_weights(made_for, weights_identities)

    def score(self, features_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 (N, 2), P(others) and P(virus), for float32 (N, D) features.

        A frame's scores do not depend on how many others are scored with it, nor on which.

        Raises:
            ClassifierError: The features have another width, or give a score that is no number.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != self.input_dim:
            raise ClassifierError(
                f"the classifier wants features of shape (frames, {self.input_dim}), found "
                f"{features_ND.shape}"
            )
        # A matrix product chooses its kernel, and so the order of its sums, by the number of rows.
        # Hence all blocks are of one size; the last is padded with what it held before. float64
        # rounded to float32 hides what the number of threads and the device still change.
        scores_NC = np.empty((len(features_ND), len(CLASS_NAMES)), np.float32)
        block_BD = np.zeros((_BLOCK_ROWS, self.input_dim))
        for start in range(0, len(features_ND), _BLOCK_ROWS):
            rows = features_ND[start : start + _BLOCK_ROWS]
            block_BD[: len(rows)] = rows
            scores_NC[start : start + len(rows)] = self._score_block(block_BD)[: len(rows)]
        bad_rows = np.flatnonzero(~np.isfinite(scores_NC).all(axis=1))
        if len(bad_rows):
            raise ClassifierError(
                f"{len(bad_rows)} of {len(scores_NC)} frames, the first at {bad_rows[0]}, have no "
                "finite score; their embeddings hold NaN or infinity: compute them again"
            )
        return scores_NC

    @torch.inference_mode()
    def _score_block(self, block_BD: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        features_BD = torch.from_numpy(block_BD).to(self._device)
        hidden_BH = (features_BD @ self._hidden_weight_DH + self._hidden_bias_H).relu()
        logits_BC = hidden_BH @ self._output_weight_HC + self._output_bias_C
        scores_BC: npt.NDArray[np.float32] = logits_BC.softmax(dim=1).float().cpu().numpy()
        return scores_BC


def _describe_features(dna: tuple[str, int], protein: tuple[str, int]) -> str:
    return f"{dna[1] + protein[1]} = {dna[0]} {dna[1]} + {protein[0]} {protein[1]}"


def _check_weights(made_for: ClassifierMetadata, identities: tuple[str, str]) -> None:
    trained_on = made_for.dna_weights_identity, made_for.protein_weights_identity
    names = made_for.dna_backend, made_for.protein_backend
    for name, wanted, found in zip(names, trained_on, identities, strict=True):
        if wanted not in (None, found):
            raise ClassifierError(
                f"the classifier was trained on {name} weights {wanted}, the run uses {found}; "
                "choose the very files that it was trained on (the same model in another file "
                "format counts as another), or another classifier"
            )


def load_classifier(path: Path, device: torch.device | str = "cpu") -> Classifier:
    """Load the classifier in `path`, executing nothing from it.

    The published files are pickles of a whole `__main__.MLPClassifier`
    (https://github.com/Li-Jing-1997/VirNucPro); a state dict has the same names of tensors.

    Args:
        path: A whole-module pickle, a state dict or a safetensors file, whatever its name.
        device: Where the scores are computed.

    Raises:
        ClassifierError: The file is missing, damaged or unsafe, or holds something else.
    """
    state, metadata = read_state(path)
    with _explaining(path):
        return Classifier(state, metadata, digest_files([path]), device)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn whatever reading a classifier raises into one error that names it."""
    try:
        yield
    except ClassifierError:
        raise
    except WeightsError as error:
        raise ClassifierError(str(error)) from error
    except Exception as error:
        # A damaged or hostile file can hold any type anywhere, and break the readers in any way.
        reason = str(error) or type(error).__name__
        raise ClassifierError(f"{path}: cannot be read as a classifier ({reason})") from error


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], ClassifierMetadata | None]:
    """Return the tensors of the classifier in `path`, and what it was made for if that is told.

    Raises:
        ClassifierError: As `load_classifier`.
    """
    with _explaining(path):
        state, metadata = _read_file(path)
        check_sizes(path, {name: value for name, value in state.items() if torch.is_tensor(value)})
        return check_state(path, state, metadata), metadata


def save_classifier(
    path: Path, state: Mapping[str, torch.Tensor], metadata: ClassifierMetadata
) -> None:
    """Write a classifier as safetensors: its tensors in float32, and what it was made for.

    Args:
        path: The file to write; an existing one is replaced.
        state: The state dict of a module with `hidden_layer`, `bn1` and `output_layer`.
        metadata: What the classifier was made for.

    Raises:
        ClassifierError: The tensors do not make a classifier, or do not fit the metadata.
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save

    tensors = check_state(path, state, metadata)
    document = {
        "format_version": FORMAT_VERSION,
        "class_names": list(CLASS_NAMES),
        **asdict(metadata),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replace_when_whole(path) as temporary:
        temporary.write_bytes(save(contiguous, {_METADATA_KEY: json.dumps(document)}))


def _read_file(path: Path) -> tuple[Mapping[str, Any], ClassifierMetadata | None]:
    if _is_safetensors(path):
        return _read_safetensors(path)
    value = read_pickle(path, _STAND_INS)
    if isinstance(value, _StandIn):
        return _module_state(path, value), None
    if isinstance(value, Mapping):
        return value, None
    raise ClassifierError(
        f"{path}: a pickled MLPClassifier or a state dict was expected, found "
        f"{type(value).__name__}"
    )


def _is_safetensors(path: Path) -> bool:
    # The format starts with the length of its JSON header in eight bytes, then the header.
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" and not zipfile.is_zipfile(path)


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], ClassifierMetadata | None]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = (file.metadata() or {}).get(_METADATA_KEY)
    return state, None if written is None else _parse_metadata(path, json.loads(written))


def _parse_metadata(path: Path, document: Mapping[str, Any]) -> ClassifierMetadata:
    json.dumps(document, allow_nan=False)  # run.json is going to hold it, without NaN
    if document["format_version"] not in range(1, FORMAT_VERSION + 1):
        raise ClassifierError(
            f"{path}: a classifier file of version {document['format_version']}, and this program "
            f"reads versions 1 to {FORMAT_VERSION}; update virnucpro"
        )
    if tuple(document["class_names"]) != CLASS_NAMES:
        raise ClassifierError(
            f"{path}: the classes are {document['class_names']}, wanted {list(CLASS_NAMES)}"
        )
    values = {
        field.name: document[field.name]
        for field in fields(ClassifierMetadata)
        # What version 1 did not know has a default.
        if field.default is MISSING or field.name in document
    }
    if values.get("calibration") is not None:
        values["calibration"] = Calibration(**values["calibration"])
    return ClassifierMetadata(**values)


def _module_state(path: Path, module: _StandIn) -> dict[str, Any]:
    parts = vars(module)["_modules"]
    eps = vars(parts["bn1"])["eps"]
    if eps != _BATCH_NORM_EPS:
        raise ClassifierError(f"{path}: bn1.eps is {eps}, wanted {_BATCH_NORM_EPS}")
    return {
        f"{part}.{name}": tensor
        for part in ("hidden_layer", "bn1", "output_layer")
        for kind in ("_parameters", "_buffers")
        for name, tensor in vars(parts[part])[kind].items()
    }


def check_state(
    path: Path, state: Mapping[str, Any], metadata: ClassifierMetadata | None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a classifier in float32, without `module.` before their names.

    Raises:
        ClassifierError: They make no classifier, or one that does not fit the metadata.
    """
    found = {name.removeprefix("module."): value for name, value in state.items()}
    found.pop("bn1.num_batches_tracked", None)
    _check_shapes(path, found)
    tensors = {name: value.detach().to("cpu", torch.float32) for name, value in found.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or (name == "bn1.running_var" and tensor.min() < 0):
            raise ClassifierError(
                f"{path}: {name} holds NaN, infinity or a negative variance; the file is damaged "
                "or its training failed"
            )
    if metadata is not None:
        input_dim = tensors["hidden_layer.weight"].shape[1]
        if metadata.dna_dim + metadata.protein_dim != input_dim:
            raise ClassifierError(
                f"{path}: the first layer wants {input_dim} numbers, but the metadata say "
                f"{metadata.dna_dim} + {metadata.protein_dim}"
            )
    return tensors


def _check_shapes(path: Path, state: Mapping[str, Any]) -> None:
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    num_hidden, input_dim = (*shapes.get("hidden_layer.weight", ()), 0, 0)[:2]
    num_classes = len(CLASS_NAMES)
    wanted = {
        "hidden_layer.weight": (num_hidden, input_dim),
        "hidden_layer.bias": (num_hidden,),
        "bn1.weight": (num_hidden,),
        "bn1.bias": (num_hidden,),
        "bn1.running_mean": (num_hidden,),
        "bn1.running_var": (num_hidden,),
        "output_layer.weight": (num_classes, num_hidden),
        "output_layer.bias": (num_classes,),
    }
    wrong = [
        f"{name} is {shapes.get(name, 'missing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(shapes.keys() | wanted.keys())
        if shapes.get(name) != wanted.get(name)
    ]
    if wrong:
        raise ClassifierError(f"{path}: not a VirNucPro classifier: {'; '.join(wrong[:8])}")
