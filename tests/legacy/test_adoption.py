"""Runs that the original or the fork began, finished by `predict --resume`."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests import legacy_files as old
from tests.checkpoints.test_parts import IDENTITY
from tests.runs import assert_tables_equal_but_for_rounding, read_tables, write_reads
from tests.workflows.test_predict import assert_same_table
from tools.make_demo_weights import DNA_DIM, PROTEIN_DIM
from virnucpro import PredictConfig, predict
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import FrameRule, MigrateConfig
from virnucpro.errors import IdentityMismatchError
from virnucpro.legacy.adoption import adopt_legacy_run
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store, open_frame_store
from virnucpro.workflows.migrate import migrate_features

pytestmark = pytest.mark.slow

NUM_READS = 60
FRAMES_PER_FILE = 40


class Old(NamedTuple):
    """What an old program would know of the input: embeddings and sequences by id."""

    dna: dict
    protein: dict
    dna_sequences: dict
    protein_sequences: dict


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    return write_reads(tmp_path_factory.mktemp("inputs") / "s.fa", NUM_READS)


@pytest.fixture(scope="module")
def undisturbed(reads, demo_weights, tmp_path_factory):
    """The directory of a run from the start."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    predict(make_config(reads, output_dir, demo_weights, resume=False))
    return output_dir


@pytest.fixture(scope="module")
def known(undisturbed):
    """What that run knows, as an old program would have written it."""
    store = open_frame_store(undisturbed / "checkpoints/frames")
    ids = store.frame_ids(0, store.num_rows)
    columns = []
    for alphabet in ("dna", "protein"):
        source = store.sequences(alphabet)
        reader = EmbeddingReader(finished_parts(undisturbed / "checkpoints" / alphabet))
        columns.append(dict(zip(ids, reader.gather(source.representatives), strict=True)))
    for alphabet in ("dna", "protein"):
        sequences = store.sequences(alphabet).get_many(np.arange(store.num_rows))
        columns.append(dict(zip(ids, sequences, strict=True)))
    assert store.num_rows > 2 * FRAMES_PER_FILE
    return Old(*columns)


def make_config(reads, output_dir, weights, **settings) -> PredictConfig:
    return PredictConfig(
        **{"inputs": reads, "output_dir": output_dir, "device": "cpu", "resume": True}
        | weights
        | settings
    )


def batches_of(frames: dict) -> list[dict]:
    items = list(frames.items())
    starts = range(0, len(items), FRAMES_PER_FILE)
    return [dict(items[start : start + FRAMES_PER_FILE]) for start in starts]


def write_run(output_dir: Path, known: Old, *, original: bool = False) -> None:
    """Write what a run leaves before it embeds: the sequences of all frames, and of each file."""
    infix = "_identified" if original else ""
    old.write_fasta(output_dir / f"s{infix}_nucleotide.fa", known.dna_sequences)
    old.write_fasta(output_dir / f"s{infix}_protein.faa", known.protein_sequences)
    for name, sequences in (
        ("nucleotide", known.dna_sequences),
        ("protein", known.protein_sequences),
    ):
        for number, batch in enumerate(batches_of(sequences), start=1):
            old.write_fasta(output_dir / f"s_{name}" / f"output_{number}.fa", batch)


def write_original(output_dir: Path, known: Old) -> None:
    write_run(output_dir, known, original=True)
    for number, batch in enumerate(batches_of(known.dna), start=1):
        path = output_dir / f"s_nucleotide/output_{number}_DNABERT_S.pt"
        old.save(path, old.dna_document(batch))
    for number, batch in enumerate(batches_of(known.protein), start=1):
        # Sorted by length, as the original batched its proteins.
        order = sorted(batch, key=lambda name: len(known.protein_sequences[name]), reverse=True)
        path = output_dir / f"s_protein/output_{number}_ESM.pt"
        old.save(path, old.protein_document({name: batch[name] for name in order}))


