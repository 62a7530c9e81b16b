"""Sequences in memory are scored and embedded as files are."""

from __future__ import annotations

import csv
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from Bio import SeqIO

from tests.runs import REPOSITORY, read_table
from virnucpro import PredictConfig, ScoredRecords, Scorer, embed_sequences, predict, read_run
from virnucpro.config import MINI_DIRECTORY
from virnucpro.errors import InputError, UsageError

pytestmark = pytest.mark.slow

EXAMPLE = REPOSITORY / "examples" / "example.fasta"
NUMBERS = ("score", "probability")


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    return {record.id: str(record.seq) for record in SeqIO.parse(EXAMPLE, "fasta")}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer("mini", device="cpu")


@pytest.fixture(scope="module")
def scored(scorer: Scorer, sequences: dict[str, str]) -> ScoredRecords:
    return scorer.score(sequences)


def test_the_numbers_are_those_of_predict(
    scored: ScoredRecords, example_run: Path, tmp_path: Path
) -> None:
    found = scored.to_frame()
    found.to_csv(tmp_path / "found.tsv", sep="\t", na_rep="NA", quoting=csv.QUOTE_NONE)
    assert read_table(tmp_path / "found.tsv") == read_table(example_run / "records.tsv")
    assert {"virus", "others"} == set(found["call"])


def check_equal(found: ScoredRecords, wanted: ScoredRecords, chosen: list[int]) -> None:
    for name in NUMBERS:
        # Batches of other sequences may round otherwise; the numbers have four digits.
        np.testing.assert_allclose(
            getattr(found.calls, name), getattr(wanted.calls, name)[chosen], rtol=0, atol=1.1e-4
        )
    assert found.calls.call.tolist() == wanted.calls.call[chosen].tolist()


def test_a_score_does_not_depend_on_the_other_sequences(
    scorer: Scorer, scored: ScoredRecords, sequences: dict[str, str]
) -> None:
    names = list(sequences)
    chosen = [7, 2, 8]
    check_equal(scorer.score([sequences[names[i]] for i in chosen]), scored, chosen)


def test_threads_share_a_scorer(
    scorer: Scorer, scored: ScoredRecords, sequences: dict[str, str]
) -> None:
    letters = list(sequences.values())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda place: scorer.score([letters[place]]), range(len(letters))))
    for place, found in enumerate(results):
        check_equal(found, scored, [place])


def test_a_scorer_can_be_sent_to_another_process(
    scorer: Scorer, scored: ScoredRecords, sequences: dict[str, str]
) -> None:
    copy = pickle.loads(pickle.dumps(scorer))
    check_equal(copy.score(dict([next(iter(sequences.items()))])), scored, [0])


def test_every_kind_of_collection_is_read(scorer: Scorer, sequences: dict[str, str]) -> None:
    short = {name: letters[:600] for name, letters in list(sequences.items())[:2]}
    records = [record[:600] for record in list(SeqIO.parse(EXAMPLE, "fasta"))[:2]]
    column = pd.DataFrame({"dna": short})["dna"]
    wanted = scorer.score(short)
    assert wanted.record_id == list(short)
    for given, ids in (
        (list(short.values()), ["0", "1"]),
        (iter(short.values()), ["0", "1"]),
        (records, list(short)),
        ([record.seq for record in records], ["0", "1"]),
        (column, list(short)),
        (column.reset_index(drop=True), ["0", "1"]),
        ({"a b": short[next(iter(short))], "c\nd": records[1]}, ["a b", "c\nd"]),
    ):
        found = scorer.score(given)
        assert found.record_id == ids
        assert len(found) == 2
        assert found.calls.score.tolist() == wanted.calls.score.tolist()


def test_sequences_without_a_call_have_a_reason(scorer: Scorer) -> None:
    found = scorer.score(["", "AC", "N" * 600]).to_frame()
    assert found["call"].tolist() == ["none"] * 3
    assert found["reason"].tolist() == ["empty", "too_short", "no_stretch"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ACGT", "the sequences are 'ACGT'; wanted a list"),
        (7, "the sequences are 7;"),
        (pd.DataFrame({"dna": ["ACGT"]}), r"wanted one column of it, for example table\["),
        ([], "no sequences"),
        (["ACGT", None], "sequence '1' is None; wanted a text"),
        (["ACGT\n>b\nACGT"], "sequence '0' has the letter '>'"),
        ({"p": "MKTAYIE"}, "^the sequences, line 1: record 'p' has 'I' at position 6"),
    ],
)
def test_what_is_no_sequence_is_refused(scorer: Scorer, given, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorer.score(given)


def test_settings_are_those_of_predict(sequences: dict[str, str]) -> None:
    strict = Scorer("mini", device="cpu", threshold=1.0, chunk_length_bp=300)
    assert "virus" not in strict.score(sequences).calls.call.tolist()
    with pytest.raises(UsageError, match="--max-fdr and --threshold"):
        Scorer("mini", threshold=0.5, max_fdr=0.1)


def test_embeddings_are_those_of_embed() -> None:
    proteins = ["MKTAYIAKQR", "", "MK"]
    found_NE = embed_sequences(proteins, "esm2", MINI_DIRECTORY / "esm2", device="cpu")
    assert found_NE.shape[0] == 3
    assert np.isnan(found_NE[1]).all()
    (alone_NE,) = embed_sequences(iter(proteins[2:]), "esm2", MINI_DIRECTORY / "esm2", device="cpu")
    np.testing.assert_allclose(found_NE[2], alone_NE, atol=1e-5)


# Finished runs


def test_a_finished_run_is_read(example_run: Path, scored: ScoredRecords) -> None:
    run = read_run(example_run)
    pd.testing.assert_frame_equal(
        run.records, scored.to_frame(), check_dtype=False, check_index_type=False
    )
    chunks = run.chunks
    assert len(chunks) == run.document["counts"]["chunks"]
    assert chunks.groupby("record_id").size().to_dict() == run.records["num_chunks"].to_dict()
    assert set(run.regions["kind"]) == {"virus"}
    embeddings = run.embeddings
    assert embeddings.n_obs == run.document["counts"]["frames"]
    assert np.isfinite(embeddings.X).all()


def test_chunks_without_a_score_have_columns_of_numbers(tmp_path: Path) -> None:
    reads = tmp_path / "reads.fa"
    sense = "GCAGATCTCAAATCCGGTCATTTCCAGACGATGGTC"
    reads.write_text(f">known\n{(sense * 34)[:1200]}\n>unknown\n{'N' * 1200}\n")
    config = PredictConfig(
        inputs=str(reads), output_dir=tmp_path / "run", model_type="mini", device="cpu"
    )
    chunks = read_run(predict(config).output_dir).chunks
    assert chunks["scored"].tolist() == [True, True, False, False]
    numbers = chunks[["score", "probability", "evidence"]]
    assert set(numbers.dtypes) == {np.dtype(np.float64)}
    assert (numbers.notna().all(axis=1) == chunks["scored"]).all()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted the output directory of a finished"):
        read_run(tmp_path)
