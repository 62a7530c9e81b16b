"""The whole command on every kind of bad input: one message, the right exit code, no half a run."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from xopen import xopen

from tests.plugins import install_module
from tests.runs import on_a_terminal, read_tables
from virnucpro import predict as run_predict
from virnucpro.cli.main import main
from virnucpro.config import PredictConfig

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
Tables = dict[str, bytes]


def make_fasta(num_records: int) -> bytes:
    letters = random.Random(0)
    records = [
        f">r{number} a record\n{''.join(letters.choices('ACGT', k=60))}\n"
        for number in range(num_records)
    ]
    return "".join(records).encode()


GOOD = make_fasta(40)


@pytest.fixture
def predict(demo_weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `virnucpro predict` on the demonstration weights, in a directory that holds good.fa."""
    monkeypatch.chdir(tmp_path)
    Path("good.fa").write_bytes(GOOD)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(line: str, output_dir: str = "out", **settings: str) -> Result:
        options = ["--device", "cpu", "--output-dir", output_dir]
        for name, value in (demo_weights | settings).items():
            options += [f"--{name.replace('_', '-')}", value]
        return CliRunner().invoke(main, ["predict", *options, *line.split()])

    return run


@pytest.fixture(scope="module")
def undisturbed(demo_weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of a run of good.fa to which nothing happened."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "good.fa").write_bytes(GOOD)
    settings = {"inputs": directory / "good.fa", "output_dir": directory / "out", "device": "cpu"}
    run_predict(PredictConfig(**settings, **demo_weights))
    return read_tables(directory / "out")


def assert_one_error(result: Result, exit_code: int, *parts: str) -> None:
    assert result.exit_code == exit_code
    assert [line[:7] for line in result.stderr.splitlines()].count("Error: ") == 1
    assert "Traceback" not in result.stderr
    message = result.stderr.partition("Error: ")[2]
    assert [part for part in parts if part not in message] == []


def assert_nothing_to_trust(output_dir: str = "out") -> None:
    left = {path.name for path in Path(output_dir).rglob("*")}
    assert not left & {"records.tsv", "viral.fasta", "run.json", "prediction_results.txt"}
    assert not left & {"manifest.json", "part-00000-000000.h5"}


def assert_resumes_to(wanted: Tables, predict: Run, line: str) -> None:
    """After mending, the same output directory ends as if nothing had happened."""
    assert predict(f"{line} --resume").exit_code == 0
    assert read_tables(Path("out")) == wanted


def test_the_command_of_the_forks_pipelines(
    demo_weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "sample.fasta").write_bytes(GOOD)
    names = ("dna_weights", "protein_weights")
    weights = ", ".join(f"{name}: {demo_weights[name]}" for name in names)
    (tmp_path / "weights.yaml").write_text(f"predict: {{{weights}}}\n")
    # With a hub cache that holds the weights, the pipelines need no settings file.
    line = (
        f"-c {tmp_path}/weights.yaml predict {tmp_path}/sample.fasta --model-type 500 "
        f"--model-path {demo_weights['model_path']} --force --no-progress --output-dir {tmp_path} "
        "--device cpu --parallel --persistent-models --batch-size 256 --esm-batch-size=2048 "
        "--dnabert-batch-size=2048 --threads 8"
    )
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 0
    assert "Traceback" not in result.stderr
    chunks = tmp_path / "sample_merged/prediction_results_highestscore.csv"
    header, *rows = chunks.read_text().splitlines()
    assert header.split("\t") == ["Modified_ID", "Is_Virus", "max_score_0", "max_score_1"]
    assert rows[0].startswith("r0_chunk_1\t")


# Sequences


def compress_zstd(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with xopen(buffer, "wb", format="zst", threads=0) as file:
        file.write(data)
    return buffer.getvalue()


FASTQ = b"@a\nACGT\n+\nIIII\n"
BAD_FILES = {
    "empty": (b"", "in.fa: holds no records"),
    "blank": (b"\n \n\n", "in.fa: holds no records"),
    "cut gz": (gzip.compress(GOOD)[:-20], "in.fa: cannot be read beyond line "),
    "cut bz2": (bz2.compress(GOOD)[:-20], "in.fa: cannot be read beyond line "),
    "cut xz": (lzma.compress(GOOD)[:-20], "in.fa: cannot be read beyond line "),
    "cut zst": (compress_zstd(GOOD)[:-20], "in.fa: cannot be read beyond line "),
    "binary": (b"\x7fELF\x02\x01\0\0", "in.fa: is binary or UTF-16, not text"),
    "binary later": (GOOD + b">\0\0\xff\0\nACGT\n", "in.fa, line 81: the header has a NUL byte"),
    "utf-16": (GOOD.decode().encode("utf-16"), "in.fa: is binary or UTF-16, not text"),
    "protein": (GOOD + b">p\nMKTAYIAK\n", "in.fa, line 81: record 'p' has 'I' at position 6"),
    "text": (b"Dear all,\n", "in.fa, line 1: found 'Dear all,' before the first header"),
    "no id": (GOOD + b"> \nACGT\n", "in.fa, line 81: the header has no id"),
    "quality": (FASTQ + b"@b\nACGT\n+\nII\n" + FASTQ, "in.fa, line 5: the FASTQ record"),
    "cut record": (FASTQ * 3 + b"@b\nACGT\n+\n", "in.fa, line 13: the FASTQ record"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file(undisturbed: Tables, predict: Run, kind: str) -> None:
    content, message = BAD_FILES[kind]
    Path("in.fa").write_bytes(content)
    assert_one_error(predict("in.fa"), 1, message)
    assert_nothing_to_trust()
    Path("in.fa").write_bytes(GOOD)
    assert_resumes_to(undisturbed, predict, "in.fa")


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_input_can_be_accepted(predict: Run, content: bytes) -> None:
    Path("in.fa").write_bytes(content)
    assert_one_error(predict("in.fa"), 1, "in.fa: holds no records", "--allow-empty")
    assert predict("in.fa --allow-empty").exit_code == 0
    tables = read_tables(Path("out"))
    assert tables.pop("viral.fasta") == b""
    with_header = [table for name, table in tables.items() if name.endswith(("sv", ".txt"))]
    assert [len(table.splitlines()) for table in with_header] == [1] * 5
    assert predict("in.fa good.fa --allow-empty", "two").exit_code == 0
    assert len(read_tables(Path("two"))["records.tsv"].splitlines()) == 41


def test_the_second_of_several_files_is_bad(predict: Run) -> None:
    Path("more.fa").write_bytes(b">more\nACGT\nAC5T\n")
    assert_one_error(predict("good.fa more.fa"), 1, "more.fa, line 1: record 'more' has '5'")
    assert_nothing_to_trust()
    Path("more.fa").write_bytes(b">more\nACGT\n")
    assert predict("good.fa more.fa --resume").exit_code == 0
    ids = [line.split(b"\t")[0] for line in read_tables(Path("out"))["records.tsv"].splitlines()]
    assert ids[1:] == [b"r%d" % number for number in range(40)] + [b"more"]


def test_nobody_has_to_type_sequences() -> None:
    code, seen = on_a_terminal("-m", "virnucpro", "frames", "-", answer=">typed")
    assert code == 1
    assert "standard input: is a terminal; name a file, or pipe sequences in" in seen


@pytest.mark.parametrize(
    ("line", "message"),
    [("nowhere.fa", "'nowhere.fa' does not exist"), (".", "'.' is a directory")],
)
def test_no_file(predict: Run, line: str, message: str) -> None:
    assert_one_error(predict(line), 2, message)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "content",
    [
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.rstrip(),
        b"\n" + GOOD.replace(b"\n>", b"\n\n>"),
        b"\xef\xbb\xbf" + GOOD,
        gzip.compress(GOOD),
    ],
    ids=["crlf", "no-newline-at-end", "blank-lines", "byte-order-mark", "gz"],
)
def test_unusual_but_good_files(undisturbed: Tables, predict: Run, content: bytes) -> None:
    Path("in").mkdir()
    Path("in/good.fa").write_bytes(content)
    assert predict("in/good.fa").exit_code == 0
    assert read_tables(Path("out")) == undisturbed


HEADERS = [
    "é→ü utf-8".encode(),
    b"\xe9\xff\xfe not utf-8",
    b"a\ttab\tand more",
    b"\"quoted\" 'words'",
    b"a;b|c=d,e{f}%s\\n$(g) rest",
    b">greater",
    b"nonbreaking\xc2\xa0space",
    b"same",
    b"same",
    b"1",
    b"long" + b"x" * (1 << 20) + b" and longer " + b"y" * (1 << 20),
]


def test_any_header_comes_back(predict: Run) -> None:
    Path("odd.fa").write_bytes(b"".join(b">%s\nGCTGCTGCTGCA\n" % header for header in HEADERS))
    result = predict("odd.fa --threshold 0")
    assert result.exit_code == 0
    assert (
        "1 id belongs to several records; each record has its own lines in every table: same"
        in (result.stderr)
    )
    tables = read_tables(Path("out"))
    rows = [line.split(b"\t") for line in tables["records.tsv"].split(b"\n")[1:-1]]
    # An id ends at the first white space, of which Unicode has more than ASCII.
    ids = [header.replace(b"\xc2\xa0", b" ").split()[0] for header in HEADERS]
    assert [row[0] for row in rows] == ids
    assert {row[7] for row in rows} == {b"virus"}
    viral = tables["viral.fasta"].split(b"\n")[:-1]
    scores = [b" score=%s probability=NA regions=0-12" % row[6] for row in rows]
    assert viral[::2] == [b">" + h + s for h, s in zip(HEADERS, scores, strict=True)]
    assert set(viral[1::2]) == {b"GCTGCTGCTGCA"}


def test_records_without_a_call_are_accounted_for(predict: Run) -> None:
    Path("few.fa").write_bytes(
        b">empty\n>short\nAC\n>stops\n%s\n>ns\nNNNNNN\n" % (b"TAACTAGTTA" * 3)
    )
    assert predict("few.fa").exit_code == 0
    lines = read_tables(Path("out"))["records.tsv"].decode().splitlines()
    assert [line.split("\t")[6:] for line in lines[1:]] == [
        ["NA", "none", "empty", "NA", "NA", "-", "-"],
        ["NA", "none", "too_short", "NA", "0.0", "-", "-"],
        ["NA", "none", "no_open_frame", "NA", "0.0", "-", "-"],
        ["NA", "none", "no_open_frame", "NA", "0.0", "-", "-"],
    ]


# Options, backends and weights


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        ("--threshold 2", 2, "--threshold 2.0: wanted a number from 0 to 1"),
        ("--device tpu", 2, "device 'tpu': wanted auto, cpu, cuda, cuda:N or N"),
        ("--device cuda:99", 2, "device cuda:99: this machine shows "),
        ("--dna-backend dnabert", 1, "No backend is called 'dnabert'; installed are: dnabert-s"),
        ("--dna-backend esm2 --dna-weights {protein_weights}", 2, "backend esm2 reads protein"),
        ("--dna-weights nowhere", 1, "nowhere: no such file or directory, and not a hub id"),
        (
            "--dna-weights some/model@main",
            1,
            "some/model@main: no such file or directory, the hub's cache",
        ),
        ("--dna-weights void", 1, "void: holds no config.json and no tokenizer.json"),
        ("--protein-weights good.fa", 1, "good.fa: refused, because"),
        ("--protein-weights cut.pt", 1, "cut.pt: refused, because it is not a whole zip archive"),
        ("--protein-weights {dna_weights}", 1, "config.json: describes a model of type 'bert'"),
        ("--model-path nowhere.pth", 2, "nowhere.pth: no such classifier"),
        ("--model-path good.fa", 1, "good.fa: refused, because"),
        ("--model-path other.safetensors", 1, "the classifier wants 24 = dnabert-s 16 + esm2 8"),
        ("--expected-length 300", 1, "trained on chunks of 500 bp, and the run cuts chunks of 300"),
    ],
)
def test_settings_that_do_not_fit(
    undisturbed: Tables,
    predict: Run,
    demo_weights: dict[str, str],
    options: str,
    exit_code: int,
    message: str,
) -> None:
    from tools.make_classifier_weights import make_classifier

    Path("void").mkdir()
    Path("cut.pt").write_bytes(Path(demo_weights["protein_weights"]).read_bytes()[:-1000])
    make_classifier(
        Path("other.safetensors"), dna_dim=16, protein_dim=8, chunk_length_bp=500, seed=0
    )
    result = predict(f"good.fa {options.format(**demo_weights)}")
    assert_one_error(result, exit_code, message)
    assert_nothing_to_trust()
    assert_resumes_to(undisturbed, predict, "good.fa")


@pytest.mark.parametrize(
    ("line", "exit_code", "message"),
    [
        ("text.fa", 1, "text.fa, line 1: found 'Dear all,' before the first header"),
        ("good.fa text.fa", 1, "text.fa, line 1: found 'Dear all,'"),
        ("good.fa --model-path text.fa", 1, "text.fa: refused"),
        ("good.fa --attention flash", 2, "attention flash needs a CUDA GPU"),
        ("good.fa --max-fdr 0.1", 1, "needs probabilities, and this classifier has no calibr"),
        ("good.fa --expected-length 300", 1, "the run cuts chunks of 300 bp"),
        ("good.fa --dna-backend esm2", 2, "backend esm2 reads protein, and dna was wanted"),
        (
            "good.fa --model-path other.safetensors",
            1,
            "wants 24 = dnabert-s 16 + esm2 8 numbers for a frame, and the backends give 3328",
        ),
        # The default weights are those of the default backend, so they say nothing here.
        (
            "good.fa --model-path other.safetensors --protein-backend fair-esm",
            1,
            "the backends give dnabert-s 768 + fair-esm ?; choose another classifier, or the "
            "backends and weights that it was trained on: --dna-backend dnabert-s; "
            "--protein-backend esm2",
        ),
    ],
)
def test_cheap_checks_come_before_a_download(
    predict: Run, line: str, exit_code: int, message: str
) -> None:
    """The weights cannot be had, and nobody hears of it because something else is wrong."""
    from tools.make_classifier_weights import make_classifier

    Path("text.fa").write_bytes(b"Dear all,\n")
    make_classifier(
        Path("other.safetensors"), dna_dim=16, protein_dim=8, chunk_length_bp=500, seed=0
    )
    published = {
        "dna_weights": PredictConfig.dna_weights,
        "protein_weights": PredictConfig.protein_weights,
        "model_path": "big.safetensors",
    }
    make_classifier(
        Path("big.safetensors"), dna_dim=768, protein_dim=2560, chunk_length_bp=500, seed=0
    )
    assert_one_error(predict(line, **published), exit_code, message)
    assert not Path("out/checkpoints").exists()


def test_a_gpu_where_there_is_none(predict: Run) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert_one_error(predict("good.fa -d cuda"), 2, "device cuda: this machine shows 0 CUDA GPUs")


def test_a_broken_backend(
    undisturbed: Tables, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    install_module(site, "import a_library_that_is_not_there", "broken-plugin")
    monkeypatch.syspath_prepend(site)
    message = "The backend 'toy' of the package broken-plugin 1.0 is broken"
    assert_one_error(
        predict("good.fa --dna-backend toy"), 1, message, "a_library_that_is_not_there"
    )
    # It is in nobody else's way.
    assert_resumes_to(undisturbed, predict, "good.fa")


# Disks


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let the system refuse larger files, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        (1_000, "out/checkpoints/frames.new: the frame store cannot be written (File too large)"),
        (15_000, "out/checkpoints/dna/part-00000-000000.h5: cannot be written (File too large)"),
    ],
    ids=["store", "parts"],
)
def test_no_room(undisturbed: Tables, predict: Run, num_bytes: int, message: str) -> None:
    kept = "make room, or choose another output; finished work is kept: run the same command with"
    with files_of_at_most(num_bytes):
        assert_one_error(predict("good.fa"), 1, message, kept)
    assert not list(Path("out").rglob("part-*"))
    assert not list(Path("out").rglob("prediction_results*"))
    assert_resumes_to(undisturbed, predict, "good.fa")


