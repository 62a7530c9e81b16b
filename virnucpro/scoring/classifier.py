"""Classifiers: the original's MLP over one open frame, and the head over the stretches of a chunk.

`virnucpro.scoring.classifier_files` reads and writes their files.

Shapes: N frames or chunks, B of them in a block. Of a frame: D numbers (its DNA embedding, then its
protein embedding), H hidden units, C the two classes of `CLASS_NAMES`. Of a chunk: S stretches,
P numbers of a protein embedding, Q numbers of a DNA embedding, K features of a stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from virnucpro.backend.arrays import BoolArray, Float32Array
from virnucpro.backend.changes import Changes
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.config import OPEN_RULE, FrameRule
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.chunk_head import NUM_FEATURES, ChunkHead, ChunkHeadSizes
from virnucpro.scoring.region_model import REGION_MODEL, RegionModel

CLASS_NAMES = ("others", "virus")
"""The columns of the scores, in the order of the published models."""

BATCH_NORM_EPS = 1e-5
"""The default of torch.nn.BatchNorm1d; a state dict does not contain it."""

# Another size of the blocks may change the last bits of scores.
_BLOCK_ROWS = 1024
_BLOCK_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class ClassifierMetadata:
    """What a classifier was trained for; only our own files contain it.

    Attributes:
        dna_backend: The name of the backend that made the DNA embeddings.
        protein_backend: The name of the backend that made the protein embeddings.
        dna_dim: Numbers in a DNA embedding.
        protein_dim: Numbers in a protein embedding.
        chunk_length_bp: The length of the chunks that records were cut into.
        dna_weights_identity: `Weights.identity` of the DNA backend's weights; None if unknown.
        protein_weights_identity: The same for the protein backend.
        calibration: What turns its scores into probabilities; None if there is no calibration.
        origin: What it was trained on and how, as JSON values; None if unknown.
        threshold: The probability from which a record is called viral, where the settings say
            nothing; None for 0.5.
        frame_rule: What of a chunk was embedded, as `str` of a `FrameRule`.
        chunk_head: The sizes of the head over chunks; None for the MLP over frames.
        regions: What finds viral regions; None for the defaults. Only a head over chunks has it.
        finetuned: How the encoders were trained with it, as JSON values; None if they were not.
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
    threshold: float | None = None
    frame_rule: str = str(OPEN_RULE)
    chunk_head: ChunkHeadSizes | None = None
    regions: RegionModel | None = None
    finetuned: Mapping[str, Any] | None = None


