"""Installs plug-ins into a directory: what pip would leave in site-packages, without pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

OWN_PLUGINS = Path(__file__).parent / "own_plugins"
TOY_PLUGIN = Path(__file__).parent / "toy_plugin"


def install_project(project: Path, site: Path) -> None:
    """Install the Python files and the metadata of `project`, which has a pyproject.toml."""
    shutil.copytree(
        project, site, ignore=shutil.ignore_patterns("__pycache__", "*.toml"), dirs_exist_ok=True
    )
    settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    ((name, value),) = settings["entry-points"]["virnucpro.backends"].items()
    write_metadata(site, settings["name"], settings["version"], name, value)


def install_module(site: Path, source: str, distribution: str, *, name: str = "toy") -> None:
    """Install a package of one module, registered as `name`, with version 1.0."""
    site.mkdir(exist_ok=True)
    module = distribution.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    write_metadata(site, distribution, "1.0", name, f"{module}:backend")


def write_metadata(site: Path, distribution: str, version: str, name: str, value: str) -> None:
    directory = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (directory / "entry_points.txt").write_text(f"[virnucpro.backends]\n{name} = {value}\n")


def run_python(*args: str, sites: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where `sites` are installed."""
    return subprocess.run(
        [sys.executable, *args],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [*sites, OWN_PLUGINS])),
            "OMP_NUM_THREADS": "1",
            # Its plug-ins take a second to import, and no test here uses one.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
