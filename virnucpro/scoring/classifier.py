"""The classifier: the MLP that turns the two embeddings of a frame into P(others) and P(virus).

`virnucpro.scoring.classifier_files` reads and writes its files.

Shapes: N frames, B frames in a block, D numbers for a frame (its DNA embedding, then its protein
embedding), H hidden units, C the two classes of `CLASS_NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from virnucpro.backend.arrays import Float32Array, Float64Array
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import Calibration

CLASS_NAMES = ("others", "virus")
"""The columns of the scores, in the order of the published models."""

BATCH_NORM_EPS = 1e-5
"""The default of torch.nn.BatchNorm1d; a state dict does not contain it."""

_BLOCK_ROWS = 1024


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


def wanted_shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a classifier, given that of its first layer."""
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


class Classifier:
    """A loaded classifier: `Linear -> BatchNorm1d -> ReLU -> Linear -> softmax`, in eval mode.

    Attributes:
        input_dim: D, the numbers that it expects for a frame.
        metadata: What it was trained for; None if its file does not say.
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
        # In eval mode, batch normalization is a scale and a shift, so the first layer absorbs it.
        scale_H = tensors["bn1.weight"] / (tensors["bn1.running_var"] + BATCH_NORM_EPS).sqrt()
        centred_H = tensors["hidden_layer.bias"] - tensors["bn1.running_mean"]
        self._hidden_weight_DH = (tensors["hidden_layer.weight"] * scale_H[:, None]).T.contiguous()
        self._hidden_bias_H = centred_H * scale_H + tensors["bn1.bias"]
        self._output_weight_HC = tensors["output_layer.weight"].T.contiguous()
        self._output_bias_C = tensors["output_layer.bias"]
        self.input_dim = self._hidden_weight_DH.shape[0]

    @property
    def calibration(self) -> Calibration | None:
        """What turns the scores into probabilities; None if there is no calibration."""
        return None if self.metadata is None else self.metadata.calibration

    def check_fits(
        self,
        dna: tuple[str, int],
        protein: tuple[str, int],
        chunk_length_bp: int,
        weights_identities: tuple[str, str],
    ) -> None:
        """Check that the classifier fits the backends, their weights and the chunk length.

        Args:
            dna: The name and the embedding dimension of the DNA backend.
            protein: The same for the protein backend.
            chunk_length_bp: The length of the chunks that records are cut into.
            weights_identities: The identities of the DNA and of the protein weights.

        Raises:
            ClassifierError: It was trained for other dimensions, backends, weights or chunks.
        """
        trained = self.metadata
        given = _describe_features(dna, protein)
        if trained is None:
            wanted, fits = str(self.input_dim), self.input_dim == dna[1] + protein[1]
        else:
            wanted_dna = trained.dna_backend, trained.dna_dim
            wanted_protein = trained.protein_backend, trained.protein_dim
            wanted = _describe_features(wanted_dna, wanted_protein)
            fits = (wanted_dna, wanted_protein) == (dna, protein)
        if not fits:
            raise ClassifierError(
                f"the classifier wants {wanted} numbers for a frame, the backends give {given}; "
                "choose the backends and weights that it was trained on, or another classifier"
            )
        if trained is None:
            return
        if trained.chunk_length_bp != chunk_length_bp:
            raise ClassifierError(
                f"the classifier was trained on chunks of {trained.chunk_length_bp} bp, the run "
                f"cuts chunks of {chunk_length_bp} bp; set the expected length to "
                f"{trained.chunk_length_bp}, or choose another classifier"
            )
        for name, identity, found in zip(
            (trained.dna_backend, trained.protein_backend),
            (trained.dna_weights_identity, trained.protein_weights_identity),
            weights_identities,
            strict=True,
        ):
            if identity not in (None, found):
                raise ClassifierError(
                    f"the classifier was trained on {name} weights {identity}, the run uses "
                    f"{found}; use the same files as the training (the same model in another file "
                    "format has another identity), or choose another classifier"
                )

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
        # A matrix product chooses its kernel, and so the order of its sums, by the number of rows.
        # So all blocks have one size; old rows pad the last one. float64 rounded to float32 hides
        # the differences that the number of threads and the device still make.
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
                "finite score because their embeddings contain NaN or infinity; compute them again"
            )
        return scores_NC

    @torch.inference_mode()
    def _score_block(self, block_BD: Float64Array) -> Float32Array:
        features_BD = torch.from_numpy(block_BD).to(self._device)
        hidden_BH = (features_BD @ self._hidden_weight_DH + self._hidden_bias_H).relu()
        logits_BC = hidden_BH @ self._output_weight_HC + self._output_bias_C
        scores_BC: Float32Array = logits_BC.softmax(dim=1).float().cpu().numpy()
        return scores_BC


def _describe_features(dna: tuple[str, int], protein: tuple[str, int]) -> str:
    return f"{dna[1] + protein[1]} = {dna[0]} {dna[1]} + {protein[0]} {protein[1]}"
