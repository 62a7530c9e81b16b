"""Both mates of a pair give one call."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runs import REPOSITORY, read_table
from virnucpro import CallConfig, PredictConfig, call, predict
from virnucpro.errors import IdentityMismatchError
from virnucpro.scoring.calls import sigmoid
from virnucpro.sequences.fasta import RecordReader

pytestmark = pytest.mark.slow


def test_the_score_of_a_pair_is_that_of_the_mean_logit_of_its_mates(tmp_path: Path) -> None:
    rng = random.Random(8)
    records = list(RecordReader(REPOSITORY / "examples" / "example.fasta", "dna"))
    reads: list[list[str]] = [[], []]
    for number in range(24):
        dna = records[number % len(records)].sequence
        begin = rng.randrange(len(dna) - 450)
        for mate, start in enumerate((begin, begin + 300)):
            reads[mate].append(f">p{number} {mate + 1}\n{dna[start : start + 150]}\n")
    paths = [tmp_path / f"reads_{mate}.fa" for mate in (1, 2)]
    for path, texts in zip(paths, reads, strict=True):
        path.write_text("".join(texts))

    def run(name: str, inputs: list[Path], *, paired: bool) -> PredictConfig:
        config = PredictConfig(
            inputs=inputs,
            output_dir=tmp_path / name,
            model_type="mini",
            device="cpu",
            paired=paired,
        )
        predict(config)
        return config

    alone = [
        {
            row["record_id"]: row
            for row in read_table(run(path.stem, [path], paired=False).output_dir / "records.tsv")
        }
        for path in paths
    ]
    config = run("pairs", paths, paired=True)
    log = (config.output_dir / "run.log").read_text()
    assert "24 of 24 pairs have reads shorter than a chunk of 300 bp: each read is one" in log
    wanted = "another run: --paired: the input is in single reads now and was in pairs there"
    with pytest.raises(IdentityMismatchError, match=wanted):
        predict(replace(config, paired=False, resume=True))
    table = config.output_dir / "records.tsv"
    rows = read_table(table)
    assert [row["record_id"] for row in rows] == [f"p{number}" for number in range(24)]
    for row in rows:
        mates = [one[row["record_id"]] for one in alone]
        assert row["num_chunks"] == "2"
        scores = [float(mate["score"]) for mate in mates if mate["score"] != "NA"]
        logits = np.log(scores) - np.log1p(-np.array(scores))
        assert float(row["score"]) == pytest.approx(sigmoid(logits.mean()), abs=2e-4)
    viral = [row["record_id"] for row in rows if row["call"] == "virus"]
    assert viral
    found = list(RecordReader(config.output_dir / "viral.fasta", "dna"))
    assert [record.id for record in found] == [name for name in viral for _ in range(2)]
    before = table.read_bytes()
    call(CallConfig(run_dir=config.output_dir))
    assert table.read_bytes() == before
