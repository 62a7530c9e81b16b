"""Labelled genomes in memory and in files: 2 bits a base, and what each sequence is.

Shapes: S sequences, N bases of all of them end to end, R runs of ambiguous letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from virnucpro.training.stretches import AMBIGUOUS, CODE_OF_BYTE

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)

LABELS = ("split", "class", "sub", "group")
"""What is known of a sequence; in an index.tsv these are columns."""


class Genomes(NamedTuple):
    """Sequences end to end, and the labels of each.

    Attributes:
        codes_N: uint8, the bases.
        start_S: int64, where each sequence starts.
        length_S: int64.
        labels: For each of `LABELS` the index of each sequence's name in `names`, int64 (S,).
        names: For each of `LABELS` the names.
    """

    codes_N: Tensor
    start_S: Tensor
    length_S: Tensor
    labels: dict[str, Tensor]
    names: dict[str, list[str]]

    def to(self, device: torch.device) -> Genomes:
        """Return the same on `device`."""
        labels = {name: label.to(device) for name, label in self.labels.items()}
        codes_N, start_S, length_S = (
            tensor.to(device) for tensor in (self.codes_N, self.start_S, self.length_S)
        )
        return Genomes(codes_N, start_S, length_S, labels, self.names)


def write_genomes(path: Path, sequences: list[bytes], labels: dict[str, list[str]]) -> None:
    """Write sequences and their labels to `path`, an .npz that holds no pickle.

    Args:
        path: The file to write; an existing one is replaced.
        sequences: The letters of each.
        labels: For each of `LABELS` the name for each sequence.
    """
    codes_N = np.frombuffer(b"".join(sequences).translate(CODE_OF_BYTE), np.uint8)
    is_ambiguous = np.pad((codes_N == AMBIGUOUS).astype(np.int8), 1)
    edges = np.flatnonzero(np.diff(is_ambiguous))
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "bases": _pack(codes_N),
        "length": np.array([len(sequence) for sequence in sequences], np.int64),
        "ambiguous_start": edges[::2],
        "ambiguous_length": edges[1::2] - edges[::2],
    }
    for name in LABELS:
        arrays[f"{name}_names"], index = np.unique(labels[name], return_inverse=True)
        arrays[name] = index.astype(np.uint16)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_genomes(paths: Sequence[Path], split: str) -> Genomes:
    """Return the sequences of one split of files that `write_genomes` made.

    Raises:
        KeyError: A file lacks an array that `write_genomes` writes.
        ValueError: A file is none of ours or holds a pickle, or no file has a sequence of `split`.
    """
    files = [_read_file(path, split) for path in paths]
    names = {
        name: sorted({value for _, _, labels in files for value in labels[name].tolist()})
        for name in LABELS
    }
    if split not in names["split"]:
        raise ValueError(f"{', '.join(map(str, paths))}: hold no sequence of the split {split}")
    codes_N, length_S = (np.concatenate([file[part] for file in files]) for part in (0, 1))
    labels = {
        name: np.searchsorted(names[name], np.concatenate([labels[name] for *_, labels in files]))
        for name in LABELS
    }
    return Genomes(
        torch.from_numpy(codes_N),
        torch.from_numpy(np.cumsum(length_S) - length_S),
        torch.from_numpy(length_S),
        {name: torch.from_numpy(label) for name, label in labels.items()},
        names,
    )


def _read_file(
    path: Path, split: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], dict[str, npt.NDArray[np.str_]]]:
    """Return codes, lengths and labels of the sequences of `split` in one file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    length_S = arrays["length"]
    codes_N = _unpack(arrays["bases"], int(length_S.sum()))
    runs = zip(arrays["ambiguous_start"], arrays["ambiguous_length"], strict=True)
    for start, length in runs:
        codes_N[start : start + length] = AMBIGUOUS
    labels = {name: arrays[f"{name}_names"][arrays[name]] for name in LABELS}
    is_wanted_S = labels["split"] == split
    return (
        codes_N[np.repeat(is_wanted_S, length_S)],
        length_S[is_wanted_S],
        {name: label[is_wanted_S] for name, label in labels.items()},
    )


def keep_groups(genomes: Genomes, share: float) -> Genomes:
    """Return the genomes of a share of the groups of each sub-class, the same each time."""
    labels = genomes.labels
    units_U3, unit_S = torch.unique(
        torch.stack([labels[name] for name in ("class", "sub", "group")], 1),
        dim=0,
        return_inverse=True,
    )
    rank_U = torch.rand(len(units_U3), generator=torch.Generator().manual_seed(0))
    is_kept_U = torch.zeros(len(units_U3), dtype=torch.bool)
    for kind in units_U3[:, :2].unique(dim=0):
        members = (units_U3[:, :2] == kind).all(1).nonzero()[:, 0]
        num_kept = max(1, round(share * len(members)))
        is_kept_U[members[rank_U[members].argsort()[:num_kept]]] = True
    is_kept_S = is_kept_U[unit_S]
    return genomes._replace(
        start_S=genomes.start_S[is_kept_S],
        length_S=genomes.length_S[is_kept_S],
        labels={name: label[is_kept_S] for name, label in labels.items()},
    )


def _pack(codes_N: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return four bases a byte, the first in the lowest bits; an ambiguous one becomes an A."""
    quads = np.pad(codes_N & 3, (0, -len(codes_N) % 4)).reshape(-1, 4)
    packed: npt.NDArray[np.uint8] = (quads << _SHIFTS).sum(1, dtype=np.uint8)
    return packed


def _unpack(packed: npt.NDArray[np.uint8], num_bases: int) -> npt.NDArray[np.uint8]:
    quads: npt.NDArray[np.uint8] = packed[:, None] >> _SHIFTS & np.uint8(3)
    return quads.reshape(-1)[:num_bases]