class Classifier:
    """A loaded classifier of either kind.

    Attributes:
        input_dim: The numbers that it expects of the two embeddings of a row.
        metadata: What it was trained for; None if its file does not say.
        identity: The digest of its file.
        changes: What it changes in the weights of the encoders, by alphabet; empty if they were
            not trained with it.
        rule: What of a chunk it reads.
        reads_chunks: Whether it scores a chunk as a whole, by one DNA; otherwise each frame alone.
    """

    input_dim: int
    reads_chunks: ClassVar[bool]

    def __init__(
        self,
        metadata: ClassifierMetadata | None,
        identity: str,
        changes: Mapping[Alphabet, Changes] = {},
    ) -> None:
        self.metadata = metadata
        self.identity = identity
        self.changes = changes
        self.rule = OPEN_RULE if metadata is None else FrameRule.parse(metadata.frame_rule)

    @property
    def calibration(self) -> Calibration | None:
        """What turns the scores into probabilities; None if there is no calibration."""
        return None if self.metadata is None else self.metadata.calibration

    @property
    def threshold(self) -> float | None:
        """The probability from which records are viral by default; None if the file says none."""
        return None if self.metadata is None else self.metadata.threshold

    @property
    def region_model(self) -> RegionModel:
        """What finds viral regions."""
        return (self.metadata and self.metadata.regions) or REGION_MODEL

    @property
    def weights_locations(self) -> tuple[str, str]:
        """Where the DNA weights and the protein weights were in the training; empty if unknown."""
        told = ((self.metadata and self.metadata.origin) or {}).get("weights")
        # A file from elsewhere may have anything in this place.
        if isinstance(told, list) and len(told) == 2 and all(isinstance(one, str) for one in told):
            return told[0], told[1]
        return "", ""

    def check_fits(
        self,
        dna: tuple[str, int | None],
        protein: tuple[str, int | None],
        chunk_length_bp: int,
        weights_identities: tuple[str, str] | None,
    ) -> None:
        """Check that the classifier fits the backends, their weights and the chunk length.

        Args:
            dna: The name and the embedding dimension of the DNA backend; None if unknown.
            protein: The same for the protein backend.
            chunk_length_bp: The length of the chunks that records are cut into.
            weights_identities: The identities of the DNA and of the protein weights; None as long
                as the weights are not opened.

        Raises:
            ClassifierError: It was trained for other dimensions, backends, weights or chunks.
        """
        trained = self.metadata
        if trained is None:
            known = [dim for _, dim in (dna, protein) if dim is not None]
            # A file without metadata tells one number only: the sum of both dimensions.
            if len(known) == 2 and self.input_dim != sum(known):
                raise ClassifierError(
                    f"the classifier wants {self.input_dim} numbers for a frame, and the backends "
                    f"give {_describe_features(dna, protein)}; choose the backends and weights "
                    "that it was trained on, or another classifier"
                )
            return
        wanted_dna = trained.dna_backend, trained.dna_dim
        wanted_protein = trained.protein_backend, trained.protein_dim
        # A dimension that is unknown yet cannot be wrong; it is compared when weights are open.
        found = [
            (name, dim or wanted)
            for (name, dim), (_, wanted) in zip(
                (dna, protein), (wanted_dna, wanted_protein), strict=True
            )
        ]
        if found != [wanted_dna, wanted_protein]:
            raise ClassifierError(
                f"the classifier wants {_describe_features(wanted_dna, wanted_protein)} numbers "
                f"for a frame, and the backends give {_describe_features(dna, protein)}; choose "
                "another classifier, or the backends and weights that it was trained on: "
                f"{self._describe_models()}"
            )
        if trained.chunk_length_bp != chunk_length_bp:
            raise ClassifierError(
                f"the classifier was trained on chunks of {trained.chunk_length_bp:,} bp, and the "
                f"run cuts chunks of {chunk_length_bp:,} bp; give -e "
                f"{trained.chunk_length_bp}, or choose another classifier"
            )
        if weights_identities is not None:
            for alphabet, (name, _), identity in zip(
                ALPHABETS, (dna, protein), weights_identities, strict=True
            ):
                self.check_weights(alphabet, name, identity)

    def check_weights(self, alphabet: Alphabet, backend: str, identity: str) -> None:
        """Compare a backend and the identity of its weights with those of the training, if known.

        Raises:
            ClassifierError: It was trained on others.
        """
        trained = self.metadata
        assert trained is not None, "only a file with metadata names its weights"
        is_dna = alphabet == "dna"
        name = trained.dna_backend if is_dna else trained.protein_backend
        wanted = trained.dna_weights_identity if is_dna else trained.protein_weights_identity
        # A classifier of older files does not know its weights. Then nothing can be compared.
        if backend != name or wanted not in (None, identity):
            raise ClassifierError(
                f"the classifier was trained on {name} weights {wanted}, and the run uses "
                f"{backend} weights {identity} (the same model in another file format has another "
                "digest); choose another classifier, or the backends and weights that it was "
                f"trained on: {self._describe_models()}"
            )

    def _describe_models(self) -> str:
        """Return the options that name the models of the training, as far as the file says."""
        trained = self.metadata
        assert trained is not None, "only a file with metadata says it"
        described = [
            f"--{alphabet}-backend {backend}"
            + (f" --{alphabet}-weights {location}" if location else "")
            + (f", digest of the weights {identity}" if identity else "")
            for alphabet, backend, location, identity in zip(
                ALPHABETS,
                (trained.dna_backend, trained.protein_backend),
                self.weights_locations,
                (trained.dna_weights_identity, trained.protein_weights_identity),
                strict=True,
            )
        ]
        return "; ".join(described)


