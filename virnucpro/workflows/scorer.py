"""Scoring and embedding sequences that are in memory, from Python."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.checkpoints.parts import read_part
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import EmbedConfig, PredictConfig
from virnucpro.embedding.jobs import make_frame_jobs
from virnucpro.embedding.models import HeldModel, open_frame_models
from virnucpro.embedding.passes import run_passes
from virnucpro.errors import InputError, UsageError, brief
from virnucpro.runtime.run import open_run
from virnucpro.scoring.calls import RecordCalls
from virnucpro.scoring.frame_scores import (
    check_models,
    decide_records,
    open_classifier,
    score_passes,
)
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store
from virnucpro.workflows.embed import embed
from virnucpro.workflows.read_run import import_pandas

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoredRecords:
    """What a scorer says of N sequences, in their order.

    Attributes:
        record_id: The N ids.
        length: int64 (N,), the numbers of letters.
        calls: Arrays of N entries, named as the columns of `records.tsv`.
    """

    record_id: list[str]
    length: Int64Array
    calls: RecordCalls

    def __len__(self) -> int:
        return len(self.record_id)

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas DataFrame with the columns of `records.tsv`, and the ids as its index."""
        columns = {"length": self.length, **self.calls._asdict()}
        index = import_pandas().Index(self.record_id, name="record_id")
        return import_pandas().DataFrame(columns, index=index)


class Scorer:
    """Loads models once, and scores sequences that are in memory as `predict` does.

    The result for a sequence does not depend on the other sequences, except for the last digits and
    for settings that look at all records (`max_fdr`, `preset`, `estimate_viral_share`). Several
    threads may share a scorer, but only one of them computes at a time. A scorer can be pickled;
    its copy in another process loads the models again.

    Args:
        model: `mini`, `300`, `500` or `custom`, as `model_type` of `PredictConfig`.
        settings: Other settings of `PredictConfig`, for example `device` or `model_path`.

    Raises:
        VirnucproError: A setting is wrong, or a model cannot be opened.
    """

    def __init__(self, model: str = "500", **settings: Any) -> None:
        # Starting workers for each call would take longer than what they do for a few sequences.
        given: dict[str, Any] = {"dataloader_workers": 0, "output_dir": "unused"} | settings
        self._config = PredictConfig(inputs=("-",), model_type=model, **given)
        self._arguments = model, settings
        # torch's settings and the loop belong to one caller at a time.
        self._lock = threading.Lock()
        with open_run(self._config) as run:
            # Each call would have to come from all processes at the same time.
            if run.num_processes > 1:
                raise UsageError(
                    "a Scorer computes in one process, and this is a launch of "
                    f"{run.num_processes}; use predict() there"
                )
            self._classifier = open_classifier(self._config)
            opened = open_frame_models(run, self._config, self._classifier.changes)
            check_models(self._config, self._classifier, opened)
            self._run = run
        self._models = [HeldModel.of(one) for one in opened]
        for one in self._models:
            # Now, so that a lack of memory shows here and not at the first sequence.
            one.load_encoder(run.device, run.precision, self._config.attention)

    def __reduce__(self) -> tuple[Any, ...]:
        model, settings = self._arguments
        return functools.partial(Scorer, model, **settings), ()

    def score(self, sequences: Any) -> ScoredRecords:
        """Score DNA sequences, and return their scores and calls.

        Args:
            sequences: A list, another iterable, or a column (pandas, Polars) of texts or of
                Biopython's sequences or records; or a dict from ids to these. Ids are the keys of
                the dict, the index of a pandas column, or the ids of Biopython's records. Otherwise
                the ids are the positions, from 0.

        Raises:
            InputError: A sequence is no text, or has letters that are no nucleotides.
        """
        config = self._config
        with self._lock, _written(sequences) as (ids, fasta):
            store = build_frame_store(
                [str(fasta)],
                fasta.parent / "frames",
                StoreSettings(config.chunk_length_bp, config.min_length_bp, self._classifier.rule),
            )
            # Its parts go with the temporary directory when the call ends.
            directory = RunDirectory(fasta.parent, fasta.stem)
            jobs = make_frame_jobs(
                *(config, directory, store, self._models, self._run.precision),
                reads_chunks=self._classifier.reads_chunks,
            )
            passes = run_passes(self._run, jobs)
            chunks = score_passes(store, passes, self._classifier).chunks
            decision = decide_records(config, store, chunks, self._classifier)
            return ScoredRecords(ids, store.record_lengths, decision.records)


