"""Drawing a random sample of the records of files."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from virnucpro.sequences.sampling import sample_records


@pytest.fixture
def two_files(tmp_path: Path) -> list[Path]:
    """Two files of 20 records together, one of them compressed."""
    paths = [tmp_path / "a.fa", tmp_path / "b.fa.gz"]
    for path, numbers in zip(paths, (range(15), range(15, 20)), strict=True):
        data = "".join(f">r{number}\n{'ACGT' * number}\n" for number in numbers).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return paths


def test_a_sample_keeps_the_order_and_comes_again_with_its_seed(two_files: list[Path]) -> None:
    records, num_records = sample_records(two_files, 8, seed=1)
    assert num_records == 20
    numbers = [int(record.id[1:]) for record in records]
    assert len(set(numbers)) == 8
    assert numbers == sorted(numbers)
    assert [len(record.sequence) for record in records] == [4 * number for number in numbers]
    assert sample_records(two_files, 8, seed=1) == (records, 20)
    assert sample_records(two_files, 8, seed=2) != (records, 20)


def test_a_sample_larger_than_the_input_is_all_of_it(two_files: list[Path]) -> None:
    records, num_records = sample_records(two_files, 99, seed=0)
    assert [record.id for record in records] == [f"r{number}" for number in range(num_records)]


def test_every_record_is_as_likely_as_any_other(two_files: list[Path]) -> None:
    drawn = Counter(
        record.id for seed in range(400) for record in sample_records(two_files, 5, seed)[0]
    )
    # 100 times each on average, with a standard deviation of 9.
    assert len(drawn) == 20
    assert all(60 < count < 140 for count in drawn.values())