def write_v1(output_dir: Path, known: Old, *, done: bool = True) -> None:
    write_run(output_dir, known)
    for number, batch in enumerate(batches_of(known.dna), start=1):
        path = output_dir / f"s_nucleotide/output_{number}_DNABERT.pt"
        old.save(path, old.versioned(old.dna_document(batch)), done=done)
    for number, batch in enumerate(batches_of(known.protein), start=1):
        path = output_dir / f"s_protein/output_{number}_ESM.pt"
        old.save(path, old.versioned(old.protein_document(batch)), done=done)


def write_v2(output_dir: Path, known: Old, *, done: bool = True) -> None:
    write_run(output_dir, known)
    for number, batch in enumerate(batches_of(known.dna), start=1):
        path = output_dir / f"s_nucleotide/output_{number}_DNABERT.pt"
        old.save(path, old.versioned(old.dna_document(batch)), done=done)
    first, *others = batches_of(known.protein)
    old.write_shard(output_dir / "esm_v2/shard_0.h5", first)
    for number, batch in enumerate(others):
        path = output_dir / f".checkpoints/shard_1/batch_{number:05d}.pt"
        old.save(path, old.batch_document(batch), done=done, protocol=4)


WRITERS = {"original": write_original, "v1.0": write_v1, "v2.0": write_v2}


def rows_embedded(output_dir: Path) -> dict[str, int]:
    passes = json.loads((output_dir / "run.json").read_text())["passes"]
    return {name: sum(each["num_rows"] for each in summaries) for name, summaries in passes.items()}


def resume(reads, output_dir, weights, **settings) -> dict[str, int]:
    predict(make_config(reads, output_dir, weights, **settings))
    return rows_embedded(output_dir)


NOTHING = {"DNA embeddings": 0, "protein embeddings": 0}


@pytest.mark.parametrize("program", WRITERS)
def test_a_finished_run_needs_no_computing(
    reads, known, undisturbed, demo_weights, tmp_path, monkeypatch, program
):
    if program == "original":
        # As for large files: several processes read them.
        monkeypatch.setattr("virnucpro.legacy.adoption._LITTLE_BYTES", 0)
    WRITERS[program](tmp_path, known)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert resume(reads, tmp_path, demo_weights) == NOTHING
    assert read_tables(tmp_path) == read_tables(undisturbed)
    assert all(path.read_bytes() == content for path, content in before.items())
    parts = [finished_parts(tmp_path / f"checkpoints/{name}") for name in ("dna", "protein")]
    # A second time finds everything in place.
    assert resume(reads, tmp_path, demo_weights) == NOTHING
    assert parts == [
        finished_parts(tmp_path / f"checkpoints/{name}") for name in ("dna", "protein")
    ]


