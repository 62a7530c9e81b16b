"""A store whose rows are stretches: what a row is, what equal rows share, and the rule it keeps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.errors import CheckpointError
from virnucpro.scoring.chunk_head import stretch_features
from virnucpro.sequences import frames
from virnucpro.sequences.frame_store import (
    FrameStore,
    StoreSettings,
    build_frame_store,
    open_frame_store,
    writing,
)
from virnucpro.sequences.frame_store.files import digest_manifest
from virnucpro.sequences.records import ROW_ID

RULE = FrameRule("stretches", 3, 15)
# Twelve codons and no stop.
SENSE = "GCAGATCTCAAATCCGGTCATTTCCAGACGATGGTC"
CHUNK_LENGTH_BP = 120


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    """Random records, one of them twice, one without a stretch, and one without a stop codon."""
    rng = random.Random(5)
    lengths = [900, 119, 50, 1, 361]
    sequences = ["".join(rng.choices("ACGTacgt", k=length)) for length in lengths]
    sequences += ["N" * 200, sequences[0].swapcase(), (SENSE * 9)[:300]]
    path = tmp_path / "input.fa"
    path.write_text("".join(f">r{n} x\n{text}\n" for n, text in enumerate(sequences)))
    return str(path)


def build(fasta: str, directory: Path, rule: FrameRule = RULE) -> FrameStore:
    return build_frame_store([fasta], directory, StoreSettings(CHUNK_LENGTH_BP, rule=rule))


@pytest.fixture
def store(fasta: str, tmp_path: Path) -> FrameStore:
    return build(fasta, tmp_path / "store")


def test_a_row_is_a_stretch_with_the_dna_of_its_chunk(store: FrameStore) -> None:
    rows = np.arange(store.num_rows)
    proteins = store.read_sequences("protein", rows)
    chunks = store.chunk_sequences(0, store.num_chunks)
    wanted = []
    for chunk in chunks:
        start, length = np.array([0]), np.array([len(chunk)])
        found = frames.find_stretches(chunk.encode(), start, length, RULE)
        stops = np.cumsum(found.protein_length).tolist()
        for code, first, begin, stop in zip(
            found.code, found.first_codon, [0, *stops], stops, strict=False
        ):
            wanted.append((chunk, code, first, found.proteins[begin:stop].decode()))
    dna = store.read_sequences("dna", rows)
    assert list(zip(dna, store.frame_codes, store.first_codons, proteins, strict=True)) == wanted
    assert 0 in np.diff(store.chunk_first_frame)
    assert np.diff(store.chunk_first_frame).max() == RULE.max_stretches
    assert store.rule == open_frame_store(store.directory).rule == RULE
    mixed = np.array([7, 0, 7, 3])
    assert store.read_sequences("dna", mixed) == [dna[row] for row in mixed]


def test_the_names_of_rows_say_frame_and_codons(store: FrameStore) -> None:
    rows = np.arange(store.num_rows)
    names = store.frame_ids(0, store.num_rows)
    assert len(set(names)) == len(names)
    chunk_ids = store.chunk_ids(0, store.num_chunks)
    for row, name, protein in zip(
        rows.tolist(), names, store.read_sequences("protein", rows), strict=True
    ):
        match = ROW_ID.fullmatch(name)
        assert match
        assert match["chunk"] == chunk_ids[store.find_chunks(rows)[row]]
        first, last = map(int, name.rsplit("_", 1)[1].split("-"))
        assert last - first + 1 == len(protein)
        assert first == store.first_codons[row] + 1
    assert "r7_chunk_1F1_1-40" in names
    assert store.frame_ids(4, 7) == names[4:7]
    assert store.frame_ids(3, 3) == []


def test_equal_sequences_are_embedded_once(
    fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def count(store: FrameStore, kind: str, rows: np.ndarray) -> list[str]:
        read.extend([len(rows)] if kind == "dna" else [])
        return read_sequences(store, kind, rows)

    read_sequences = FrameStore.read_sequences
    monkeypatch.setattr(FrameStore, "read_sequences", count)
    store = build(fasta, tmp_path / "store")
    num_chunks = np.count_nonzero(np.diff(store.chunk_first_frame))
    assert sum(read) == num_chunks < store.num_rows
    for kind in ("dna", "protein"):
        source = store.sequences(kind)
        texts = source.get_many(np.arange(store.num_rows))
        assert source.representatives.tolist() == [texts.index(text) for text in texts]
        assert store.num_distinct(kind) == len(set(texts)) < store.num_rows


def test_features_are_those_that_the_head_was_trained_on(store: FrameStore) -> None:
    rows = np.array([5, 0, *range(store.num_rows)])
    found = store.stretch_features(rows)
    assert found.dtype == np.float32
    length = np.array([len(protein) for protein in store.read_sequences("protein", rows)])
    chunk_bp = np.array([len(dna) for dna in store.read_sequences("dna", rows)])
    codes = store.frame_codes[rows].astype(int)
    is_whole = length == (chunk_bp - codes % 3) // 3
    assert set(is_whole.tolist()) == {True, False}
    assert len(set(chunk_bp.tolist())) > 1
    wanted = stretch_features(*map(torch.from_numpy, (length, is_whole, chunk_bp)))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
    assert store.stretch_features(np.array([], np.int64)).shape == (0, 4)


def test_blocks_do_not_matter(fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(fasta, tmp_path / "one")
    monkeypatch.setattr(writing, "_BLOCK_BP", 100)
    build(fasta, tmp_path / "many")
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "many" / path.name).read_bytes() == path.read_bytes()


def test_only_another_rule_than_the_originals_is_written(fasta: str, tmp_path: Path) -> None:
    def manifest(rule: FrameRule) -> dict[str, object]:
        store = build(fasta, tmp_path / str(rule), rule)
        found: dict[str, object] = json.loads((store.directory / "manifest.json").read_text())
        return found

    assert "frame_rule" not in manifest(OPEN_RULE)
    assert "first_codons.int32" not in manifest(OPEN_RULE)["files"]  # type: ignore[operator]
    assert manifest(RULE)["frame_rule"] == "stretches:3:15"
    other = FrameRule("open", genetic_code=4)
    assert manifest(other)["frame_rule"] == "open:code=4"
    assert open_frame_store(tmp_path / "open").rule == OPEN_RULE
    assert open_frame_store(tmp_path / "open:code=4").rule == other


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("frame_rule", rule) for rule in ("", "closed", "open:code=7", 4, None, ["open"])),
        *(("chunk_length_bp", length) for length in (-1, 1.5, True, 1 << 70)),
        ("inputs", []),
    ],
)
def test_other_values_are_a_damaged_manifest(name: str, value: object, store: FrameStore) -> None:
    path = store.directory / "manifest.json"
    manifest = json.loads(path.read_text()) | {name: value}
    del manifest["sha256"]
    path.write_text(json.dumps(manifest | {"sha256": digest_manifest(manifest)}))
    with pytest.raises(CheckpointError, match="is not the manifest of a frame store"):
        open_frame_store(store.directory)
