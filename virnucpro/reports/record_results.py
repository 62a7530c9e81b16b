"""What a run says of its records and regions, in tables and sequences, and what a person is told.

`predict` writes them first, and `call` replaces them; neither a model nor torch is needed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.digests import read_sha256
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import open_whole, remove_file, replaced_together
from virnucpro.config import CallsConfig
from virnucpro.errors import count_who
from virnucpro.reports.region_tables import (
    list_regions,
    write_bedgraph,
    write_chunks,
    write_regions,
)
from virnucpro.reports.run_json import read_run_json
from virnucpro.reports.tables import (
    format_number,
    in_blocks,
    iterate_rows,
    write_fasta,
    write_records,
)
from virnucpro.reports.viral_reads import write_viral_fastq
from virnucpro.scoring.calls import RecordCalls
from virnucpro.scoring.decisions import Decision
from virnucpro.scoring.regions import ChunkEvidence, Regions, describe_chunks, find_regions
from virnucpro.sequences.frame_store import FrameStore

logger = logging.getLogger(__name__)

CALLS = ("virus", "others", "none")
"""In the order in which people are told of them."""

_LENGTH_EDGES_BP = [int(digit * 10**power) for power in range(2, 6) for digit in (1, 2, 5)]
_NUM_SHARE_BINS = 20
_NUM_MOST_VIRAL = 5
_READ_CHUNK_BP = 300

STALE_NAME = "STALE.txt"
"""Of the file in a report's directory that says that the calls have changed since."""


@dataclass(frozen=True)
class PredictResult:
    """What a run found, and where its files are.

    Attributes:
        directory: The run's directory, which knows the path of every file.
        num_records: Input records; `num_virus`, `num_others` and `num_none` add up to it.
        num_virus_few_chunks: Viral records with fewer than three scored chunks.
        num_proviruses: Viral regions in records that are not called viral.
        num_frames: Open frames or stretches.
        num_unscored_frames: Frames that did not fit the memory of a device.
        seconds: The time of the whole run.
    """

    directory: RunDirectory
    num_records: int
    num_virus: int
    num_others: int
    num_none: int
    num_virus_few_chunks: int
    num_proviruses: int
    num_frames: int
    num_unscored_frames: int
    seconds: float

    @classmethod
    def of(
        cls, directory: RunDirectory, counts: Mapping[str, int], seconds: float
    ) -> PredictResult:
        """Return the result of a run whose run.json has these counts."""
        names = [field.name for field in fields(cls) if field.name.startswith("num_")]
        numbers = {name: counts[name.removeprefix("num_")] for name in names}
        return cls(directory, **numbers, seconds=seconds)

    @property
    def output_dir(self) -> Path:
        """The run directory."""
        return self.directory.path


def write_decision(
    directory: RunDirectory,
    store: FrameStore,
    decision: Decision,
    config: CallsConfig,
    evidence: ChunkEvidence,
) -> dict[str, int]:
    """Write all that the calls decide, and log the rule.

    Args:
        directory: Where the files go.
        store: The records.
        decision: Their calls.
        config: Which files are wanted. Other files of an earlier run are removed.
        evidence: What is known of the chunks.

    Returns:
        The counts of run.json that the calls decide.

    Raises:
        InputError: The reads for viral.fastq are gone, or have changed.
        OutputError: A file cannot be written.
    """
    records = decision.records
    # First, because it reads the inputs again: if they have changed, nothing else is replaced.
    if config.fastq:
        write_viral_fastq(directory.viral_fastq, store, records.call == "virus")
    else:
        remove_file(directory.viral_fastq)
    write_records(
        directory.records_tsv,
        in_blocks(store.record_ids, store.num_records),
        length=store.record_lengths,
        **records._asdict(),
    )
    share = decision.rule.viral_share
    chunks = describe_chunks(evidence, share)
    write_chunks(directory.chunks_tsv, store, chunks)
    write_bedgraph(directory.scores_bedgraph, store, chunks)
    regions = find_regions(store, chunks, records, evidence, share)
    write_regions(directory, store, regions)
    write_fasta(directory.viral_fasta, _head_viral_records(store, records, regions))
    if config.regions == "provirus":
        write_fasta(directory.proviruses_fasta, _cut_proviruses(store, regions))
    else:
        # Otherwise the file of earlier calls would stay beside these.
        remove_file(directory.proviruses_fasta)
    logger.info("%s", decision.rule.describe())
    for warning in decision.warnings:
        logger.warning("%s", warning)
    return decision.counts() | {"proviruses": int(regions.is_provirus.sum())}


@contextmanager
def replaced_results(directory: RunDirectory) -> Iterator[None]:
    """Let the results that the body writes replace those of before, all together at its end.

    The page of before goes, too. A report of `evaluate` is marked if it is out of date now.

    Raises:
        OutputError: A file cannot be written.
    """
    before = _digest(directory.records_tsv)
    with replaced_together():
        # It is made of the new results later, and must not show others if that fails.
        remove_file(directory.report_html)
        yield
    # Compared by content: calls that came out the same leave the report true.
    if before != _digest(directory.records_tsv):
        _mark_stale(directory.evaluation_dir)


