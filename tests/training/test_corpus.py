from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virnucpro.errors import InputError
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store
from virnucpro.training.corpus import make_corpus, name_classes, read_groups


def test_chunks_with_an_ambiguous_base_are_left_out_whole(tmp_path: Path) -> None:
    clean, stop = "ATGGCC" * 5, "TTAATTAACTAG" * 3
    (tmp_path / "viral.fa").write_text(f">a\n{clean}{clean.lower()}\n>b\n{clean}ATGNCC{clean}\n")
    (tmp_path / "other.fa").write_text(f">c\n{stop}\n>d\n\n>e\n{clean}\n")
    paths = [str(tmp_path / "viral.fa"), str(tmp_path / "other.fa")]
    store = build_frame_store(paths, tmp_path / "store", StoreSettings(30))
    corpus = make_corpus(store, name_classes(paths[:1], paths[1:]))
    found = [
        (corpus.record_ids[record], int(number))
        for record, number, usable in zip(
            corpus.chunk_record, corpus.chunk_number, corpus.is_usable, strict=True
        )
        if usable
    ]
    ambiguous = ["N" in sequence for sequence in store.chunk_sequences(0, store.num_chunks)]
    assert any(ambiguous)
    assert found == [("a", 0), ("a", 1), ("b", 0), ("b", 2), ("e", 0)]
    np.testing.assert_array_equal(corpus.record_class, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(corpus.num_chunks, [2, 3, 2, 0, 1])


def test_rows_are_those_of_the_chunks(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\n" + "ATGGCCAAA" * 20 + "\n")
    path = str(tmp_path / "a.fa")
    store = build_frame_store([path], tmp_path / "store", StoreSettings(60))
    corpus = make_corpus(store, name_classes([path], []))
    chosen = np.array([0, 2])
    names = [store.frame_ids(row, row + 1)[0] for row in corpus.rows(chosen).tolist()]
    wanted = [name for name in store.frame_ids(0, store.num_rows) if "_chunk_2" not in name]
    assert names == wanted


def test_files_of_one_name_are_told_apart() -> None:
    classes = name_classes(["a/x.fa", "b/y.fa.gz"], ["c/x.fa"])
    assert [tuple(one) for one in classes] == [("a/x.fa", True), ("y", True), ("c/x.fa", False)]


def test_records_without_a_group_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "g.tsv").write_text("id\tlength\tgroup\na\t5\tflu\nb\t5\tflu\n")
    assert read_groups(tmp_path / "g.tsv", ["a", "b", "c"]) == ["flu", "flu", "record c"]
    (tmp_path / "g.tsv").write_text("id\tgroup\na\tflu\na\tpox\n")
    with pytest.raises(InputError, match=r"g\.tsv, line 3: 'a' was in another group before"):
        read_groups(tmp_path / "g.tsv", ["a"])