@pytest.mark.parametrize("status", ["completed", "in_progress", "failed"])
@pytest.mark.parametrize("num_stages", range(len(old.STAGES) + 1))
def test_a_run_of_the_fork_in_every_state(
    reads, known, undisturbed, demo_weights, tmp_path, num_stages, status
):
    """Stages before the last one are complete; of one that is not, half of the files are there."""
    done = num_stages % 2 == 0
    write_v1(tmp_path, known, done=done)
    statuses = ["completed"] * (num_stages - 1) + [status] * (num_stages > 0)
    old.write_state(tmp_path, statuses)
    kept_of = {}
    for stage, name in (("NUCLEOTIDE_FEATURES", "nucleotide"), ("PROTEIN_FEATURES", "protein")):
        place = old.STAGES.index(stage)
        files = sorted((tmp_path / f"s_{name}").glob("*.pt"))
        state = statuses[place] if place < len(statuses) else "not_started"
        kept = {"completed": len(files), "not_started": 0}.get(state, len(files) // 2)
        for path in files[kept:]:
            path.unlink()
        kept_of[name] = (kept, len(files))
    embedded = resume(reads, tmp_path, demo_weights)
    assert_tables_equal_but_for_rounding(tmp_path, undisturbed)
    whole = rows_embedded(undisturbed)
    for (kept, total), name in zip(kept_of.values(), whole, strict=True):
        assert (embedded[name] == 0) == (kept == total)
        assert (embedded[name] == whole[name]) == (kept == 0)


def test_an_unfinished_or_damaged_file_is_computed_again(
    reads, known, undisturbed, demo_weights, tmp_path, caplog
):
    write_v1(tmp_path, known)
    dna_1 = tmp_path / "s_nucleotide/output_1_DNABERT.pt"
    old.save(dna_1, old.versioned(old.dna_document(batches_of(known.dna)[0]), "in_progress"))
    protein_2 = tmp_path / "s_protein/output_2_ESM.pt"
    protein_2.write_bytes(protein_2.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        embedded = resume(reads, tmp_path, demo_weights)
    assert all(0 < num <= FRAMES_PER_FILE for num in embedded.values())
    assert f"{dna_1}: not used: was not finished" in caplog.text
    assert f"{protein_2}: not used: cannot be read" in caplog.text
    assert_tables_equal_but_for_rounding(tmp_path, undisturbed)


def test_wrong_generations_are_not_taken(reads, known, undisturbed, demo_weights, tmp_path, caplog):
    write_run(tmp_path, known)
    values = np.array(list(known.dna.values()))
    padded = {"nucleotide": list(known.dna), "data": old.torch.tensor(values + 1)}
    old.save(tmp_path / "s_nucleotide/output_1_DNABERT_S.pt", padded)
    with caplog.at_level(logging.WARNING):
        assert resume(reads, tmp_path, demo_weights) == rows_embedded(undisturbed)
    assert "averaged over padding" in caplog.text
    assert read_tables(tmp_path) == read_tables(undisturbed)


def test_merged_files_alone(reads, known, undisturbed, demo_weights, tmp_path, caplog):
    old.save(
        tmp_path / "s_merged/output_1_merged.pt", old.merged_document(known.dna, known.protein)
    )
    with caplog.at_level(logging.WARNING):
        assert resume(reads, tmp_path, demo_weights) == NOTHING
    (tmp_path / "s_merged/output_1_merged.pt").unlink()
    assert "by the names of the frames alone" in caplog.text
    assert "make sure that the older run used the same weights" in caplog.text
    assert read_tables(tmp_path) == read_tables(undisturbed)


def unrepeated_record(known: Old) -> str:
    """Return the id of a record none of whose frames has the sequence of another."""
    counts = Counter([*known.dna_sequences.values(), *known.protein_sequences.values()])
    repeated = {
        name.partition("_chunk_")[0]
        for name in known.dna
        if counts[known.dna_sequences[name]] + counts[known.protein_sequences[name]] > 2
    }
    names = [name.partition("_chunk_")[0] for name in known.dna]
    return next(name for name in names if name not in repeated)


def test_frames_with_another_sequence_are_computed(
    reads, known, undisturbed, demo_weights, tmp_path
):
    record = unrepeated_record(known)
    name = next(name for name in known.dna if name.startswith(f"{record}_chunk_"))
    changed = known.dna_sequences | {name: known.dna_sequences[name][::-1]}
    wrong = known.dna | {name: known.dna[name] + 1}
    write_v1(tmp_path, known._replace(dna_sequences=changed, dna=wrong))
    assert resume(reads, tmp_path, demo_weights) == NOTHING | {"DNA embeddings": 1}
    assert read_tables(tmp_path) == read_tables(undisturbed)


def test_ids_of_several_records_are_computed(demo_weights, known, reads, tmp_path):
    """A second record has an id that is taken; the old run kept what it knew of one of them."""
    record = unrepeated_record(known)
    names = [name for name in known.dna if name.startswith(f"{record}_chunk_")]
    twice = tmp_path / "s.fa"
    twice.write_text(f"{reads.read_text()}>{record}\n{'ACGGCTGATTGCACG' * 4}\n")
    predict(make_config(twice, tmp_path / "new", demo_weights))
    write_v1(tmp_path / "old", known)
    embedded = resume(twice, tmp_path / "old", demo_weights)
    store = open_frame_store(tmp_path / "new/checkpoints/frames")
    new_names = store.frame_ids(len(known.dna), store.num_rows)
    in_both = set(names) & set(new_names)
    assert in_both
    assert embedded["DNA embeddings"] == len(new_names) + len(in_both)
    # Another input makes other batches, and those the last bits.
    table = "s_merged/prediction_results.txt"
    assert_same_table(tmp_path / "old" / table, tmp_path / "new" / table, bound=1e-5)


def test_a_run_with_other_chunks_is_left_alone(
    reads, known, undisturbed, demo_weights, tmp_path, caplog
):
    write_v1(tmp_path, known)
    old.write_state(tmp_path, ["completed"] * 9, expected_length=300)
    with caplog.at_level(logging.WARNING):
        assert resume(reads, tmp_path, demo_weights) == rows_embedded(undisturbed)
    assert "used chunks of 300 bp, and this run 500: its features are not used" in caplog.text


def test_old_features_do_not_fit_another_frame_rule(reads, known, tmp_path, caplog):
    directory = RunDirectory(tmp_path / "out", "s")
    write_run(directory.path, known)
    old.save(directory.path / "s_nucleotide/output_1_DNABERT_S.pt", old.dna_document(known.dna))
    rule = FrameRule("open", genetic_code=11)
    store = build_frame_store(
        [str(reads)], directory.frame_store_dir, StoreSettings(500, rule=rule)
    )
    identity = replace(IDENTITY, frame_rule=str(rule))
    assert adopt_legacy_run(directory, store, {"dna": identity}, {"dna": np.arange(1)}) == {}
    assert "embedded open frames, and the frame rule of this run is open:code=11" in caplog.text
    assert not directory.parts_dir("dna").exists()


def test_rows_that_the_run_does_not_embed_are_not_taken_over(reads, known, tmp_path, caplog):
    directory = RunDirectory(tmp_path / "out", "s")
    write_run(directory.path, known)
    old.save(directory.path / "s_nucleotide/output_1_DNABERT_S.pt", old.dna_document(known.dna))
    store = build_frame_store([str(reads)], directory.frame_store_dir, StoreSettings(500))
    identities = {"dna": replace(IDENTITY, embedding_dim=DNA_DIM)}
    nothing = np.empty(0, np.int64)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert adopt_legacy_run(directory, store, identities, {"dna": nothing}) == {}
    assert caplog.text == ""
    wanted = store.sequences("dna").representatives[:1]
    assert adopt_legacy_run(directory, store, identities, {"dna": wanted})["dna"] == 1
    assert finished_rows(finished_parts(directory.parts_dir("dna"))).tolist() == wanted.tolist()


def test_files_of_other_inputs_are_left_alone(reads, known, undisturbed, demo_weights, tmp_path):
    write_v1(tmp_path, known)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("s_", "s_2_"))
    assert resume(reads, tmp_path, demo_weights) == rows_embedded(undisturbed)


def test_features_of_another_size_are_left_alone(
    reads, known, undisturbed, demo_weights, tmp_path, caplog
):
    wide = {name: np.tile(vector, 2) for name, vector in known.dna.items()}
    write_v1(tmp_path, known._replace(dna=wide))
    with caplog.at_level(logging.WARNING):
        embedded = resume(reads, tmp_path, demo_weights)
    assert embedded == rows_embedded(undisturbed) | {"protein embeddings": 0}
    assert f"wanted (rows, {DNA_DIM})" in caplog.text
    assert read_tables(tmp_path) == read_tables(undisturbed)


def test_nothing_is_taken_into_a_run_that_is_about_to_be_refused(
    reads, known, undisturbed, demo_weights, tmp_path
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    write_v1(tmp_path, known)
    (tmp_path / "checkpoints/protein/part-00000-000000.h5").unlink()
    before = sorted(tmp_path.rglob("*.h5"))
    with pytest.raises(IdentityMismatchError):
        predict(make_config(reads, tmp_path, demo_weights, min_length_bp=50))
    assert sorted(tmp_path.rglob("*.h5")) == before


def test_what_migrate_wrote_is_taken(reads, known, undisturbed, demo_weights, tmp_path):
    write_v2(tmp_path / "old", known)
    dims = EmbeddingDims(DNA_DIM, PROTEIN_DIM)
    migrate_features(
        MigrateConfig(
            sources=(tmp_path / "old",),
            output_path=tmp_path / "new",
            dna_dim=dims.dna,
            protein_dim=dims.protein,
            jobs=1,
        )
    )
    assert resume(reads, tmp_path / "new", demo_weights) == NOTHING
    assert read_tables(tmp_path / "new") == read_tables(undisturbed)