def test_no_room_for_results(undisturbed: Tables, predict: Run) -> None:
    assert predict("good.fa").exit_code == 0
    tables = list(Path("out/good_merged").iterdir())
    for path in tables:
        path.unlink()
    with files_of_at_most(2_000):
        result = predict("good.fa --resume")
    assert_one_error(
        result, 1, "out/good_merged/prediction_results.txt: cannot be written (File too large)"
    )
    assert not list(Path("out/good_merged").iterdir())
    assert_resumes_to(undisturbed, predict, "good.fa")


def test_no_room_for_the_log_alone(undisturbed: Tables, predict: Run) -> None:
    Path("out").mkdir()
    Path("out/run.log").write_bytes(b"-" * 2_000)
    Path("bad.fa").write_bytes(b"no header\n")
    with files_of_at_most(2_000):
        result = predict("bad.fa --resume")
    assert_one_error(result, 1, "bad.fa, line 1: found 'no header'")
    assert Path("out/run.log").stat().st_size == 2_000
    assert_resumes_to(undisturbed, predict, "good.fa")


def test_a_file_where_the_output_should_be(predict: Run) -> None:
    Path("out").touch()
    assert_one_error(predict("good.fa"), 2, "Directory 'out' is a file")
    for command in ("good.fa", "good.fa --dry-run"):
        refusal = "out/below: the output directory cannot be made (Not a"
        assert_one_error(predict(command, "out/below"), 1, refusal)
    Path("out").unlink()
    assert predict("good.fa").exit_code == 0


