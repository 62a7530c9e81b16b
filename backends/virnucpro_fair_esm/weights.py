"""Finds and checks the files that fair-esm publishes."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from virnucpro.backend.interface import Weights
from virnucpro.backend.tensors import check_state_dict, check_stated_sizes
from virnucpro.backend.weights import digest_files, get_size, read_pickle
from virnucpro.errors import UsageError, WeightsError
from virnucpro_fair_esm import FAIR_ESM

_PREFIX = re.compile(r"^encoder\.(sentence_encoder\.)?")
_SIZES = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")


class Checkpoint(NamedTuple):
    """An ESM-2 as fair-esm publishes it.

    Attributes:
        num_layers: Of the model.
        embed_dim: Of the model.
        num_heads: Of the model.
        token_dropout: Whether token embeddings are scaled as in training.
        tensors: The parameters, by fair-esm's names.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    token_dropout: bool
    tensors: dict[str, Tensor]


def open_weights(location: str) -> Weights:
    """Find, digest and check the file at `location`.

    Raises:
        WeightsError: It cannot be used.
        UsageError: The package fair-esm cannot be used.
    """
    # fair-esm publishes its files on a server of its own, so there is no hub id to look for.
    path = Path(location).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{location}: no such file; the backend fair-esm reads the .pt files of fair-esm, such "
            "as https://dl.fbaipublicfiles.com/fair-esm/models/esm2_t36_3B_UR50D.pt"
        )
    checkpoint = read_checkpoint(path)
    # Needed later only, but a run should not embed all DNA first.
    import_esm()
    return Weights(location, path, digest_files([path]), checkpoint.embed_dim)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the settings and the tensors of a file, which stay on disk.

    Raises:
        WeightsError: The file is damaged or unsafe, or holds no ESM-2.
    """
    # The one class that fair-esm's files need. Everything else in the pickle is refused.
    document = read_pickle(path, [argparse.Namespace])
    settings = _find_settings(path, document)
    num_layers, embed_dim, num_heads = (get_size(path, settings, name) for name in _SIZES)
    state = check_state_dict(path, document.get("model"))
    tensors = {_PREFIX.sub("", name): tensor for name, tensor in state.items()}
    sizes = {"encoder_layers": num_layers, "encoder_embed_dim": embed_dim}
    # Before a model of these sizes is made: they come from an untrusted file.
    check_stated_sizes(path, sizes, tensors)
    if embed_dim % num_heads:
        raise WeightsError(f"{path}: {num_heads} heads do not divide a width of {embed_dim}")
    token_dropout = bool(settings.get("token_dropout", True))
    return Checkpoint(num_layers, embed_dim, num_heads, token_dropout, tensors)


def _find_settings(path: Path, document: Any) -> dict[str, Any]:
    cfg = document.get("cfg") if isinstance(document, dict) else None
    found = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(found, argparse.Namespace):
        raise WeightsError(
            f"{path}: is no ESM-2 as fair-esm publishes it; for a directory of transformers, use "
            "the backend esm2 or transformers"
        )
    return vars(found)


def import_esm() -> Any:
    """Return the module esm.

    Raises:
        UsageError: It is not installed, or cannot be imported.
    """
    try:
        import esm

        # Another package is called esm, too.
        importlib.import_module("esm.model.esm2")
    except ImportError as error:
        raise UsageError(f"this backend {FAIR_ESM.explain(error)}") from error
    return esm
