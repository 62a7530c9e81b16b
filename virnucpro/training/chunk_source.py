"""Draws the chunks of each training step anew from labelled sequences, and tokenizes them.

The process that trains draws where chunks lie. Worker processes read the chunks, put errors and
mutations into them, find their stretches and tokenize.

Shapes: S sequences, C chunks, N places for stretches of a chunk, F stretches of all chunks, K
features of a stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array
from virnucpro.backend.interface import Collator, TokenBatch
from virnucpro.config.frame_rule import FrameRule
from virnucpro.embedding.workers import explaining_workers, worker_settings
from virnucpro.runtime.forkserver import start_forkserver
from virnucpro.scoring.chunk_head import stretch_features
from virnucpro.sequences.frame_store import FrameStore
from virnucpro.sequences.frames import (
    Rows,
    count_codons,
    find_rows,
    is_reverse,
    locate_frame_dna,
    reverse_complement,
)
from virnucpro.training.chunk_reader import ChunkReader, Places
from virnucpro.training.corpus import Corpus
from virnucpro.training.drawing import weigh_sequences

Collators = tuple[Collator, Collator]
"""Of DNA and of proteins."""

_MAX_DRAWS = 10
"""How often a chunk is drawn until it has an open frame: most of a genome may have none."""


class TrainingBatch(NamedTuple):
    """Chunks that are computed at once. It is a NamedTuple, so that Accelerate moves it whole.

    Attributes:
        dna: The DNA of each chunk, C sequences; under the rule `open` that of its first open frame.
        protein: The F stretches or open frames, chunk after chunk.
        features_FK: float32, what the head is told of the stretches.
        is_stretch_CN: bool; its F True places are the stretches, row by row.
        is_viral_C: float32, 1 for viral chunks and 0 for others.
        teacher_dna: The same DNA in the teacher's tokens; None without a teacher.
        teacher_protein: The same stretches in the teacher's tokens; None without a teacher.
    """

    dna: TokenBatch
    protein: TokenBatch
    features_FK: Tensor
    is_stretch_CN: Tensor
    is_viral_C: Tensor
    teacher_dna: TokenBatch | None = None
    teacher_protein: TokenBatch | None = None

    def cut(self, max_tokens: int) -> list[TrainingBatch]:
        """Return the chunks in batches of their order.

        Args:
            max_tokens: How many tokens of either alphabet a batch has at most, unless it is of one
                chunk.
        """
        ends_C = self.is_stretch_CN.sum(1).cumsum(0).numpy()
        starts_C = np.concatenate([[0], ends_C[:-1]])
        protein_cost_C = np.add.reduceat(self.protein.lengths_B.numpy(), starts_C)
        total_C = np.cumsum(np.maximum(self.dna.lengths_B.numpy(), protein_cost_C))
        batches = []
        first, before = 0, 0
        while first < len(ends_C):
            last = max(first + 1, int(np.searchsorted(total_C, before + max_tokens, "right")))
            chunks = slice(first, last)
            stretches = slice(int(starts_C[first]), int(ends_C[last - 1]))
            batches.append(
                TrainingBatch(
                    self.dna.take(chunks),
                    self.protein.take(stretches),
                    self.features_FK[stretches],
                    self.is_stretch_CN[chunks],
                    self.is_viral_C[chunks],
                    None if self.teacher_dna is None else self.teacher_dna.take(chunks),
                    None if self.teacher_protein is None else self.teacher_protein.take(stretches),
                )
            )
            first, before = last, int(total_C[last - 1])
        return batches


class LabelledSequences(NamedTuple):
    """The records from which chunks are drawn.

    Attributes:
        directory: The frame store that holds the records.
        record_S: int64, the record of each sequence.
        length_S: int64, in bases.
        is_viral_S: bool.
        weight_S: float64, how often each sequence is drawn; 1 in all.
    """

    directory: Path
    record_S: Int64Array
    length_S: Int64Array
    is_viral_S: BoolArray
    weight_S: Float64Array

    @classmethod
    def of(
        cls, store: FrameStore, corpus: Corpus, groups: Sequence[str], is_chosen_R: BoolArray
    ) -> LabelledSequences:
        """Return the chosen records, half of the draws viral, and other classes alike.

        Records that are too short for a stretch are left out.

        Args:
            store: The records.
            corpus: Their labels.
            groups: The group of each record.
            is_chosen_R: bool (R,), which records are chosen: those of the train split.
        """
        min_codons = store.rule.min_codons if store.rule.kind == "stretches" else 1
        record_S = np.flatnonzero(is_chosen_R & (store.record_lengths >= 3 * min_codons))
        length_S = store.record_lengths[record_S]
        class_S = corpus.record_class[record_S]
        is_viral_S = corpus.is_viral[class_S]
        # All viral classes are one kind, as where `balance` weighs chunks.
        _, kind_S = np.unique(np.where(is_viral_S, -1, class_S), return_inverse=True)
        share_J = np.full(kind_S.max() + 1, 0.5 / max(1, kind_S.max()))
        share_J[0] = 0.5
        _, group_S = np.unique(np.array(groups)[record_S], return_inverse=True)
        tensors = (torch.from_numpy(each) for each in (length_S, kind_S, group_S, share_J))
        weight_S = weigh_sequences(*tensors).numpy()
        return cls(store.directory, record_S, length_S, is_viral_S, weight_S)


class _Task(NamedTuple):
    """What a worker gets to make the batches of one step."""

    places: Places
    seed: int
    max_tokens: int


class ChunkSource:
    """Draws the chunks of training steps; the same seed, step and rank give the same chunks."""

    def __init__(
        self,
        sequences: LabelledSequences,
        rule: FrameRule,
        lengths_bp: tuple[int, ...],
        collators: Collators,
        *,
        max_mutation_rate: float,
        seed: int,
        teacher_collators: Collators | None = None,
    ) -> None:
        """Prepare to draw.

        Args:
            sequences: The labelled sequences.
            rule: What of a chunk is read.
            lengths_bp: The lengths of chunks; one that stands here twice is drawn twice as often.
            collators: Those of DNA and of proteins.
            max_mutation_rate: The largest share of the codons of a stretch that is drawn anew.
            seed: The seed of everything that is drawn.
            teacher_collators: Those of a teacher.
        """
        self.sequences = sequences
        reader = ChunkReader(sequences.directory, rule, max_mutation_rate)
        self.steps = _Steps(reader, rule, collators, teacher_collators)
        self._lengths_bp = np.array(lengths_bp)
        self._seed = seed
        self._cumulative_S = np.cumsum(sequences.weight_S)

    def draw(self, step: int, rank: int, num_chunks: int, max_tokens: int) -> list[TrainingBatch]:
        """Return the batches of a step of one process.

        Chunks without a stretch are left out, so there may be fewer chunks than asked for.

        Args:
            step: The number of the step.
            rank: The number of the process.
            num_chunks: How many chunks this process draws.
            max_tokens: How many tokens a batch has at most, of the alphabet that has more; a single
                chunk may have more.
        """
        return self.steps.__getitems__(self.choose(step, rank, num_chunks, max_tokens))

    def choose(self, step: int, rank: int, num_chunks: int, max_tokens: int) -> _Task:
        """Return what a worker needs to make the batches that `draw` returns."""
        random = np.random.default_rng([self._seed, step, rank])
        sequences = self.sequences
        # Times the sum of all weights, which is 1 but for rounding.
        drawn_C = random.random(num_chunks) * self._cumulative_S[-1]
        drawn_C = np.searchsorted(self._cumulative_S, drawn_C, "right")
        record_length_C = sequences.length_S[drawn_C]
        length_C = np.minimum(random.choice(self._lengths_bp, num_chunks), record_length_C)
        start_C = _draw_starts(random, record_length_C, length_C)
        places = Places(
            sequences.record_S[drawn_C],
            start_C,
            length_C,
            record_length_C,
            sequences.is_viral_S[drawn_C],
        )
        # The longest first, so that the sequences of a batch need little padding.
        order = np.argsort(-length_C, kind="stable")
        return _Task(places.take(order), int(random.integers(1 << 63)), max_tokens)


class _Steps:
    """A dataset whose items are steps; it is small when it is pickled for a worker."""

    def __init__(
        self,
        reader: ChunkReader,
        rule: FrameRule,
        collators: Collators,
        teacher_collators: Collators | None,
    ) -> None:
        self._reader = reader
        self._rule = rule
        self._collators = collators
        self._teacher_collators = teacher_collators

    # torch looks for this method, and gives it what the sampler yields.
    def __getitems__(self, task: _Task) -> list[TrainingBatch]:
        """Return the batches of a step."""
        places, letters = task.places, self._read(task)
        length_C = places.length_C
        rows = _find_rows(letters, length_C, self._rule)
        num_rows_C = np.bincount(rows.chunk, minlength=len(letters))
        kept = np.flatnonzero(num_rows_C)
        if not len(kept):
            return []
        is_whole_F = rows.protein_length == count_codons(length_C[rows.chunk], rows.code)
        features_FK = stretch_features(
            torch.from_numpy(rows.protein_length),
            torch.from_numpy(is_whole_F),
            torch.from_numpy(length_C[rows.chunk]),
        )
        is_stretch_CN = np.arange(self._rule.max_rows) < num_rows_C[kept, None]
        is_viral_C = torch.from_numpy(places.is_viral_C[kept].astype(np.float32))
        ends_C = np.cumsum(num_rows_C[kept])
        if self._rule.kind == "open":
            _cut_frames(letters, length_C, rows, ends_C - num_rows_C[kept])
        ends_F = np.cumsum(rows.protein_length)
        proteins = rows.proteins.decode("ascii")
        sequences = (
            [letters[index].decode("ascii") for index in kept.tolist()],
            [
                proteins[end - length : end]
                for end, length in zip(ends_F.tolist(), rows.protein_length.tolist(), strict=True)
            ],
        )
        return TrainingBatch(
            *collate(self._collators, sequences),
            features_FK,
            torch.from_numpy(is_stretch_CN),
            is_viral_C,
            *(collate(self._teacher_collators, sequences) if self._teacher_collators else ()),
        ).cut(task.max_tokens)

    def _read(self, task: _Task) -> list[bytes]:
        """Return the letters of chunks.

        Under the rule `open`, a chunk without an open frame is drawn again from its record. So
        classes and groups stay balanced, whatever share of their chunks has an open frame.
        """
        letters = self._reader.read(task.places, task.seed)
        if self._rule.kind != "open":
            return letters
        random, missing = np.random.default_rng(task.seed), np.arange(len(letters))
        for _ in range(_MAX_DRAWS - 1):
            length_C = task.places.length_C[missing]
            rows = _find_rows([letters[index] for index in missing], length_C, self._rule)
            missing = np.delete(missing, np.unique(rows.chunk))
            if not len(missing):
                break
            places = task.places.take(missing)
            start_C = _draw_starts(random, places.record_length_C, places.length_C)
            chunks = self._reader.read(
                places._replace(start_C=start_C), int(random.integers(1 << 63))
            )
            for index, chunk in zip(missing.tolist(), chunks, strict=True):
                letters[index] = chunk
        return letters


def _draw_starts(
    random: np.random.Generator, record_length_C: Int64Array, length_C: Int64Array
) -> Int64Array:
    room_C = record_length_C - length_C + 1
    return (random.random(len(room_C)) * room_C).astype(np.int64)


def _find_rows(letters: Sequence[bytes], length_C: Int64Array, rule: FrameRule) -> Rows:
    return find_rows(b"".join(letters), np.cumsum(length_C) - length_C, length_C, rule)


def _cut_frames(
    letters: list[bytes], length_C: Int64Array, rows: Rows, first_rows: Int64Array
) -> None:
    """Put the DNA of each chunk's first open frame in the place of the chunk's letters."""
    chunk, code = rows.chunk[first_rows], rows.code[first_rows]
    start, length = locate_frame_dna(length_C[chunk], code, rows.protein_length[first_rows])
    columns = (chunk, start, start + length, is_reverse(code))
    for index, begin, end, reverse in zip(*(column.tolist() for column in columns), strict=True):
        dna = letters[index][begin:end]
        letters[index] = reverse_complement(dna) if reverse else dna


def open_training_loader(
    source: ChunkSource,
    first_step: int,
    rank: int,
    num_chunks: int,
    max_tokens: int,
    num_workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[list[TrainingBatch]]:
    """Yield the batches of each step from `first_step` on, without end; see `ChunkSource.draw`.

    Args:
        source: What is drawn.
        first_step: The number of the first step.
        rank: The number of this process.
        num_chunks: How many chunks this process draws in a step.
        max_tokens: How many tokens a batch has at most.
        num_workers: How many processes read and tokenize ahead; with 0, this process does so.
        pin_memory: Whether batches lie in memory from which a GPU copies while it computes.

    Raises:
        VirnucproError: The worker processes do not work.
    """
    if num_workers:
        start_forkserver()
    loader: DataLoader[list[TrainingBatch]] = DataLoader(
        source.steps,  # type: ignore[arg-type]
        batch_sampler=_choose_steps(source, first_step, rank, num_chunks, max_tokens),  # type: ignore[arg-type]
        pin_memory=pin_memory,
        # Otherwise the loader draws a number from the generator of the dropout.
        generator=torch.Generator(),
        **worker_settings(num_workers),
    )
    with explaining_workers():
        yield from loader


def _choose_steps(
    source: ChunkSource, first_step: int, rank: int, num_chunks: int, max_tokens: int
) -> Iterator[_Task]:
    step = first_step
    while True:
        yield source.choose(step, rank, num_chunks, max_tokens)
        step += 1


def collate(
    collators: Collators, sequences: tuple[list[str], list[str]]
) -> tuple[TokenBatch, TokenBatch]:
    """Return the batches of DNA and of proteins."""
    dna, protein = (
        collator(np.arange(len(texts)), texts)
        for collator, texts in zip(collators, sequences, strict=True)
    )
    return dna, protein
