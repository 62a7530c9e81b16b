"""What needs no model starts without torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

LOWER_FLOORS = (
    "virnucpro, virnucpro.backend.interface, virnucpro.backend.registry, "
    "virnucpro.backend.testing, virnucpro.backend.weights, virnucpro.config, "
    "virnucpro.checkpoints.embeddings_file, virnucpro.checkpoints.parts, "
    "virnucpro.checkpoints.run_directory, virnucpro.legacy.settings, virnucpro.reports.tables, "
    "virnucpro.reports.record_results, virnucpro.runtime.launching, "
    "virnucpro.scoring.calibration, virnucpro.scoring.decisions, virnucpro.scoring.calls, "
    "virnucpro.sequences.fasta, "
    "virnucpro.sequences.frame_store, virnucpro.workflows.evaluate"
)


@pytest.mark.parametrize(
    "program",
    [
        ("-m", "virnucpro", "frames", "records.fa", "-o", "frames.tsv"),
        ("-m", "virnucpro", "utils", "validate", "records.fa"),
        ("-c", "import virnucpro; virnucpro.PredictConfig(inputs='records.fa')"),
        ("-c", f"import {LOWER_FLOORS}"),
    ],
    ids=["frames", "validate", "config", "lower-floors"],
)
def test_torch_is_not_imported_by(program, tmp_path):
    (tmp_path / "records.fa").write_text(">a\nACGTACGT\n")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    imported = list_imports(done.stderr)
    assert "virnucpro" in imported
    # The last two each took a tenth of the time of `frames`.
    assert not imported & {"torch", "accelerate", "jsonschema", "Bio.SeqIO", "numpy.ma"}


def test_a_run_on_a_cpu_does_not_import_the_compiler(tmp_path):
    (tmp_path / "records.fa").write_text(">a\n" + "ATGGCTGCACTGAAAGCT" * 30 + "\n")
    program = "-X importtime -m virnucpro predict records.fa -m mini --device cpu -o out"
    done = subprocess.run(
        [sys.executable, *program.split()], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    imported = list_imports(done.stderr)
    assert "torch" in imported
    # sympy takes as long to import as a third of torch.
    assert not imported & {"torch._dynamo", "torch._inductor", "sympy"}


def list_imports(stderr):
    """Return the modules that `-X importtime` names."""
    return {line.rpartition("|")[2].strip() for line in stderr.splitlines()}