def test_a_file_where_checkpoints_should_be(undisturbed: Tables, predict: Run) -> None:
    Path("out").mkdir()
    Path("out/checkpoints").touch()
    assert_one_error(predict("good.fa --resume"), 1, "out/checkpoints/frames.new: ")
    Path("out/checkpoints").unlink()
    assert_resumes_to(undisturbed, predict, "good.fa")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="root may write everywhere else")
def test_an_output_directory_that_nobody_may_make(predict: Run) -> None:
    assert not os.path.lexists("/sys/out")
    for command in ("good.fa", "good.fa --dry-run"):
        assert_one_error(predict(command, "/sys/out"), 1, "/sys/out: the output directory cannot")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="root may write everywhere else")
def test_a_dry_run_sees_what_the_run_could_not_write(predict: Run, tmp_path: Path) -> None:
    refusal = "/sys: nothing can be written in this directory ("
    assert_one_error(predict("good.fa --dry-run", "/sys"), 1, refusal)
    assert_one_error(predict("good.fa --dry-run --checkpoint-dir /sys"), 1, refusal)
    Path("link").mkdir()
    Path("link/checkpoints").symlink_to("gone")
    refusal = "link/checkpoints: is a link to gone, which is not there"
    assert_one_error(predict("good.fa --dry-run", "link"), 2, refusal)
    Path("held/checkpoints").mkdir(parents=True)
    refusal = "held/checkpoints: holds the checkpoints of this run already, wanted kept"
    assert_one_error(predict("good.fa --dry-run --checkpoint-dir kept", "held"), 2, refusal)
    # An archive of finished checkpoints may be what the run goes on from.
    before = sorted(tmp_path.rglob("*"))
    assert predict("good.fa --dry-run --resume --checkpoint-dir /sys").exit_code == 0
    assert predict("good.fa --dry-run --checkpoint-dir new/kept", "new/out").exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


# The input as its own output


def test_a_result_is_no_input_of_the_run_that_would_replace_it(predict: Run) -> None:
    assert predict("good.fa").exit_code == 0
    Path("out/viral.fasta").write_bytes(GOOD)
    result = predict("out/viral.fasta --force")
    assert_one_error(result, 2, "out/viral.fasta: is an input, and also a result that this run")
    assert Path("out/viral.fasta").read_bytes() == GOOD
    dry = predict("out/viral.fasta --dry-run")
    assert_one_error(dry, 2, "out/viral.fasta: is an input, and also a result that this run")


def test_embed_does_not_overwrite_its_input(
    demo_weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.fa").write_bytes(GOOD)
    line = "embed good.fa --backend dnabert-s -o ./good.fa --force --weights"
    result = CliRunner().invoke(main, [*line.split(), demo_weights["dna_weights"]])
    assert_one_error(result, 2, "good.fa: is read by this command and would be replaced")
    assert Path("good.fa").read_bytes() == GOOD


def test_a_mistyped_backend_leaves_nothing_in_the_way(predict: Run) -> None:
    assert predict("good.fa", dna_backend="dnabert").exit_code == 1
    assert predict("good.fa").exit_code == 0
