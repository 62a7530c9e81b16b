"""The pipelines in examples/, run for real or checked by the tools that know their languages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.runs import REPOSITORY, read_table, run

pytestmark = pytest.mark.slow

EXAMPLES = REPOSITORY / "examples"


def run_tool(directory: Path, *command: object, **variables: str) -> str:
    """Run a command in `directory`, where `virnucpro` is that of this checkout."""
    program = directory / "bin" / "virnucpro"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m virnucpro "$@"\n')
        program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = {"PATH": path, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/backends"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **paths, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_snakemake_calls_and_compares_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("snakemake")
    pytest.importorskip("multiqc")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    # A sample and its file may have spaces in their names.
    config = (EXAMPLES / "snakemake/config.yaml").read_text()
    plants = "plants: examples/snakemake/samples/plants.fasta"
    assert plants in config
    (tmp_path / "config.yaml").write_text(config.replace(plants, "all plants: my plants.fasta"))
    shutil.copy(EXAMPLES / "snakemake/samples/plants.fasta", tmp_path / "my plants.fasta")
    files = ("-s", "examples/snakemake/Snakefile", "--configfile", "config.yaml")
    run_tool(
        tmp_path, *(sys.executable, "-m", "snakemake"), "--cores=2", *files,
        MULTIQC_NO_VERSION_CHECK="1", XDG_CACHE_HOME=str(tmp_path),
    )  # fmt: skip
    calls = {
        row["record_id"]: row["call"]
        for name in ("phages", "all plants")
        for row in read_table(tmp_path / f"results/{name}_predictions/records.tsv")
    }
    known = read_table(EXAMPLES / "calls.tsv")
    assert calls == {row["record_id"]: row["call"] for row in known if row["record_id"] in calls}
    assert len(calls) == 4
    page = (tmp_path / "results/samples.html").read_text()
    data = json.loads((tmp_path / "results/multiqc/multiqc_data/multiqc_data.json").read_text())
    columns = data["report_general_stats_data"]["virnucpro"]
    assert set(columns) == {"phages", "all plants"}
    assert "phages" in page
    assert "my plants" in page


def test_a_job_of_an_array_computes_its_share(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    command = ["bash", EXAMPLES / "slurm_array.sh", EXAMPLES / "snakemake/samples/plants.fasta"]
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
    command = ["env", f"PATH={tmp_path}:{tmp_path}/bin:{os.environ['PATH']}", *command]
    run_tool(tmp_path, *command, "shares", "-m", "mini", **array)
    document = json.loads((tmp_path / "shares/share_2/run.json").read_text())
    assert document["shard"] == "2/3"
    assert document["settings"]["model_type"] == "mini"


def test_miniwdl_runs_the_task(tmp_path: Path) -> None:
    """A plug-in of miniwdl starts the command on this machine, without a container."""
    pytest.importorskip("WDL", reason="miniwdl is not installed")
    miniwdl = (sys.executable, "-m", "WDL")
    task = EXAMPLES / "wdl/virnucpro.wdl"
    run_tool(tmp_path, *miniwdl, "check", "--strict", task)
    if not find_spec("miniwdl_backend_bare"):
        pytest.skip("miniwdl-backend-bare is not installed")
    sequences = f"sequences={EXAMPLES}/snakemake/samples/plants.fasta"
    inputs = (sequences, "model_type=mini", "options=--regions provirus")
    run_tool(
        tmp_path, *miniwdl, "run", "--dir", f"{tmp_path}/run/.", "--task=predict", task, *inputs,
        MINIWDL__SCHEDULER__CONTAINER_BACKEND="bare",
    )  # fmt: skip
    outputs = json.loads((tmp_path / "run/outputs.json").read_text())
    names = ("records", "viral", "regions", "proviruses", "page", "run_file")
    assert set(outputs) == {f"predict.{name}" for name in names}
    assert all(Path(path).is_file() for path in outputs.values())
    rows = read_table(Path(outputs["predict.records"]))
    assert [row["call"] for row in rows] == ["virus", "others"]


@pytest.mark.parametrize("name", ["predict", "merge"])
def test_kubernetes_would_accept_the_jobs(name: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((EXAMPLES / f"kubernetes/{name}.yaml").read_text())
    kubernetes.validate(job, kubernetes.latest_version(), strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(job | {"spec": {"completion": 8}}, kubernetes.latest_version(), True)


def test_the_linters_of_scripts_and_dockerfiles_are_content() -> None:
    programs = Path(sys.executable).parent
    if not (programs / "shellcheck").exists() or not (programs / "hadolint").exists():
        pytest.skip("shellcheck or hadolint is not installed: pip install '.[dev]'")
    scripts = [*EXAMPLES.glob("*.sh"), REPOSITORY / "containers/install.sh"]
    for command in [
        [programs / "shellcheck", "--severity=warning", *scripts],
        [programs / "hadolint", REPOSITORY / "containers/Dockerfile"],
    ]:
        done = run(*command)
        assert done.returncode == 0, done.stdout
