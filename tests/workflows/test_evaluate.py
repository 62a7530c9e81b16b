"""`virnucpro evaluate` on tables written by hand."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sklearn.metrics import average_precision_score, matthews_corrcoef, roc_auc_score

from tests.runs import read_known_report, read_table
from virnucpro.cli.main import main
from virnucpro.reports.labels import read_truth

HEADER = (
    "record_id\tlength\tnum_chunks\tnum_open_chunks\tnum_frames\tnum_viral_chunks"
    "\tscore\tcall\treason\tprobability\n"
)
# id, length, score, call, reason, probability; label, class
RECORDS = [
    ("p1", 450, "0.9", "virus", "-", "0.95", "virus", "phage"),
    ("p2", 700, "0.8", "virus", "-", "0.85", "virus", "phage"),
    ("p3", 700, "0.4", "others", "-", "0.25", "viral", "phage"),
    ("p4", 300, "NA", "none", "no_open_frame", "NA", "1", "phage"),
    ("b1", 12000, "0.1", "others", "-", "0.05", "others", "bacteria"),
    ("b2", 900, "0.45", "others", "-", "0.3", "other", "bacteria"),
    ("b3", 800, "0.6", "virus", "-", "0.65", "0", "bacteria"),
    ("b4", 0, "NA", "none", "empty", "NA", "0", "bacteria"),
    ("b5", 300, "NA", "none", "no_open_frame", "NA", "0", ""),
]


def write_tables(directory: Path) -> tuple[Path, Path]:
    records, truth = directory / "records.tsv", directory / "labels.tsv"
    lines = [
        f"{name}\t{bp}\t1\t1\t1\t0\t{score}\t{call}\t{reason}\t{chance}\n"
        for name, bp, score, call, reason, chance, *_ in RECORDS
    ]
    # A record that nobody has labelled.
    records.write_text(HEADER + "".join(lines) + "x\t9\t1\t1\t1\t0\t0.5\tvirus\t-\t0.5\n")
    labels = [f"{name}\t{label}\t{kind}\n" for name, *_, label, kind in RECORDS]
    truth.write_text("id\tlabel\tclass\n" + "".join(labels) + "unseen\tvirus\tphage\n")
    return records, truth


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    return write_tables(tmp_path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with the tables and the report on them, and what the command printed."""
    directory = tmp_path_factory.mktemp("evaluated")
    _, truth = write_tables(directory)
    result = evaluate(directory, "--truth", truth)
    assert result.exit_code == 0, result.output
    return directory, result.output


def evaluate(*args: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, args)])


def read_report(directory: Path) -> dict[tuple[str, str, str], str]:
    rows = read_table(directory / "report.tsv")
    return {(row["records"], row["subset"], row["metric"]): row["value"] for row in rows}


@pytest.mark.slow
def test_figures_of_a_table_written_by_hand(evaluated: tuple[Path, str]) -> None:
    report = read_report(evaluated[0] / "evaluation")
    called = [record for record in RECORDS if record[3] != "none"]
    is_viral = np.array([record[6] in ("virus", "viral", "1") for record in called])
    score = np.array([float(record[2]) for record in called])
    is_called = np.array([record[3] == "virus" for record in called])
    wanted = {
        "auroc": roc_auc_score(is_viral, score),
        "auprc": average_precision_score(is_viral, score),
        "precision": 2 / 3,
        "recall": 2 / 3,
        "specificity": 2 / 3,
        "mcc": matthews_corrcoef(is_viral, is_called),
        "brier": np.mean([0.05**2, 0.15**2, 0.75**2, 0.05**2, 0.3**2, 0.65**2]),
    }
    for name, value in wanted.items():
        assert float(report["with a call", "all", name]) == pytest.approx(value, rel=1e-5)
    # Of all records, the viral one without a call is a miss and the others are rightly not called.
    assert float(report["all", "all", "recall"]) == pytest.approx(2 / 4)
    assert float(report["all", "all", "specificity"]) == pytest.approx(4 / 5)
    everyone = [*zip(is_viral, score, strict=True), (True, -1), (False, -1), (False, -1)]
    assert float(report["all", "all", "auroc"]) == pytest.approx(
        roc_auc_score(*zip(*everyone, strict=True)), rel=1e-5
    )


