"""The recipe for conda says what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib

import jinja2
import pytest
import rattler_build
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


def render(recipe: dict) -> dict:
    """Render the recipe with rattler-build, which checks it; it reads the newer form only."""
    python = {"entry_points": recipe["build"]["entry_points"]}
    build = {key: recipe["build"][key] for key in ("number", "noarch", "script")}
    stage = rattler_build.Stage0Recipe.from_dict(
        {
            "package": recipe["package"],
            "source": recipe["source"],
            "build": {**build, "python": python},
            "requirements": recipe["requirements"],
            "tests": [
                {"python": {"imports": recipe["test"]["imports"]}},
                {"script": recipe["test"]["commands"]},
            ],
            "about": {
                {"home": "homepage"}.get(key, key): value
                for key, value in recipe["about"].items()
                if key != "license_family"
            },
        }
    )
    (variant,) = stage.render()
    return variant.recipe.to_dict()


def test_rattler_build_renders_the_recipe(recipe: dict) -> None:
    rendered = render(recipe)
    assert rendered["build"]["noarch"] == "python"
    assert rendered["requirements"]["run"] == recipe["requirements"]["run"]
    # It knows licences, fields, and how versions are written.
    for part, wrong in [
        ("requirements", {"run": ["numpy >=1..2"]}),
        ("requirements", {"runs": ["numpy"]}),
        ("about", {"license": "MYT"}),
    ]:
        with pytest.raises(rattler_build.RattlerBuildError):
            render({**recipe, part: {**recipe[part], **wrong}})
