"""Job: what a pass is to embed, with which model, and where its parts go."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.checkpoints.finished_work import refuse_other_runs
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import OPEN_RULE, FrameRule, FramesConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.models import Model
from virnucpro.sequences.frame_store import FrameStore, SequenceSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One model over one source of sequences.

    Attributes:
        name: The name of the pass for people, for example `DNA embeddings`.
        model: What embeds.
        source: The sequences.
        rows: int64, the rows of the source to embed: each distinct sequence once.
        parts_dir: Where the parts go, and where finished parts are found.
        input_digest: What the parts say of their input.
        precision: The precision of the run; the model's own may differ.
        attention: How the model computes attention; as in ComputeConfig.
        chunk_length_bp: The length of the chunks; 0 for whole records.
        frame_rule: What of a chunk is embedded; for whole records it does not matter.
        batch_tokens: Token budget of a batch; None for as many as the devices can hold.
        trust_parts: Whether to take finished parts without reading them again.
        shard: Which of the batches to embed: one share's index from 0, and how many shares there
            are; None for all batches.
    """

    name: str
    model: Model
    source: SequenceSource
    rows: Int64Array
    parts_dir: Path
    input_digest: str
    precision: str
    attention: str
    chunk_length_bp: int = 0
    frame_rule: FrameRule = OPEN_RULE
    batch_tokens: int | None = None
    trust_parts: bool = False
    shard: tuple[int, int] | None = None

    @cached_property
    def identity(self) -> Identity:
        """What all parts of the pass have in common."""
        return self.model.make_identity(
            self.input_digest, self.precision, self.chunk_length_bp, self.frame_rule
        )


def refuse_other_parts(
    directory: RunDirectory, store: FrameStore, models: Sequence[Model], precision: str
) -> None:
    """Make sure that all parts in a run's directory are of this store and of these models.

    Raises:
        IdentityMismatchError: A part belongs to another run; nothing was changed.
        FormatVersionError: A part has another version of the format; nothing was changed.
    """
    for model in models:
        identity = model.make_identity(
            store.digest_for_parts, precision, store.chunk_length_bp, store.rule
        )
        # For all models before anything is changed: one directory may belong to another run.
        refuse_other_runs(directory.parts_dir(model.alphabet), identity)


def warn_of_cuts(store: FrameStore, models: Sequence[Model]) -> None:
    """Warn if the sequences of a chunk may be longer than a model reads."""
    for model in models:
        limit = model.backend.info.max_letters
        # A codon has three bases, so a protein is a third as long as its chunk.
        longest = store.chunk_length_bp // (1 if model.alphabet == "dna" else 3)
        if limit is not None and longest > limit:
            logger.warning(
                "%s reads the first %d letters of a sequence, and chunks of %d bp have sequences "
                "of up to %d: the rest of these is not read; shorter chunks are read whole",
                model.name,
                limit,
                store.chunk_length_bp,
                longest,
            )


def make_frame_jobs(
    config: FramesConfig,
    directory: RunDirectory,
    store: FrameStore,
    models: Sequence[Model],
    precision: str,
    rows: Int64Array | None = None,
    *,
    reads_chunks: bool = False,
) -> list[Job]:
    """Return the job of each model over the frame store's `rows`; None for all rows.

    With `reads_chunks`, one DNA of each chunk is embedded: a head over chunks reads no other.
    """
    jobs = []
    for model in models:
        is_dna = model.alphabet == "dna"
        source = store.chunk_dna() if is_dna and reads_chunks else store.sequences(model.alphabet)
        job = Job(
            name="DNA embeddings" if is_dna else "protein embeddings",
            model=model,
            source=source,
            # Chosen rows may be copies: what is embedded for a copy is the first of its equals.
            rows=unique_rows(source) if rows is None else np.unique(source.representatives[rows]),
            parts_dir=directory.parts_dir(model.alphabet),
            input_digest=store.digest_for_parts,
            precision=precision,
            attention=config.attention,
            chunk_length_bp=store.chunk_length_bp,
            frame_rule=store.rule,
            batch_tokens=config.dna_batch_tokens if is_dna else config.protein_batch_tokens,
        )
        jobs.append(job)
    return jobs
