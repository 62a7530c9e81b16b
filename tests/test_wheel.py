"""The wheel that `pip install .` builds: what is in it, and that its backends work."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import ZipFile

import pytest

import virnucpro
from tests.runs import REPOSITORY, run

pytestmark = pytest.mark.slow

PIP = (sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")
BACKENDS = ("dnabert_s", "esm2", "fair_esm", "transformers")
PACKAGES = ("virnucpro", *(f"backends/virnucpro_{name}" for name in BACKENDS))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """A directory with the wheel's packages and nothing else."""
    directory = tmp_path_factory.mktemp("installed")
    done = run(*PIP, "install", "--no-deps", "--no-index", "--target", directory, wheel)
    assert done.returncode == 0, done.stderr
    return directory


def run_installed(installed: Path, *args: object) -> str:
    done = subprocess.run(
        [str(installed / "bin" / "virnucpro"), *map(str, args)],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    if listed.returncode != 0:
        pytest.skip("not a checkout: git does not tell which files belong to it")
    names = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]
    wanted = {name.removeprefix("backends/") for name in names} | {
        "virnucpro/CITATION.cff",
        "virnucpro/data/example/calls.tsv",
        "virnucpro/data/example/example.fasta",
    }
    assert "virnucpro/data/mini/500_model.safetensors" in wanted
    assert "virnucpro/py.typed" in wanted
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert held == wanted
        for name in names:
            if name.startswith("virnucpro/data/"):
                assert archive.read(name) == (REPOSITORY / name).read_bytes(), name


def test_an_installed_wheel_declares_its_entry_points(installed: Path) -> None:
    (path,) = installed.glob("*.dist-info")
    found = PathDistribution(path)
    assert found.version == virnucpro.__version__
    declared = {(one.group, one.name): one.value for one in found.entry_points}
    assert declared == {
        ("console_scripts", "virnucpro"): "virnucpro.cli.main:main",
        ("virnucpro.backends", "esm2"): "virnucpro_esm2:backend",
        ("virnucpro.backends", "dnabert-s"): "virnucpro_dnabert_s:backend",
        ("virnucpro.backends", "fair-esm"): "virnucpro_fair_esm:backend",
        ("virnucpro.backends", "transformers"): "virnucpro_transformers:backend",
        ("virnucpro.backends", "transformers-dna"): "virnucpro_transformers:dna_backend",
        ("torchrun.handlers", "virnucpro"): "virnucpro.runtime.launchers:find_rendezvous",
        ("multiqc.modules.v1", "virnucpro"): "virnucpro.reports.multiqc:MultiqcModule",
        ("multiqc.hooks.v1", "before_config"): "virnucpro.reports.multiqc:add_search_pattern",
        ("virnucpro.benchmarks", "esm2"): "virnucpro_esm2.benchmarking",
        ("virnucpro.benchmarks", "dnabert-s"): "virnucpro_dnabert_s.benchmarking",
    }


def test_an_installed_wheel_measures_its_backends_without_weights(installed: Path) -> None:
    options = ("--quick", "--device=cpu", "--suite=throughput", "--no-vanilla-baseline")
    table = run_installed(installed, "benchmark", "--model=dnabert-s", *options)
    assert "dnabert-s small  virnucpro, auto" in table
