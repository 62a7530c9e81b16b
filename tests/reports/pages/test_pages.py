"""Pages of runs, opened in a real headless Chromium."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.reports.pages.conftest import HOSTILE_IDS
from tests.samples import wait_for
from virnucpro import PredictConfig, predict
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.main import main
from virnucpro.reports.pages import records as reading
from virnucpro.reports.pages import run_page, tracks
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.reports.tables import read_table

pytestmark = pytest.mark.slow

WIDTHS = pytest.mark.parametrize("width", [1280, 390])


def read_calls(directory: Path) -> list[str]:
    return [line["call"] for _, line in read_table(directory / "records.tsv", ["call"])]


def report(*args: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, args)])


def column(page, name: str) -> list[str]:
    """Return what the rows in sight show in a column."""
    heads = page.eval_on_selector_all(".records th", "all => all.map(one => one.dataset.name)")
    number = heads.index(name) + 1
    return page.locator(f".records tbody td:nth-child({number})").all_inner_texts()


def click_head(page, name: str) -> None:
    page.locator(f'.records th[data-name="{name}"] button').click()


@WIDTHS
def test_the_page_is_not_wider_than_the_screen(run_directory, look, width: int) -> None:
    page = look(run_directory.report_html, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for figure in page.locator("figure svg").all():
        figure.scroll_into_view_if_needed()
        box = figure.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 30


@WIDTHS
def test_the_table_sorts(run_directory, look, width: int) -> None:
    page = look(run_directory.report_html, width)
    click_head(page, "length")
    lengths = [int(text.replace(",", "")) for text in column(page, "length")]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 3
    click_head(page, "length")
    assert column(page, "length")[0] == "0"
    click_head(page, "record_id")
    ids = [text.lower() for text in column(page, "record_id")]
    assert ids == sorted(ids)
    click_head(page, "probability")
    shown = column(page, "probability")
    known = [float(text) for text in shown if text != "NA"]
    assert known == sorted(known, reverse=True)
    assert shown[: len(known)] == [text for text in shown if text != "NA"]


@WIDTHS
def test_search_finds_and_calls_are_chosen(run_directory, look, width: int) -> None:
    page = look(run_directory.report_html, width)
    page.fill(".records input", "nc_073849")
    assert column(page, "record_id") == ["NC_073849.1"]
    assert page.inner_text(".shown").startswith("1 of ")
    page.fill(".records input", "nothing has this name")
    assert column(page, "record_id") == []
    page.fill(".records input", "")
    page.select_option(".records select", "none")
    assert sorted(column(page, "record_id")) == ["empty", "unknown"]
    assert set(column(page, "call")) == {"none"}
    page.select_option(".records select", label="with a provirus")
    assert column(page, "record_id") == ["mixed"]


@WIDTHS
def test_each_viral_record_has_a_track_with_its_regions(run_directory, look, width: int) -> None:
    page = look(run_directory.report_html, width)
    calls = read_calls(run_directory.path)
    tracks = page.locator("figure.track")
    # Each viral record, and the bacterium with a virus inside.
    assert tracks.count() == calls.count("virus") + 1
    assert "1\nviral region in other records (proviruses)" in page.inner_text(".cards")
    page.fill(".records input", "mixed")
    page.click(".records tbody a")
    track = page.locator("figure.track:target")
    assert track.locator("h3").inner_text() == "mixed"
    (line,) = (
        line
        for _, line in read_table(run_directory.regions_tsv, ["record_id", "start", "end"])
        if line["record_id"] == "mixed"
    )
    region = track.locator("rect.region")
    start, end = int(line["start"]), int(line["end"])
    assert region.locator("title").text_content() == f"viral region {start:,} to {end:,}"
    # Also without a mouse. Of the records that are viral as a whole, the whole is no news.
    assert track.locator("figcaption").inner_text() == f"Viral: {start:,} to {end:,}"
    assert page.locator("figure.track figcaption").count() == 1
    # The virus is from 8,000 to 14,334 of 22,334 bp.
    frame, shaded = track.locator("path.axis").bounding_box(), region.bounding_box()
    assert (shaded["x"] - frame["x"]) / frame["width"] == pytest.approx(8_000 / 22_334, abs=0.05)
    assert shaded["width"] / frame["width"] == pytest.approx(6_334 / 22_334, abs=0.07)
    chunks = [
        line
        for _, line in read_table(run_directory.chunks_tsv, ["record_id", "score"])
        if line["record_id"] == "mixed"
    ]
    assert track.locator("rect.chunk").count() == len(chunks) > 20


DRAWN = """figure => [...figure.querySelectorAll("svg > *")].map(one => [
    one.tagName, one.getAttribute("class") || "", one.getAttribute("text-anchor") || "",
    one.tagName === "text" ? one.textContent : "",
    ...["x", "y", "width", "height", "x1", "y1"].map(name => Number(one.getAttribute(name)))])"""


def test_the_script_draws_the_tracks_that_the_page_has_as_numbers(
    run_directory, look, tmp_path: Path, monkeypatch
) -> None:
    # Means of two chunks, as in a long record.
    monkeypatch.setattr(tracks, "_MAX_CHUNKS", 25)
    write_run_page(run_directory, tmp_path / "all.html")
    monkeypatch.setattr(run_page, "_NUM_STATIC", 1)
    write_run_page(run_directory, tmp_path / "one.html")
    whole, page = look(tmp_path / "all.html"), look(tmp_path / "one.html")
    assert not whole.locator("#more").is_visible()
    places = whole.eval_on_selector_all("figure.track", "all => all.map(one => one.id)")
    assert page.locator("figure.track").count() == 1
    page.fill(".records input", "mixed")
    page.click(".records tbody a")
    opened = page.locator("figure.track:target")
    assert opened.locator("h3").inner_text() == "mixed"
    assert opened.locator("rect.chunk").count() == 23
    page.click("#more")
    assert not page.locator("#more").is_visible()
    found = page.eval_on_selector_all("figure.track", "all => all.map(one => one.id)")
    assert sorted(found) == sorted(places)
    for place in places:
        expected, drawn = (
            sorted(one.eval_on_selector(f"#{place}", DRAWN)) for one in (whole, page)
        )
        assert [shape[:4] for shape in drawn] == [shape[:4] for shape in expected]
        for shape, other in zip(drawn, expected, strict=True):
            # A score of one byte moves a bar by an eighth of a pixel.
            assert shape[4:] == pytest.approx(other[4:], abs=0.25)
        captions = [
            one.eval_on_selector(
                f"#{place}", "figure => figure.querySelector('figcaption')?.textContent"
            )
            for one in (whole, page)
        ]
        assert captions[0] == captions[1]
    assert page.evaluate("window.harmed") is None


def test_a_track_of_too_many_chunks_has_their_means(monkeypatch) -> None:
    monkeypatch.setattr(tracks, "_MAX_CHUNKS", 2)
    chunks = [(0, 9, 0.25), (8, 19, 0.75), (20, 24, 0.125)]
    assert tracks._thin(chunks) == [(0, 19, 0.5), (20, 24, 0.125)]
    assert tracks._thin(chunks[:2]) == chunks[:2]


def test_an_address_with_a_track_opens_it(run_directory, look, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run_page, "_NUM_STATIC", 1)
    write_run_page(run_directory, tmp_path / "one.html")
    page = look(tmp_path / "one.html")
    page.fill(".records input", "mixed")
    address = page.locator(".records tbody a").evaluate("link => link.href")
    page.goto("about:blank")
    page.goto(address)
    assert page.locator("figure.track:target h3").inner_text() == "mixed"
    assert page.locator("figure.track:target").is_visible()


def test_a_page_that_would_be_too_large_says_so(run_directory, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tracks, "MAX_BYTES", 400)
    found = tracks.read_tracks(run_directory, reading.read_records(run_directory), 100)
    assert 0 < len(found.packed) < found.num_records
    # The most viral ones stay.
    viral = [one.place for one in reading.read_records(run_directory).listed]
    assert [*found.packed] == [*found.drawn] == viral[: len(found.packed)]
    assert len(json.dumps(found.packed, separators=(",", ":"))) <= 400
    write_run_page(run_directory, tmp_path / "small.html")
    text = (tmp_path / "small.html").read_text()
    assert f"{len(found.packed)} most viral of {found.num_records} records" in text


def test_records_of_one_chunk_have_no_track(repository: Path, tmp_path: Path) -> None:
    virus = (repository / "examples" / "example.fasta").read_text().rpartition(">")[2]
    letters = "".join(virus.split("\n")[1:])
    (tmp_path / "contigs.fa").write_text(f">short\n{letters[:1000]}\n>long\n{letters[:1001]}\n")
    config = PredictConfig(
        inputs=str(tmp_path / "contigs.fa"), model_type="mini", threshold=0.0, device="cpu"
    )
    directory = predict(dataclasses.replace(config, output_dir=tmp_path / "both")).directory
    page = directory.report_html.read_text()
    assert re.findall('<figure class="track" id="track-(.)">', page) == ["1"]
    assert "Records of one chunk have no track. Their score is in the table." in page
    # A page of reads has no tracks at all, and no word about them.
    (tmp_path / "contigs.fa").write_text(f">short\n{letters[:1000]}\n")
    directory = predict(dataclasses.replace(config, output_dir=tmp_path / "one")).directory
    page = directory.report_html.read_text()
    assert '<h2 id="tracks">' not in page
    assert "no track" not in page


def test_records_of_one_id_keep_their_own_regions(run_directory) -> None:
    records = reading.read_records(run_directory)
    twice = {one.call: one.regions for one in records.listed if one.record_id == "twice"}
    assert not twice["others"]
    assert twice["virus"] == [(0, 6_334)]


def test_a_provirus_is_not_that_of_an_equal_record(run_directory, tmp_path: Path) -> None:
    header, *lines = run_directory.records_tsv.read_text(errors="replace").splitlines()
    equal = "\n".join([header, *[one for one in lines if one.startswith("mixed\t")] * 3])
    (tmp_path / "records.tsv").write_text(f"{equal}\n")
    (tmp_path / "viral_regions.tsv").write_text("record_number\tstart\tend\n2\t1\t4\n2\t5\t9\n")
    records = reading.read_records(RunDirectory(tmp_path, ""))
    found = {one.place: one.regions for one in records.listed}
    assert found == {0: (), 1: [(1, 4), (5, 9)], 2: ()}


@pytest.mark.parametrize(
    ("table", "column", "word"),
    [
        ("records.tsv", "num_chunks", "-1"),
        ("records.tsv", "score", "nan"),
        ("records.tsv", "length", str(1 << 63)),
        ("viral_regions.tsv", "start", "x"),
        ("viral_regions.tsv", "record_number", ""),
    ],
)
def test_a_wrong_number_in_a_table_is_named(
    run_directory, tmp_path: Path, table: str, column: str, word: str
) -> None:
    shutil.copytree(run_directory.path, tmp_path / "run")
    header, first, *lines = (tmp_path / "run" / table).read_bytes().split(b"\n")
    cells = first.split(b"\t")
    cells[header.decode().split("\t").index(column)] = word.encode()
    (tmp_path / "run" / table).write_bytes(b"\n".join([header, b"\t".join(cells), *lines]))
    result = report(tmp_path / "run")
    assert result.exit_code == 1
    assert f"{table}, line 2: found {word!r}, wanted a" in result.stderr


def test_records_that_are_not_listed_count_all_the_same(run_directory, monkeypatch) -> None:
    everything = reading.read_records(run_directory)
    monkeypatch.setattr(reading, "MAX_LISTED", 2)
    found = reading.read_records(run_directory)
    assert found.num_with_virus == everything.num_with_virus > 2
    assert found.listed == everything.listed[:2]


def test_without_javascript_everything_is_there(run_directory, look) -> None:
    page = look(run_directory.report_html, java_script_enabled=False)
    rows = page.locator(".records tbody tr")
    assert rows.count() == len(read_calls(run_directory.path))
    assert page.locator(".records tbody tr").first.is_visible()
    assert not page.locator(".records input").is_visible()
    assert not page.locator("[data-save]").first.is_visible()
    assert page.locator("figure svg").first.is_visible()


def test_it_is_dark_and_light(run_directory, look) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = look(run_directory.report_html, color_scheme=scheme)
        read = "getComputedStyle(document.body).backgroundColor"
        colours[scheme] = page.evaluate(read)
        page.click("#theme")
        colours[f"{scheme}, changed"] = page.evaluate(read)
    assert colours["light"] == colours["dark, changed"] == "rgb(255, 255, 255)"
    assert colours["dark"] == colours["light, changed"] != colours["light"]


def test_figures_can_be_saved(run_directory, look) -> None:
    page = look(run_directory.report_html)
    for kind in ("svg", "png"):
        with page.expect_download() as waiting:
            page.locator(f'[data-save="{kind}"]').first.click()
        path = Path(waiting.value.path())
        assert waiting.value.suggested_filename == f"Records_by_call.{kind}"
        if kind == "svg":
            text = path.read_text()
            assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
            # Without the page there is no style sheet, and no variable of it.
            assert "fill:rgb(" in text
            assert "var(" not in text
        else:
            content = path.read_bytes()
            assert content.startswith(b"\x89PNG")
            assert int.from_bytes(content[16:20], "big") == 1440


def test_hostile_ids_do_nothing(run_directory, look) -> None:
    page = look(run_directory.report_html, 390)
    for part in range(3):
        page.evaluate(f"scrollTo(0, {part} * document.body.scrollHeight / 3)")
    for button in page.locator(".records th button").all():
        button.click()
    assert page.evaluate("window.harmed") is None
    assert page.locator("img").count() == 0
    page.fill(".records input", "<script>")
    assert set(column(page, "record_id")) == set(HOSTILE_IDS[:2])
    page.fill(".records input", "aaaa")
    (shown,) = column(page, "record_id")
    assert shown == "a" * 200 + "…"
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_name_that_turns_the_direction_turns_only_itself(run_directory, look) -> None:
    page = look(run_directory.report_html)
    page.fill(".records input", "right-to-left")
    name, length = page.locator(".records tbody td").all()[:2]
    assert name.bounding_box()["x"] < length.bounding_box()["x"]
    assert column(page, "length") == ["6,334"]


def make_large_run(source: RunDirectory, directory: Path, num_records: int) -> RunDirectory:
    """Copy a run, and give it a table of so many records."""
    directory.mkdir()
    shutil.copy(source.run_json, directory)
    header = source.records_tsv.read_text(errors="replace").partition("\n")[0]
    wanted = {"reason": "-", "call": "others", "confidence": "low", "length": "500"}
    with (directory / "records.tsv").open("w") as file:
        file.write(f"{header}\n")
        for number in range(num_records):
            values = wanted | {
                "record_id": f"contig_{number}",
                "score": f"{number / num_records:.6f}",
                "probability": f"{number / num_records:.6f}",
            }
            file.write("\t".join(values.get(name, "1") for name in header.split("\t")) + "\n")
    lines = source.regions_tsv.read_text(errors="replace").splitlines()
    region = dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True))
    region |= {"record_number": "1", "kind": "provirus", "record_length": "500"}
    (directory / "viral_regions.tsv").write_text(
        f"{lines[0]}\n" + "\t".join(region.values()) + "\n"
    )
    return RunDirectory(directory, "")


def test_paper_has_all_columns_and_the_first_records(run_directory, look, tmp_path: Path) -> None:
    large = make_large_run(run_directory, tmp_path / "large", 1_234)
    report(large.path)
    num_records = len(read_calls(run_directory.path))
    for directory, num_printed, note in (
        (run_directory, num_records, ""),
        (large, 100, "Printed: the first 100 of 1,234 records."),
    ):
        # About the width of A4 between its margins.
        page = look(directory.report_html, 700)
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator(".records tbody tr:visible").count() == num_printed
        assert page.inner_text(".printed") == note
        last = page.locator('.records th[data-name="reason"]').bounding_box()
        assert last["x"] + last["width"] <= 700
        page.emulate_media(media="screen")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not page.locator(".printed").is_visible()
        assert page.locator(".records tbody tr").count() < 100


def test_a_hundred_thousand_records_are_listed(run_directory, look, tmp_path: Path) -> None:
    large = make_large_run(run_directory, tmp_path / "large", reading.MAX_LISTED + 2)
    assert report(large.path).exit_code == 0
    page = look(large.report_html)
    assert "The table has 100,000 of 100,002 records" in page.inner_text("main")
    # Only rows in sight are elements of the page.
    assert page.locator(".records tbody tr").count() < 100
    assert column(page, "record_id")[0] == "contig_100001"
    click_head(page, "probability")
    click_head(page, "probability")
    # The least viral of the others are left out, but not the one with a viral region.
    assert column(page, "record_id")[:2] == ["contig_0", "contig_3"]
    page.evaluate("document.querySelector('.scroll').scrollTop = 1e9")
    # Asked from here: the page's own policy forbids a script that waits in it.
    wait_for(lambda: "contig_100001" in page.inner_text(".records tbody"))
    page.fill(".records input", "contig_77777")
    assert column(page, "record_id") == ["contig_77777"]


def test_several_runs_are_compared(run_directory, look, tmp_path: Path) -> None:
    shutil.copytree(run_directory.path, tmp_path / "other")
    runner = CliRunner()
    called = runner.invoke(main, ["call", str(tmp_path / "other"), "--threshold", "0.01"])
    assert called.exit_code == 0
    page_path = tmp_path / "comparison.html"
    assert report(run_directory.path, tmp_path / "other", "-o", page_path).exit_code == 0
    calls = [read_calls(path) for path in (run_directory.path, tmp_path / "other")]
    different = sum(one != other for one, other in zip(*calls, strict=True))
    assert different > 0
    for width in (1280, 390):
        page = look(page_path, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert f"{different} different calls" in page.inner_text("main")
        assert len(column(page, "record_id")) == different
        cells = page.locator("tbody tr").first.locator("td").all_inner_texts()
        # The virus inside a bacterium.
        assert cells[-4] == "1"
        assert page.evaluate("window.harmed") is None


def test_the_page_of_a_run_follows_its_calls(run_directory, tmp_path: Path) -> None:
    shutil.copytree(run_directory.path, tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_text()
    CliRunner().invoke(main, ["call", str(tmp_path / "run"), "--threshold", "0.999999"])
    after = (tmp_path / "run" / "report.html").read_text()
    assert "no record is called viral" not in before
    assert "no record is called viral" in after


def test_another_file_is_not_replaced(run_directory, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    result = report(run_directory.path, "-o", path)
    assert result.exit_code == 2
    assert path.read_text() == "mine"
    assert report(run_directory.path, "-o", path, "--force").exit_code == 0
    assert path.read_text().startswith("<!doctype html>")


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    result = report(tmp_path)
    assert result.exit_code == 1
    assert (
        "run.json: cannot be read (No such file or directory); wanted the output dir"
        in result.stderr
    )
    assert "virnucpro predict, train or evaluate" in result.stderr


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"schema_version": "\\u001b[2J", "sections": []}')
    result = report(tmp_path)
    assert result.exit_code == 1
    assert r"report.json: has schema version '\x1b[2J', and this virnucpro reads" in result.stderr


def test_the_same_run_gives_the_same_page(run_directory, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run_page(run_directory, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_documents_policy_names_its_script(run_directory) -> None:
    """No other script can run, whatever an id contains."""
    page = run_directory.report_html.read_text()
    assert "default-src 'none'" in page
    assert page.count("<script>") == 1
    data = page.partition('class="data">')[2].partition("</script>")[0]
    ids = json.loads(data)["values"]["record_id"]
    assert set(HOSTILE_IDS[:7]) <= set(ids)
    assert "\ufffd\ufffd" in ids


@WIDTHS
def test_the_page_of_an_evaluation(repository: Path, run_directory, look, tmp_path, width) -> None:
    labels = repository / "examples" / "labels.tsv"
    command = ["evaluate", str(run_directory.path), "--truth", str(labels), "-o", str(tmp_path)]
    assert CliRunner().invoke(main, [*command, "--force"]).exit_code == 0
    page = look(tmp_path / "report.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    figure = page.locator("figure.paper img")
    assert figure.evaluate("picture => picture.naturalWidth") > 500
    assert page.locator("table").count() == 2
    with page.expect_download() as waiting:
        page.locator('[data-save="png"]').click()
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")


def test_the_page_replaces_no_result_of_the_run(run_directory) -> None:
    before = run_directory.records_tsv.read_bytes()
    result = report(run_directory.path, "-o", run_directory.records_tsv, "--force")
    assert result.exit_code == 2
    assert "records.tsv: is a result of the run; choose another name" in result.stderr
    assert run_directory.records_tsv.read_bytes() == before
