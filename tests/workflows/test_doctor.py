from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.backend.test_registry import NEEDING, backend_source
from tests.plugins import install_module, write_metadata
from tests.runs import REPOSITORY
from virnucpro.cli.main import main
from virnucpro.workflows.doctor import compare_calls, is_supported

CALLS = REPOSITORY / "examples/calls.tsv"


def examine_quickly() -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Return the exit code of `virnucpro doctor --quick`, and the checks of each name."""
    result = CliRunner().invoke(main, ["doctor", "--quick", "--json"])
    checks: dict[str, list[dict[str, str]]] = {}
    for one in json.loads(result.stdout):
        checks.setdefault(one["name"], []).append(one)
    return result.exit_code, checks


def test_a_machine_without_a_gpu_and_without_models_is_well(tmp_path, monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_MODELS", str(tmp_path))
    code, checks = examine_quickly()
    assert code == 0
    assert list(checks) == [
        "versions", "backends", "GPU", "computing", "memory", "disk", "models",
    ]  # fmt: skip
    (models,) = checks["models"]
    assert "virnucpro models download 500" in models["remedy"]
    (tmp_path / "500_model.pth").touch()
    (models,) = examine_quickly()[1]["models"]
    assert "found mini, 500" in models["found"]
    assert "virnucpro models download dnabert-s" in models["remedy"]
    assert all(one["remedy"] for found in checks.values() for one in found if one["state"] != "ok")


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    # Root may write everywhere, so the system's answer is replaced.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path not in (path, *path.parents))
    code, checks = examine_quickly()
    (cache,) = (one for one in checks["disk"] if one["found"].startswith("the cache: "))
    assert (code, cache["state"]) == (0, "warning")
    assert cache["found"].endswith(", not writable")
    assert cache["remedy"].startswith("let XDG_CACHE_HOME name a writable directory; otherwise")


DENIED = """
import os
from virnucpro.workflows import doctor
examine = lambda: [*doctor._check_disks(), *doctor._check_models()]
examine()  # the other user may not read the modules that this imports
if os.getuid() == 0:
    os.setuid(65534)
for check in examine():
    print(check.name, check.state, check.found, check.remedy, sep="|")
"""


@pytest.mark.slow
def test_directories_that_may_not_be_read_are_told(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    names = {"XDG_CACHE_HOME": f"{closed}/cache", "VIRNUCPRO_MODELS": f"{closed}/models"}
    child = subprocess.run(
        [sys.executable, "-c", DENIED],
        env=os.environ | names,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    found = [line.split("|") for line in child.stdout.splitlines()]
    (cache,) = (one for one in found if one[2].startswith("the cache: "))
    assert cache[1] == "warning"
    assert cache[2].endswith(", not writable")
    name, state, models, remedy = found[-1]
    assert (name, state) == ("models", "failure")
    assert models.startswith(f"{closed}/models/300_model.pth: you have no permission to read this")
    assert remedy.startswith(f"let its owner run chmod -R a+rX {closed}/models, or")


def test_a_broken_backend_is_a_failure(tmp_path, monkeypatch):
    write_metadata(tmp_path, "broken", "1.0", "odd", "nowhere:backend")
    monkeypatch.syspath_prepend(tmp_path)
    code, checks = examine_quickly()
    assert code == 1
    failed = [one for found in checks.values() for one in found if one["state"] == "failure"]
    assert len(failed) == 1
    assert failed[0]["found"].startswith("odd: ")
    assert "pip uninstall broken" in failed[0]["remedy"]


def test_a_backend_whose_package_is_missing_is_no_problem(tmp_path, monkeypatch):
    source = backend_source(info=NEEDING.format("(Requirement('big', 'lacking[big]'),)"))
    install_module(tmp_path, source, "lacking")
    monkeypatch.syspath_prepend(tmp_path)
    code, checks = examine_quickly()
    first, *optional = checks["backends"]
    assert code == 0
    assert {one["state"] for one in checks["backends"]} == {"ok"}
    assert "esm2" in first["found"].split(", ")
    assert "toy" not in first["found"].split(", ")
    assert [one["found"] for one in optional if one["found"].startswith("toy ")] == [
        "toy is optional, and needs the package big, which is not installed: "
        "`pip install 'lacking[big]'`"
    ]


@pytest.mark.parametrize(
    ("capability", "archs", "wanted"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),  # binaries run on later minor versions
        ((7, 5), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90a"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((7, 0), ["sm_75", "compute_90"], False),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_known(capability, archs, wanted):
    assert is_supported(capability, archs) is wanted


@pytest.mark.parametrize(
    ("column", "value"), [(1, "others"), (2, "0.5"), (2, "nan"), (0, "another")]
)
def test_calls_that_differ_are_named(tmp_path: Path, column: int, value: str):
    assert compare_calls(CALLS, CALLS) == []
    lines = [line.split("\t") for line in CALLS.read_text().splitlines()]
    name = lines[-1][0]
    lines[-1][column] = value
    changed = tmp_path / "records.tsv"
    changed.write_text("".join("\t".join(line) + "\n" for line in lines))
    (wrong,) = compare_calls(changed, CALLS)
    assert wrong.startswith(name)
