"""Regions of whole records, compared with the rule of docs/results.md written out plainly."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.record_calls import make_records
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.calls import RecordCalls
from virnucpro.scoring.decisions import round_shares
from virnucpro.scoring.region_model import RegionModel
from virnucpro.scoring.regions import ChunkEvidence, describe_chunks, find_regions, find_spans
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store

CHUNK_BP = 60
MODEL = RegionModel(least=0.1, most=2.0, switch=1.5, background=0.3, min_length_bp=100)
CALIBRATION = Calibration(slope=1.5, slope_growth=0.4, offset=-0.2, most_chunks=9)


class Plain(NamedTuple):
    record: int
    number: int
    start: int
    end: int
    is_provirus: bool
    num_open_chunks: int
    score: float
    probability: float


def cut_cells(length: int) -> list[tuple[int, int]]:
    """Return the part of a record that each chunk stands for."""
    num_chunks = -(-length // CHUNK_BP)
    overlap = num_chunks * CHUNK_BP - length
    shift = overlap // num_chunks if num_chunks else 0
    num_longer = overlap - shift * (num_chunks - 1)
    chunks, start = [], 0
    for number in range(num_chunks):
        chunks.append((start, min(start + CHUNK_BP, length)))
        start += CHUNK_BP - shift - (number < num_longer)
    borders = [(later[0] + before[1]) // 2 for before, later in pairwise(chunks)]
    return list(pairwise([0, *borders, length])) if chunks else []


def average(scores: list[float], *, by_logit: bool) -> float:
    known = np.array([one for one in scores if one == one])
    if not by_logit:
        return float(known.mean())
    known = known.clip(1e-15, 1 - 1e-15)
    return float(1 / (1 + np.exp(-np.mean(np.log(known / (1 - known))))))


def list_plainly(
    store: FrameStore,
    score: list[float],
    evidence: list[float],
    records: RecordCalls,
    by_logit: bool,
) -> list[Plain]:
    found = []
    bounds = store.record_first_chunk.tolist()
    for record, (first, stop) in enumerate(pairwise(bounds)):
        length, call = int(store.record_lengths[record]), records.call[record]
        cells = cut_cells(length)
        own = np.array(evidence[first:stop])
        spans = zip(*find_spans(own, np.array([0, len(own)]), MODEL), strict=True)
        places = [(cells[a][0], cells[b - 1][1], score[first + a : first + b]) for a, b in spans]
        places = [each for each in places if MODEL.min_length_bp <= each[1] - each[0] < length] * (
            call != "none"
        )
        covered = sum(end - start for start, end, _ in places)
        if call == "virus" and (2 * covered >= length or not places):
            places = [(0, length, score[first:stop])]
        for number, (start, end, inside) in enumerate(places, start=1):
            mean = average(inside, by_logit=by_logit)
            if (start, end) == (0, length):
                mean = records.score[record]
            num_scored = sum(one == one for one in inside)
            rounded = round_shares(np.array([mean]))
            chance = CALIBRATION.probabilities(rounded, np.array([num_scored]), 0.2)
            found.append(
                Plain(
                    *(record, number, start, end, call != "virus", num_scored),
                    *(float(rounded[0]), float(round_shares(chance)[0])),
                )
            )
    return found


@pytest.mark.parametrize("by_logit", [False, True])
def test_regions_are_those_of_the_plain_rule(by_logit: bool, tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds = set()
    for trial in range(20):
        lengths = [rng.choice([0, 40, 90, 300, 301, 620, 1500]) for _ in range(12)]
        path = tmp_path / f"{trial}.fa"
        path.write_text("".join(f">r\n{'A' * length}\n" for length in lengths))
        store = build_frame_store([str(path)], tmp_path / str(trial), StoreSettings(CHUNK_BP))
        assert store.record_lengths.tolist() == lengths
        # Neighbours are alike, so that there are stretches; some chunks have no score.
        score, level = [], 0.5
        for _ in range(store.num_chunks):
            level = rng.random() if rng.random() < 0.15 else level
            score.append(
                float("nan") if rng.random() < 0.15 else min(1.0, level * rng.random() * 2)
            )
        known = ChunkEvidence(np.array(score), CALIBRATION, MODEL, by_logit=by_logit)
        chunks = describe_chunks(known, 0.2)
        spans = pairwise(store.record_first_chunk.tolist())
        has_score = [not np.isnan(chunks.score[first:stop]).all() for first, stop in spans]
        records = make_records([round(rng.random(), 3) if one else np.nan for one in has_score])
        calls = [rng.choice(["virus", "others"]) if one else "none" for one in has_score]
        records = records._replace(call=np.array(calls, object))
        found = find_regions(store, chunks, records, known, 0.2)
        expected = list_plainly(
            store, chunks.score.tolist(), chunks.evidence.tolist(), records, by_logit
        )
        rows = [Plain(*row) for row in zip(*(column.tolist() for column in found), strict=True)]
        assert [row[:6] for row in rows] == [row[:6] for row in expected]
        for row, wanted in zip(rows, expected, strict=True):
            assert row[6:] == pytest.approx(wanted[6:], rel=1e-3)
            length = lengths[row.record]
            kinds.add((row.is_provirus, row.end - row.start == length, row.number > 1))
    # Proviruses and viral parts, first and later ones, and whole records.
    assert kinds >= {
        *((True, False, False), (True, False, True)),
        *((False, False, False), (False, False, True), (False, True, False)),
    }