def embed_sequences(
    sequences: Any, backend: str, weights: str | Path, **settings: Any
) -> Float32Array:
    """Return the embeddings of N sequences: float32 (N, E), with NaN for an empty sequence.

    Args:
        sequences: As for `Scorer.score`; DNA or proteins, as the backend reads them.
        backend: The name of a backend.
        weights: A file, a directory or a hub id.
        settings: Other settings of `EmbedConfig`, for example `device`.

    Raises:
        VirnucproError: A setting is wrong, the model cannot be opened, or a sequence is wrong.
    """
    with _written(sequences) as (ids, fasta):
        path = embed(
            EmbedConfig(
                input=str(fasta),
                backend=backend,
                weights=str(weights),
                output_path=fasta.parent / "embeddings.h5",
                **settings,
            )
        )
        part = read_part(path)
        # NaN for empty sequences, which have no row in the file.
        embeddings_NE = np.full((len(ids), part.identity.embedding_dim), np.nan, np.float32)
        if part.num_rows:
            embeddings_NE[part.read_rows()] = part.map_embeddings()
    return embeddings_NE


@contextmanager
def _written(sequences: Any) -> Iterator[tuple[list[str], Path]]:
    """Write sequences to a FASTA file for as long as the body lasts; give their ids and the file.

    So they are read as `predict` reads them, and their work in progress has a place.

    Raises:
        InputError: There is none, or one is no sequence.
    """
    with tempfile.TemporaryDirectory(prefix="virnucpro-") as scratch:
        path = Path(scratch, "sequences.fasta")
        ids = []
        with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
            for name, letters in _name_sequences(sequences):
                # For messages; the caller keeps the id as it is.
                file.write(f">{'_'.join(name.split()) or '-'}\n{letters}\n")
                ids.append(name)
        if not ids:
            raise InputError("no sequences: wanted at least one")
        try:
            yield ids, path
        except InputError as error:
            raise InputError(str(error).replace(str(path), "the sequences")) from error


def _name_sequences(sequences: Any) -> Iterator[tuple[str, str]]:
    """Yield the id and the letters of each sequence."""
    if hasattr(sequences, "columns"):
        raise InputError(
            "the sequences are a whole table; wanted one column of it, for example "
            'table["sequence"]'
        )
    if isinstance(sequences, str | bytes) or not isinstance(sequences, Iterable):
        raise InputError(
            f"the sequences are {brief(sequences)}; wanted a list, a dict or a column of them"
        )
    # A dict and a pandas column both have pairs of ids and values.
    named = sequences.items() if hasattr(sequences, "items") else enumerate(sequences)
    for name, value in named:
        from_record = hasattr(value, "seq") and hasattr(value, "id")
        # A dict names its records itself, and its keys are what the caller knows.
        if from_record and not hasattr(sequences, "items"):
            name = value.id
        letters = value.seq if from_record else value
        if not isinstance(letters, str) and not type(letters).__module__.startswith("Bio.Seq"):
            raise InputError(
                f"sequence {brief(str(name))} is {brief(letters)}; wanted a text or a sequence of "
                "Biopython"
            )
        # Line breaks inside a sequence are usual in texts that were copied from FASTA.
        text = "".join(str(letters).split())
        # It would begin another record in the file, and shift all results that follow.
        if ">" in text:
            raise InputError(f"sequence {brief(str(name))} has the letter '>'; wanted no header")
        yield str(name), text