@pytest.mark.slow
def test_records_without_a_call_are_counted_for_each_kind(evaluated: tuple[Path, str]) -> None:
    directory, output = evaluated
    assert "without a call, virus: 1 no_open_frame\n" in output
    assert "without a call, others: 1 empty, 1 no_open_frame\n" in output
    few = "3 viral, 3 others; no intervals, because there are too few records (3 viral, 3 others)\n"
    assert f"with a call: {few}  auroc              0.778\n" in output
    document = read_known_report(directory / "evaluation")
    assert document["without_call"]["others"] == {"empty": 1, "no_open_frame": 1}
    assert document["num_labels"] == 10
    pictures = [directory / f"evaluation/report.{ending}" for ending in ("png", "svg")]
    assert min(picture.stat().st_size for picture in pictures) > 10_000


@pytest.mark.slow
def test_length_bins_and_classes(evaluated: tuple[Path, str]) -> None:
    document = read_known_report(evaluated[0] / "evaluation")
    counts = {
        section["subset"]: (section["num_viral"], section["num_others"])
        for section in document["sections"]
        if section["records"] == "with a call"
    }
    assert counts == {
        "all": (3, 3),
        "length 0-499": (1, 0),
        "length 500-999": (2, 2),
        "length 10000+": (0, 1),
        "all viral against class bacteria": (3, 3),
        "class phage against all others": (3, 3),
    }
    report = read_report(evaluated[0] / "evaluation")
    assert report["with a call", "length 10000+", "auroc"] == "NA"
    assert float(report["with a call", "length 500-999", "auroc"]) == 0.5


def write_copies(directory: Path, num_copies: int, with_groups: bool) -> None:
    """Write the tables of 60 records, each `num_copies` times, perhaps with a group for each.

    A record without a group stands for itself, and so the last one has none.
    """
    directory.mkdir()
    random = np.random.default_rng(0)
    records, truth = [HEADER], ["id\tlabel\tgroup\n" if with_groups else "id\tlabel\n"]
    for number in range(60):
        is_viral = number % 2 == 0
        score = random.beta(3, 2) if is_viral else random.beta(2, 3)
        call = "virus" if score >= 0.5 else "others"
        is_last = number == 59
        for copy in range(1 if is_last else num_copies):
            name = f"r{number:02}.{copy}"
            records.append(f"{name}\t700\t1\t1\t1\t0\t{score}\t{call}\t-\t{score}\n")
            group = "" if is_last else f"genome {number:02}"
            truth.append(f"{name}\t{int(is_viral)}" + (f"\t{group}\n" if with_groups else "\n"))
    (directory / "records.tsv").write_text("".join(records))
    (directory / "labels.tsv").write_text("".join(truth))


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_records_of_a_group_are_resampled_together(tmp_path: Path) -> None:
    found = {}
    for name, num_copies, with_groups in (
        ("once", 1, False),
        ("alone", 1, True),
        ("grouped", 10, True),
        ("apart", 10, False),
    ):
        write_copies(tmp_path / name, num_copies, with_groups)
        result = evaluate(tmp_path / name, "--truth", tmp_path / name / "labels.tsv")
        assert result.exit_code == 0, result.output
        found[name] = {
            row["metric"]: row
            for row in read_table(tmp_path / name / "evaluation/report.tsv")
            if (row["records"], row["subset"]) == ("all", "all")
        }
    assert "95 % intervals by resampling records (300 viral, 291 others)\n" in result.output
    resampled = {
        name: [rows["recall"][f"{key}resampled"] for key in ("", "num_viral_", "num_others_")]
        for name, rows in found.items()
    }
    assert resampled == {
        "once": ["records", "30", "30"],
        "alone": ["groups", "30", "30"],
        "grouped": ["groups", "30", "30"],
        "apart": ["records", "300", "291"],
    }
    document = read_known_report(tmp_path / "grouped/evaluation")
    assert {section["resampled"] for section in document["sections"]} == {"groups"}
    # The largest groups are also measured one by one, where nothing is left to resample.
    groups = [
        section
        for section in document["sections"]
        if section["records"] == "all" and "group genome" in section["subset"]
    ]
    assert len(groups) == 50
    assert {tuple(sorted((group["num_viral"], group["num_others"]))) for group in groups} == {
        (10, 291),
        (10, 300),
    }
    assert {group["estimates"]["auroc"]["low"] for group in groups} == {None}
    for metric in ("recall", "auroc", "brier"):
        once, alone, grouped, apart = (
            [float(rows[metric][key]) for key in ("value", "low", "high")]
            for rows in found.values()
        )
        # Ten copies of a genome are no more evidence than one, and the same draws give the same.
        assert alone == once
        assert grouped[0] == apart[0]
        if metric == "recall":  # that of viral records, all of which have as many copies
            assert grouped == pytest.approx(once, rel=1e-5)
        # Taken apart they pass for ten times as many: intervals are narrower by the root of ten.
        ratio = (grouped[2] - grouped[1]) / (apart[2] - apart[1])
        assert ratio == pytest.approx(10**0.5, rel=0.25)


