"""A finished run with awkward ids, and a real browser that looks at its page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from virnucpro import PredictConfig, predict
from virnucpro.checkpoints.run_directory import RunDirectory

SCRIPT = "<script>window.harmed=1</script>"
HOSTILE_IDS = (
    SCRIPT,
    f"</script>{SCRIPT}",
    '"><img/src=x/onerror=window.harmed=1>',
    "javascript:window.harmed=1",
    "{{window.harmed=1}}{%raw%}",
    "&lt;b&gt;&amp;",
    "\u202eright-to-left\u2067",
    "a" * 70_000,
)


@pytest.fixture(scope="session")
def run_directory(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The example, a virus inside a bacterium, and records with hostile ids."""
    directory = tmp_path_factory.mktemp("pages")
    example = (repository / "examples" / "example.fasta").read_text()
    records = (record.partition("\n") for record in example.split(">")[1:])
    sequences = {header.split()[0]: letters for header, _, letters in records}
    bacterium, virus = sequences["NC_008253.1:1-8000"], sequences["KJ690172.1"]
    data = example + f">mixed\n{bacterium}{virus}{bacterium}"
    # Two records share an id; only the second has a viral region.
    data += f">twice\n{bacterium}>twice\n{virus}"
    data += "".join(f">{name}\n{virus}" for name in HOSTILE_IDS)
    path = directory / "contigs.fasta"
    # Bytes that are not UTF-8, an empty record, and one without a stretch.
    odd = b">\xff\xfe\n" + bacterium[:800].encode() + b"\n>empty\n>unknown\nNNNN\n"
    path.write_bytes(data.encode() + odd)
    config = PredictConfig(inputs=str(path), output_dir=directory / "run", model_type="mini")
    return predict(config).directory


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium; tests that need it are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    program = program or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser) -> Iterator:
    """A function that opens a page; at the end, neither errors nor requests may have happened."""
    contexts, complaints = [], []

    def open_page(path: Path, width: int = 1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url in (path.resolve().as_uri(), "data:,")
                or request.url.startswith("data:image/svg+xml")
                else complaints.append(request.url)
            ),
        )
        page.goto(path.resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
