from __future__ import annotations

import pytest

from tests.runs import REPOSITORY, VIRNUCPRO, read_table, run
from virnucpro.config import MINI_DIRECTORY


def test_the_shipped_model_is_small() -> None:
    files = [path for path in MINI_DIRECTORY.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"300_model.safetensors", "500_model.safetensors"}
    assert sum(path.stat().st_size for path in files) <= 16_000_000


@pytest.mark.parametrize("length_bp", [300, 500])
def test_the_shipped_model_knows_the_example(tmp_path, length_bp) -> None:
    command = (*VIRNUCPRO, "predict", REPOSITORY / "examples" / "example.fasta")
    options = ("--model-type=mini", "-e", length_bp, "-o", tmp_path / "results", "--device=cpu")
    done = run(*command, *options)
    assert done.returncode == 0, done.stderr
    calls = {
        row["record_id"]: row["call"] for row in read_table(tmp_path / "results" / "records.tsv")
    }
    assert calls["NC_001416.1:1-8000"] == "virus"
