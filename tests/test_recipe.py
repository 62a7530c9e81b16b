"""The recipe for conda says what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib

import jinja2
import pytest
import yaml

import virnucpro
from tests.runs import REPOSITORY

NAMES_ON_CONDA = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}


@pytest.fixture(scope="module")
def recipe() -> dict:
    """The recipe as conda-build renders it."""
    text = (REPOSITORY / "recipe/meta.yaml").read_text(encoding="utf-8")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)
    rendered = template.render(
        PYTHON="python", pin_subpackage=lambda name, max_pin: f"{name} {max_pin}"
    )
    return yaml.safe_load(rendered)


def test_the_recipe_needs_what_the_package_needs(recipe: dict) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {f"python {project['requires-python']}"}
    for one in project["dependencies"]:
        name, versions = re.fullmatch(r"([\w-]+)(\S+)", one).groups()
        needed.add(f"{NAMES_ON_CONDA.get(name, name)} {versions}")
    assert set(recipe["requirements"]["run"]) == needed
    programs = [f"{name} = {place}" for name, place in project["scripts"].items()]
    assert recipe["build"]["entry_points"] == programs
    assert recipe["about"]["license"] == project["license"]
    assert [recipe["about"]["license_file"]] == project["license-files"]


def test_the_recipe_is_of_this_version(recipe: dict) -> None:
    assert recipe["package"] == {"name": "virnucpro", "version": virnucpro.__version__}
    assert recipe["source"]["url"].endswith(f"/virnucpro-{virnucpro.__version__}.tar.gz")
    assert re.fullmatch(r"[0-9a-f]{64}", recipe["source"]["sha256"])