class FrameClassifier(Classifier):
    """The MLP over a frame: `Linear -> BatchNorm1d -> ReLU -> Linear -> softmax`, in eval mode."""

    reads_chunks = False

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        metadata: ClassifierMetadata | None,
        identity: str,
        changes: Mapping[Alphabet, Changes] = {},
    ) -> None:
        super().__init__(metadata, identity, changes)
        # float64, so that rounding to float32 at the end hides how a machine orders its sums.
        tensors = {name: tensor.double() for name, tensor in state.items()}
        # In eval mode, batch normalization is a scale and a shift, so the first layer absorbs it.
        scale_H = tensors["bn1.weight"] / (tensors["bn1.running_var"] + BATCH_NORM_EPS).sqrt()
        centred_H = tensors["hidden_layer.bias"] - tensors["bn1.running_mean"]
        self._hidden_weight_DH = (tensors["hidden_layer.weight"] * scale_H[:, None]).T.contiguous()
        self._hidden_bias_H = centred_H * scale_H + tensors["bn1.bias"]
        self._output_weight_HC = tensors["output_layer.weight"].T.contiguous()
        self._output_bias_C = tensors["output_layer.bias"]
        self.input_dim = self._hidden_weight_DH.shape[0]

    @torch.inference_mode()
    def score(self, features_ND: Float32Array) -> Float32Array:
        """Return float32 (N, 2), P(others) and P(virus), for float32 (N, D) features.

        The scores of a frame do not depend on which other frames are scored with it.

        Raises:
            ClassifierError: The features have another width, or give a score that is not finite.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != self.input_dim:
            raise ClassifierError(
                f"the classifier wants features of shape (frames, {self.input_dim}), found "
                f"{features_ND.shape}"
            )
        scores_NC = np.empty((len(features_ND), len(CLASS_NAMES)), np.float32)
        shapes = [(_BLOCK_ROWS, self.input_dim)]
        for rows, (features_BD,) in _split_blocks([features_ND], shapes):
            hidden_BH = (features_BD @ self._hidden_weight_DH + self._hidden_bias_H).relu()
            logits_BC = hidden_BH @ self._output_weight_HC + self._output_bias_C
            scores_NC[rows] = logits_BC.softmax(dim=1).numpy()[: len(scores_NC[rows])]
        _check_finite(scores_NC, "frames")
        return scores_NC


class ChunkClassifier(Classifier):
    """The `ChunkHead` over the stretches (or open frames) and the DNA of a chunk, in eval mode."""

    reads_chunks = True

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        metadata: ClassifierMetadata,
        identity: str,
        changes: Mapping[Alphabet, Changes] = {},
    ) -> None:
        super().__init__(metadata, identity, changes)
        assert metadata.chunk_head is not None, "its file says it"
        self.sizes = metadata.chunk_head
        self.input_dim = self.sizes.dna_dim + self.sizes.protein_dim
        # The caller's random numbers stay as they were.
        with torch.random.fork_rng(devices=[]):
            self._head = ChunkHead(self.sizes).double().eval()
        self._head.load_state_dict(dict(state))

    @torch.inference_mode()
    def score(
        self,
        dna_NQ: Float32Array,
        protein_NSP: Float32Array,
        features_NSK: Float32Array,
        is_stretch_NS: BoolArray,
    ) -> Float32Array:
        """Return float32 (N,): the logit of "viral" for each chunk.

        The logit of a chunk does not depend on which other chunks are scored with it.

        Args:
            dna_NQ: float32, the embedding of each chunk's DNA, or of its first open frame's.
            protein_NSP: float32, the embeddings of its stretches or open frames, at most as many
                as the rule says.
            features_NSK: float32, what the frame store says of the stretches.
            is_stretch_NS: Where there is a stretch; other entries do not count.

        Raises:
            ClassifierError: The arrays have other shapes, or give a logit that is not finite.
        """
        num_chunks, num_stretches = is_stretch_NS.shape
        max_stretches = self.rule.max_rows
        wanted = {
            "DNA embeddings": (dna_NQ, (num_chunks, self.sizes.dna_dim)),
            "protein embeddings": (protein_NSP, (*is_stretch_NS.shape, self.sizes.protein_dim)),
            "features": (features_NSK, (*is_stretch_NS.shape, NUM_FEATURES)),
        }
        for name, (array, shape) in wanted.items():
            if array.shape != shape or num_stretches > max_stretches:
                raise ClassifierError(
                    f"the classifier wants {name} of shape {shape} and at most {max_stretches} "
                    f"stretches of a chunk, found {array.shape}"
                )
        logits_N = np.empty(num_chunks, np.float32)
        arrays = [dna_NQ, protein_NSP, features_NSK, is_stretch_NS]
        shapes = [
            (_BLOCK_CHUNKS, self.sizes.dna_dim),
            (_BLOCK_CHUNKS, max_stretches, self.sizes.protein_dim),
            (_BLOCK_CHUNKS, max_stretches, NUM_FEATURES),
            (_BLOCK_CHUNKS, max_stretches),
        ]
        for chunks, blocks in _split_blocks(arrays, shapes):
            dna_BQ, protein_BSP, features_BSK, is_stretch_BS = blocks
            is_stretch_BS = is_stretch_BS.bool()
            # Zeros where there is no stretch: a weight of 0 does not remove NaN.
            for block in (protein_BSP, features_BSK):
                block[~is_stretch_BS] = 0
            logits_B = self._head(dna_BQ, protein_BSP, features_BSK, is_stretch_BS)
            logits_N[chunks] = logits_B.numpy()[: len(logits_N[chunks])]
        _check_finite(logits_N, "chunks")
        return logits_N


def _split_blocks(
    arrays: Sequence[npt.NDArray[Any]], shapes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield N rows block by block: which rows, and float64 tensors of exactly these shapes.

    Zeros fill up what the arrays do not.
    """
    # A matrix product chooses its kernel, and so the order of its sums, by the number of rows.
    # So all blocks have one size. float64 rounded to float32 hides the differences that the
    # number of threads still makes.
    for start in range(0, len(arrays[0]), shapes[0][0]):
        rows = slice(start, start + shapes[0][0])
        # By torch, because it converts with all threads.
        blocks = [torch.tensor(array[rows], dtype=torch.float64) for array in arrays]
        for number, (given, shape) in enumerate(zip(blocks, shapes, strict=True)):
            if given.shape != shape:
                blocks[number] = torch.zeros(shape, dtype=torch.float64)
                blocks[number][tuple(map(slice, given.shape))] = given
        yield rows, blocks


def _check_finite(scores: Float32Array, name: str) -> None:
    # NaN would compare as "not viral" in every later step, and nobody would notice.
    bad_rows = np.unique(np.nonzero(~np.isfinite(scores))[0])
    if len(bad_rows):
        raise ClassifierError(
            f"{len(bad_rows)} of {len(scores)} {name}, the first at {bad_rows[0]}, have no finite "
            "score because their embeddings contain NaN or infinity; compute them again"
        )


def _describe_features(dna: tuple[str, int | None], protein: tuple[str, int | None]) -> str:
    numbers = f"{dna[0]} {dna[1] or '?'} + {protein[0]} {protein[1] or '?'}"
    total = dna[1] and protein[1] and dna[1] + protein[1]
    return f"{total} = {numbers}" if total else numbers
