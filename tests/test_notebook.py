"""The notebook in examples/ runs, and shows what its cells give."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

_NUMBER = re.compile(r"\d+\.\d+")


def read_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    return [
        output.get("text") or output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]


def test_the_notebook_shows_what_its_cells_give(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository / "examples" / "virnucpro.ipynb"
    notebook = nbformat.read(path, as_version=4)
    shown = read_outputs(notebook)
    assert len(shown) == len([cell for cell in notebook.cells if cell.cell_type == "code"])
    monkeypatch.setenv("PYTHONPATH", f"{repository}:{repository / 'backends'}")
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    for wanted, found in zip(shown, read_outputs(notebook), strict=True):
        assert _NUMBER.sub("N", found).split() == _NUMBER.sub("N", wanted).split()
        # The last digits depend on the processor.
        numbers = [list(map(float, _NUMBER.findall(text))) for text in (found, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.011)
