"""Putting a store in place: what is used again, what is built anew, and what a refusal leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.checkpoints.run_directory import staged_dir
from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.errors import IdentityMismatchError, InputError, OutputError
from virnucpro.sequences.frame_store import (
    FrameStore,
    RecordStore,
    StoreSettings,
    build_frame_store,
    open_frame_store,
    prepare_frame_store,
    prepare_record_store,
)

FASTA = b">a\nATGGCCATTGTAATGGGCC\n>b x\nGGGCCCGGGCCCAAA\n>a\nACG\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fa"
    path.write_bytes(FASTA)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "frames"


def prepare(fasta: Path, directory: Path, check=lambda store: None, **settings) -> int:
    """Prepare the store, and return which file its manifest is: a new store has another."""
    given = {"chunk_length_bp": 12} | settings
    prepare_frame_store([str(fasta)], directory, check, StoreSettings(**given))
    return (directory / "manifest.json").stat().st_ino


def read_tree(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def refuse(store: FrameStore | RecordStore) -> None:
    raise IdentityMismatchError(store.input_digest)


CHANGES = [
    {"chunk_length_bp": 9},
    {"min_length_bp": 4},
    {"rule": FrameRule("stretches")},
    {"rule": FrameRule("open", genetic_code=4)},
]


def test_the_store_of_the_same_input_is_used_again(fasta: Path, directory: Path) -> None:
    written = prepare(fasta, directory)
    assert prepare(fasta, directory) == written
    assert not staged_dir(directory).exists()
    # The parts may be of another model all the same.
    with pytest.raises(IdentityMismatchError):
        prepare(fasta, directory, refuse)


@pytest.mark.parametrize("settings", CHANGES)
def test_other_settings_make_another_store(fasta: Path, directory: Path, settings) -> None:
    prepare(fasta, directory)
    prepare(fasta, directory, **settings)
    store = open_frame_store(directory, verify=True)
    assert store.chunk_length_bp == settings.get("chunk_length_bp", 12)
    assert store.min_length_bp == settings.get("min_length_bp", 0)
    assert store.rule == settings.get("rule", OPEN_RULE)


def test_a_store_of_other_records_than_those_read_before_is_built_again(
    fasta: Path, directory: Path, tmp_path: Path
) -> None:
    prepare(fasta, directory)
    fasta.write_bytes(FASTA + b">more\nACGT\n")
    settings = StoreSettings(12)
    before = build_frame_store([str(fasta)], tmp_path / "before", settings)
    prepare_frame_store([str(fasta)], directory, lambda store: None, settings, before)
    assert open_frame_store(directory).input_digest == before.input_digest


@pytest.mark.parametrize("settings", [{}, *CHANGES])
def test_a_refused_store_changes_nothing(fasta: Path, directory: Path, settings) -> None:
    prepare(fasta, directory)
    before = read_tree(directory.parent)
    if not settings:
        fasta.write_bytes(FASTA + b">more\nACGT\n")
    with pytest.raises(IdentityMismatchError):
        prepare(fasta, directory, refuse, **settings)
    assert read_tree(directory.parent) == before
    assert not staged_dir(directory).exists()


def test_a_refused_store_of_records_changes_nothing(fasta: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "records"
    prepare_record_store([str(fasta)], directory, lambda store: None, alphabet="dna")
    before = read_tree(directory.parent)
    fasta.write_bytes(FASTA[::-1].replace(b"\n", b"") + b"\n" + FASTA)
    with pytest.raises(InputError):
        prepare_record_store([str(fasta)], directory, refuse, alphabet="dna")
    fasta.write_bytes(FASTA + b">more\nACGT\n")
    with pytest.raises(IdentityMismatchError):
        prepare_record_store([str(fasta)], directory, refuse, alphabet="dna")
    assert read_tree(directory.parent) == before


def test_a_damaged_store_is_built_again(
    fasta: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(fasta, directory)
    whole = read_tree(directory)
    for name, content in whole.items():
        if not content:
            continue
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 1
        (directory / name).write_bytes(damaged)
        caplog.clear()
        prepare(fasta, directory)
        assert name in caplog.text
        assert "the input is read again" in caplog.text
        assert read_tree(directory) == whole


def test_what_a_killed_build_left_is_removed(fasta: Path, directory: Path) -> None:
    staged_dir(directory).mkdir(parents=True)
    (staged_dir(directory) / "records.text").write_bytes(b"x")
    prepare(fasta, directory)
    assert not staged_dir(directory).exists()


def test_a_link_in_the_way_is_not_followed(fasta: Path, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "records.text").write_bytes(b"x")
    directory.parent.mkdir()
    staged_dir(directory).symlink_to(tmp_path / "mine")
    prepare(fasta, directory)
    assert read_tree(tmp_path / "mine") == {"records.text": b"x"}
    assert not directory.is_symlink()


def test_a_file_in_the_way_is_named(fasta: Path, directory: Path) -> None:
    directory.parent.mkdir()
    staged_dir(directory).write_bytes(b"x")
    with pytest.raises(OutputError, match="frames: cannot be replaced"):
        prepare(fasta, directory)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (">a\nACG\n>b\nACG\n>a\nACG\n", "1 id belongs to several records; each record has its own"),
        (">a\nACG\n>a\nACG\n>b\nAC\n>b\nAC\n", "mates of pairs, give predict --paired: a, b"),
    ],
)
def test_ids_of_several_records_are_named(
    fasta: Path, directory: Path, caplog: pytest.LogCaptureFixture, text: str, words: str
) -> None:
    fasta.write_text(text)
    prepare(fasta, directory)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert words in warning.getMessage()
    assert ("--paired" in warning.getMessage()) == ("--paired" in words)