@pytest.mark.slow
def test_records_without_a_group_take_the_place_of_none(tmp_path: Path) -> None:
    records, truth = [HEADER], ["id\tlabel\tgroup\n"]
    for number in range(130):
        records.append(f"r{number}\t500\t1\t1\t1\t0\t0.5\tothers\t-\tNA\n")
        group = f"genome {number}" if number < 60 else ""
        truth.append(f"r{number}\t{number % 2}\t{group}\n")
    (tmp_path / "records.tsv").write_text("".join(records))
    (tmp_path / "labels.tsv").write_text("".join(truth))
    result = evaluate(tmp_path, "--truth", tmp_path / "labels.tsv")
    assert result.exit_code == 0, result.output
    subsets = {subset for _, subset, _ in read_report(tmp_path / "evaluation")}
    assert sum("group genome" in subset for subset in subsets) == 50


@pytest.mark.slow
def test_a_run_of_a_classifier_without_calibration(tables, tmp_path: Path) -> None:
    records, truth = tables
    lines = [line.rpartition("\t")[0] for line in records.read_text().splitlines()]
    records.write_text("\n".join(lines) + "\n")
    assert evaluate(records, "--truth", truth).exit_code == 0
    assert read_report(tmp_path / "evaluation")["with a call", "all", "brier"] == "NA"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("0.9\tviral", "line 2: the call is 'viral', wanted one of virus, others, none"),
        ("NA\tvirus", "line 2: the call is virus and the score NA; wanted a number from 0 to 1"),
    ],
)
def test_calls_that_cannot_be_measured(tables, tmp_path: Path, wrong: str, message: str) -> None:
    records, truth = tables
    records.write_text(records.read_text().replace("0.9\tvirus", wrong, 1))
    result = evaluate(records, "--truth", truth)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.slow
@pytest.mark.parametrize("is_calibrated", [True, False])
def test_screened_records_rank_below_all_that_the_classifier_judged(
    tmp_path: Path, is_calibrated: bool
) -> None:
    # Score, probability and judge; the scores of the screen are those of another model.
    judged = {
        "v1": ("0.9", "0.8", "classifier"),
        "v2": ("0.3", "0.2", "classifier"),
        "v3": ("0.6", "0.04", "screen"),
        "c1": ("0.35", "0.25", "classifier"),
        "c2": ("0.7", "0.05", "screen"),
        "c3": ("0.5", "0.01", "screen"),
    }
    lines, labels = ["record_id\tlength\tscore\tcall\treason\tprobability\tjudged_by"], []
    for name, (score, known, judge) in judged.items():
        probability = known if is_calibrated or judge == "screen" else "NA"
        call = "virus" if name == "v1" else "others"
        lines.append(f"{name}\t900\t{score}\t{call}\t-\t{probability}\t{judge}")
        labels.append(f"{name}\t{'virus' if name[0] == 'v' else 'others'}")
    lines.append("x\t0\tNA\tnone\tempty\tNA\t-")
    (tmp_path / "records.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels.tsv").write_text("\n".join(["id\tlabel", *labels, "x\tvirus"]) + "\n")
    result = evaluate(tmp_path, "--truth", tmp_path / "labels.tsv")
    assert "judged by the screen: 1 viral, 2 others; in auroc and auprc, they rank" in result.output
    report = read_report(tmp_path / "evaluation")
    # v1 above c1, v2 below c1 alone, v3 above c3 alone; x below all.
    assert float(report["with a call", "all", "auroc"]) == pytest.approx((3 + 2 + 1) / 9)
    assert float(report["all", "all", "auroc"]) == pytest.approx((3 + 2 + 1) / 12)
    squares = [(float(one) - (name[0] == "v")) ** 2 for name, (_, one, _) in judged.items()]
    brier = report["with a call", "all", "brier"]
    assert brier == (f"{np.mean(squares):.6g}" if is_calibrated else "NA")
    document = read_known_report(tmp_path / "evaluation")
    assert document["judged_by_screen"] == {"virus": 1, "others": 2}
    page = (tmp_path / "evaluation/report.html").read_text()
    assert "<dt>Judged by the screen</dt><dd>1 viral, 2 others;" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id\tclass\np1\tvirus\n",
            "line 1: the columns are 'id', 'class'; wanted the columns id, label",
        ),
        ("id\tlabel\np1\tphage\n", "line 2: the label is 'phage', wanted one of virus"),
        ("id\tlabel\np1\tvirus\np2\n", "line 3: found 1 columns, wanted 2"),
        ("id\tlabel\np1\tvirus\np1\tothers\n", "line 3: 'p1' had another label, class or group"),
        ("id\tlabel\tgroup\np1\t1\ta\np1\t1\tb\n", "line 3: 'p1' had another label, class or"),
        ("id\tlabel\nq\tvirus\n", "none of its 1 id is among the 10 records"),
        ("", "line 1: the columns are none"),
    ],
)
def test_labels_that_cannot_be_used(tables, tmp_path: Path, text: str, message: str) -> None:
    records, truth = tables
    truth.write_text(text)
    result = evaluate(records, "--truth", truth)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "evaluation").exists()