def _head_viral_records(
    store: FrameStore, records: RecordCalls, regions: Regions
) -> Iterator[tuple[str, str]]:
    """Yield the viral records; each header has the score, the probability and the regions."""
    # Every viral record has a region, and regions come in the order of the records.
    is_viral = ~regions.is_provirus
    spans = iterate_rows(regions.record[is_viral], regions.start[is_viral], regions.end[is_viral])
    for index, group in groupby(spans, key=itemgetter(0)):
        places = ",".join(f"{start}-{end}" for _, start, end in group)
        chance = format_number(float(records.probability[index]))
        # `float`, because NumPy writes its own numbers as np.float64(0.5).
        words = f"score={float(records.score[index])!r} probability={chance} regions={places}"
        for read in store.reads(index):
            yield f"{read.header} {words}", read.sequence


def describe_calls(store: FrameStore, decision: Decision) -> dict[str, Any]:
    """Return what run.json says of the calls, but for their numbers under `counts`.

    Each histogram has its edges, and for each call the records from each edge up to the next.
    """
    records = decision.records
    reasons = Counter(records.reason.tolist())
    # A Counter does not mind if nobody has it.
    del reasons["-"]
    # The last bin ends behind the longest record, so the bins hold all records.
    edges = [0, *_LENGTH_EDGES_BP, max(10**6, int(store.record_lengths.max(initial=0)))]
    shares = [number / _NUM_SHARE_BINS for number in range(_NUM_SHARE_BINS + 1)]
    histograms = {
        name: {"edges": places}
        | {call: np.histogram(values[records.call == call], places)[0].tolist() for call in CALLS}
        for name, values, places in (
            ("length", store.record_lengths, edges),
            ("score", records.score, shares),
            ("probability", records.probability, shares),
        )
    }
    value = records.score if decision.rule.by == "score" else records.probability
    # NaN comes last, and of equal records the earlier one first.
    most_viral = np.argsort(-value, kind="stable")[:_NUM_MOST_VIRAL]
    names = ("score", "probability", "call", "confidence")
    return {
        "calls": asdict(decision.rule),
        "most_viral": [
            {"record_id": store.record_id(place), "length": int(store.record_lengths[place])}
            | {name: _as_json(getattr(records, name)[place]) for name in names}
            for place in most_viral[~np.isnan(value[most_viral])].tolist()
        ],
        "reasons": dict(sorted(reasons.items())),
        "histograms": histograms,
        "warnings": decision.warnings,
    }


def summarize_run(directory: RunDirectory, *, is_share: bool = False) -> dict[str, Any]:
    """Return the summary of a finished run that a command prints at its end, in words of JSON.

    A share of a run has no calls to tell of.

    Raises:
        InputError: run.json cannot be read.
    """
    run = read_run_json(directory.run_json, is_share=is_share)
    of_calls = ("reasons", "calls", "most_viral", "warnings")
    keys = ("shard", "counts", "seconds") if is_share else ("counts", *of_calls, "seconds")
    return {name: run[name] for name in keys} | {"output_dir": str(directory.path)}


def _cut_proviruses(store: FrameStore, regions: Regions) -> Iterator[tuple[str, str]]:
    for region in list_regions(store, regions):
        if region.is_provirus:
            yield (
                f"{region.name} record={region.record_id} start={region.start} end={region.end} "
                f"score={region.score!r} probability={format_number(region.probability)}",
                # Positions in a pair count through both mates.
                "".join(read.sequence for read in store.reads(region.record))[
                    region.start : region.end
                ],
            )


def note_short_records(store: FrameStore) -> None:
    """Log how many records are shorter than a chunk, and what to expect of them."""
    length_bp = store.chunk_length_bp
    # Records below --min-length-bp have no chunk, and get no call.
    num_chunks = np.diff(store.record_first_chunk)
    is_short = (num_chunks == store.reads_per_record) & (
        store.record_lengths < store.reads_per_record * length_bp
    )
    num_short = int(np.count_nonzero(is_short))
    if not num_short:
        return
    chunk = f"a chunk of {length_bp:,} bp"
    if store.reads_per_record == 1:
        who = count_who(num_short, "record", "are", of=store.num_records)
        what = f"shorter than {chunk}"
        why = "each is one chunk, so its call rests on one score and is less sure"
    else:
        who = count_who(num_short, "pair", "have", of=store.num_records)
        what = f"reads shorter than {chunk}"
        why = "each read is one chunk, so the call rests on two scores and is less sure"
    remedy = "see docs/results.md, Short records"
    # A few short contigs among long ones are no reads.
    if length_bp > _READ_CHUNK_BP and 2 * num_short > np.count_nonzero(num_chunks):
        remedy = "for reads, use a classifier for 300 bp (-m 300, or -m mini -e 300)"
    logger.info("%s %s: %s; %s", who, what, why, remedy)


def _as_json(value: Any) -> Any:
    """Return a number or a word of an array as JSON knows it."""
    if isinstance(value, str):
        return value
    return None if np.isnan(value) else float(value)


def _digest(path: Path) -> str | None:
    return read_sha256(path) if path.is_file() else None


def _mark_stale(report_dir: Path) -> None:
    """Say in a report's directory that the calls have changed since; `evaluate` removes that."""
    if not report_dir.is_dir():
        return
    with open_whole(report_dir / STALE_NAME) as file:
        file.write(
            "The calls in records.tsv have changed since this report was written.\n"
            "Run virnucpro evaluate again.\n"
        )
    logger.warning(
        "%s: this report measures the former calls; run virnucpro evaluate again", report_dir
    )
