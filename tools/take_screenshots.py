"""Take the pictures in docs/assets of the page that a run of the example writes.

Usage: python -m tools.take_screenshots

Needs Playwright (in the extra `dev`), and Chromium on the path.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import ViewportSize, sync_playwright

from virnucpro import PredictConfig, predict

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "docs" / "assets"
SIZE: ViewportSize = {"width": 1280, "height": 1000}


def main() -> None:
    """Call the example, open its page, and write the pictures."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("found no chromium and no google-chrome on the path; install one of them")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        config = PredictConfig(
            inputs=(str(ROOT / "examples" / "example.fasta"),),
            output_dir=Path(directory, "example_predictions"),
            model_type="mini",
        )
        path = predict(config).directory.report_html
        browser = playwright.chromium.launch(executable_path=program)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(path.as_uri())
        page.screenshot(path=ASSETS / "report.png")
        page.evaluate("document.getElementById('table').scrollIntoView()")
        page.screenshot(path=ASSETS / "report-records.png")
        browser.close()


if __name__ == "__main__":
    main()