def test_labels_in_upper_case_and_with_spaces_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("id\tlabel\np\tVirus \nb\tOTHERS\n")
    truth = read_truth(tmp_path / "labels.tsv")
    assert [label.is_viral for label in truth.values()] == [True, False]


@pytest.mark.usefixtures("without_figures")
def test_the_records_may_come_through_a_pipe(tables, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(tables[0].read_bytes()), daemon=True)
    writer.start()
    result = evaluate(pipe, "--truth", tables[1], "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output


def test_a_directory_that_is_no_run_is_named(tables, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = evaluate(tmp_path / "empty", "--truth", tables[1])
    assert result.exit_code == 1
    assert "empty/records.tsv: no such file; wanted the output directory" in result.output


def test_a_run_without_records_is_explained(tables, tmp_path: Path) -> None:
    for name in ("share", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
    (tmp_path / "share" / "run.json").write_text('{"shard": "1/3"}')
    for name, message in (
        ("share", "is share '1/3' of a run; virnucpro merge makes"),
        ("killed", "is not there, because the run has not finished"),
    ):
        result = evaluate(tmp_path / name, "--truth", tables[1])
        assert (result.exit_code, message in result.output) == (1, True), result.output


@pytest.mark.slow
def test_a_report_is_not_overwritten_unasked(evaluated: tuple[Path, str]) -> None:
    directory, _ = evaluated
    asked = [directory / "records.tsv", "--truth", directory / "labels.tsv"]
    before = {path: path.read_bytes() for path in (directory / "evaluation").iterdir()}
    assert evaluate(*asked).exit_code == 2
    assert evaluate(*asked, "--force").exit_code == 0
    assert {path: path.read_bytes() for path in (directory / "evaluation").iterdir()} == before


@pytest.mark.slow
def test_numbers_need_no_matplotlib(
    evaluated: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = evaluated
    drawn = directory / "evaluation"
    # Python then cannot import it.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = evaluate(directory, "--truth", directory / "labels.tsv", "-o", tmp_path / "plain")
    assert done.exit_code == 0, done.stderr
    assert "pip install 'virnucpro[train]'" in done.stderr
    for name in ("report.tsv", "report.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (drawn / name).read_bytes()
    assert (drawn / "report.svg").is_file()
    assert not (tmp_path / "plain" / "report.svg").exists()
    assert "There are no figures" in (tmp_path / "plain" / "report.html").read_text()


@pytest.mark.slow
def test_the_page_has_the_figures_and_the_numbers(
    evaluated: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(evaluated[0], tmp_path, dirs_exist_ok=True)
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in page
    assert "class phage against all others" in page
    assert f"{float(read_report(tmp_path / 'evaluation')['all', 'all', 'mcc']):.3f}" in page
    assert "1 no_open_frame" in page
    before = page
    (tmp_path / "evaluation" / "report.html").unlink()
    done = CliRunner().invoke(main, ["report", str(tmp_path / "evaluation")])
    assert done.exit_code == 0
    assert (tmp_path / "evaluation" / "report.html").read_text() == before
