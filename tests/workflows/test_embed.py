"""`virnucpro embed`: from sequences to one file of vectors."""

from __future__ import annotations

import errno
import fcntl
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from virnucpro import EmbedConfig, embed
from virnucpro.backend.registry import load_backend
from virnucpro.checkpoints.parts import check_part
from virnucpro.cli.main import main
from virnucpro.errors import IdentityMismatchError, OutputExistsError, UsageError
from virnucpro.runtime.locks import locked

Run = Callable[..., Result]
LETTERS = {"dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}
BACKENDS = ("dnabert-s", "esm2")


def make_sequences(backend: str, num: int = 60) -> list[str]:
    """Return random sequences, a very long one at the end; every tenth is the one before it."""
    generator = random.Random(0)
    letters = LETTERS[load_backend(backend).backend.info.alphabet]
    sequences = [
        "".join(generator.choices(letters, k=generator.randint(1, 200))) for _ in range(num)
    ]
    sequences[9::10] = sequences[8::10]
    return [*sequences, "".join(generator.choices(letters, k=3_000))]


def write_fasta(path: Path, sequences: list[str]) -> Path:
    path.write_text(
        "".join(f">r{number} of many\n{text}\n" for number, text in enumerate(sequences))
    )
    return path


def weights_of(backend: str, demo_weights: dict[str, str]) -> str:
    return demo_weights["dna_weights" if backend == "dnabert-s" else "protein_weights"]


@pytest.fixture
def command(demo_weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def run_command(backend: str, *args: str) -> Result:
        options = ["--backend", backend, "--weights", weights_of(backend, demo_weights)]
        arguments = ["embed", "in.fa", *options, "-o", "out.h5", "-d", "cpu", *args]
        return CliRunner().invoke(main, arguments)

    return run_command


@pytest.fixture
def config(tmp_path: Path, demo_weights) -> EmbedConfig:
    """Several batches of DNA, from Python."""
    return EmbedConfig(
        input=str(write_fasta(tmp_path / "in.fa", make_sequences("dnabert-s"))),
        backend="dnabert-s",
        weights=demo_weights["dna_weights"],
        output_path=tmp_path / "out.h5",
        batch_tokens=300,
        device="cpu",
    )


def read(path: Path) -> tuple[list[int], list[str], np.ndarray]:
    with h5py.File(path) as file:
        return file["rows"][:].tolist(), file["ids"].asstr()[:].tolist(), file["embeddings"][:]


def embed_alone(backend_name: str, weights_location: str, sequences: list[str]) -> np.ndarray:
    """Embed one sequence at a time with the backend itself."""
    backend = load_backend(backend_name).backend
    weights = backend.open_weights(weights_location)
    collator = backend.load_collator(weights)
    encoder = backend.load_encoder(
        weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
    )
    with torch.inference_mode():
        batches = (collator(np.array([0]), [sequence]) for sequence in sequences)
        return torch.cat([encoder(batch) for batch in batches]).numpy()


def interrupt_after(num_batches: int) -> Callable[..., None]:
    calls: list[object] = []

    def press_ctrl_c(update: object) -> None:
        calls.append(update)
        if len(calls) == num_batches:
            raise KeyboardInterrupt

    return press_ctrl_c


# What is in the file


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_record_in_input_order(command: Run, demo_weights, backend: str) -> None:
    sequences = make_sequences(backend)
    write_fasta(Path("in.fa"), sequences)
    result = command(backend, "--batch-tokens", "500")
    assert result.exit_code == 0
    assert "embeddings: out.h5" in result.stderr
    rows, ids, embeddings_NE = read(Path("out.h5"))
    assert rows == list(range(len(sequences)))
    assert ids == [f"r{row}" for row in rows]
    expected_NE = embed_alone(backend, weights_of(backend, demo_weights), sequences)
    np.testing.assert_allclose(embeddings_NE, expected_NE, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(embeddings_NE[9:-1:10], embeddings_NE[8:-1:10])
    assert sorted(path.name for path in Path().iterdir()) == ["in.fa", "out.h5", "out.h5.done"]


def read_lengths(path: Path) -> tuple[list[int], list[int]]:
    with h5py.File(path) as file:
        return file["lengths"][:].tolist(), file["embedded_lengths"][:].tolist()


def make_proteins(*lengths: int) -> list[str]:
    generator = random.Random(1)
    return ["".join(generator.choices(LETTERS["protein"], k=length)) for length in lengths]


def test_what_is_cut_is_counted_and_marked(command: Run) -> None:
    proteins = make_proteins(1_500, 1_024, 30)
    write_fasta(Path("in.fa"), [*proteins, proteins[0][:1_024]])
    result = command("esm2")
    assert "Warning: 1 of 4 sequences is longer than the 1024 letters that esm2 reads" in (
        result.stderr
    )
    assert read_lengths(Path("out.h5")) == ([1_500, 1_024, 30, 1_024], [1_024, 1_024, 30, 1_024])
    embeddings_NE = read(Path("out.h5"))[2]
    np.testing.assert_allclose(embeddings_NE[0], embeddings_NE[3], rtol=0, atol=2e-5)


def test_windows_cover_a_long_protein(command: Run, demo_weights) -> None:
    proteins = make_proteins(3_000, 30, 1_025)
    write_fasta(Path("in.fa"), [*proteins, proteins[0]])
    result = command("esm2", "--long", "windows")
    assert "Warning" not in result.stderr
    assert read_lengths(Path("out.h5")) == ([3_000, 30, 1_025, 3_000],) * 2
    rows, _, embeddings_NE = read(Path("out.h5"))
    assert rows == [0, 1, 2, 3]
    windows = [proteins[0][start : start + 1_024] for start in (0, 512, 1_024, 1_536, 2_048)]
    windows += [proteins[1], proteins[2][:1_024], proteins[2][512:]]
    alone_NE = embed_alone("esm2", demo_weights["protein_weights"], windows)
    mean = np.average(alone_NE[:5], axis=0, weights=[1_024] * 4 + [952])
    shorter = np.average(alone_NE[6:], axis=0, weights=[1_024, 513])
    expected_NE = [mean, alone_NE[5], shorter, mean]
    np.testing.assert_allclose(embeddings_NE, expected_NE, rtol=0, atol=2e-5)


def test_dna_that_would_take_days_is_refused_before_it_is_tokenized(command: Run) -> None:
    write_fasta(Path("in.fa"), ["ACGT" * 20, "ACGTTGCA" * 200_000])
    result = command("dnabert-s")
    assert result.exit_code == 1
    assert "in.fa: record 'r1' has 1,600,000 letters" in result.stderr
    assert "give --long windows" in result.stderr
    # What was refused does not block its corrected repetition, and is cut by it.
    write_fasta(Path("in.fa"), ["ACGT" * 20, "ACGTTGCA" * 1_500])
    assert command("dnabert-s", "--long", "windows").exit_code == 0
    assert read_lengths(Path("out.h5")) == ([80, 12_000],) * 2


def test_windows_of_a_model_that_reads_any_length(command: Run, demo_weights) -> None:
    long = "".join(random.Random(3).choices("ACGT", k=12_000))
    write_fasta(Path("in.fa"), [long])
    assert command("dnabert-s", "--long", "windows").exit_code == 0
    alone_NE = embed_alone("dnabert-s", demo_weights["dna_weights"], [long[:10_000], long[5_000:]])
    mean_1E = np.average(alone_NE, axis=0, weights=[10_000, 7_000])[None]
    np.testing.assert_allclose(read(Path("out.h5"))[2], mean_1E, rtol=0, atol=2e-5)


def test_windows_are_not_mixed_with_whole_records(config: EmbedConfig, demo_weights) -> None:
    write_fasta(Path(config.input), make_sequences("esm2", num=30))
    weights = demo_weights["protein_weights"]
    config = replace(config, backend="esm2", weights=weights, long="windows")
    with pytest.raises(KeyboardInterrupt):
        embed(config, interrupt_after(2))
    with pytest.raises(IdentityMismatchError, match="--long is cut now and was windows there"):
        embed(replace(config, resume=True, long="cut"))
    embed(replace(config, resume=True))
    assert read_lengths(config.output_path)[1][-1] == 3_000


def test_identical_records_are_embedded_once(command: Run) -> None:
    write_fasta(Path("in.fa"), ["MKTAYIAK", "mktayiak", "GG", "MKTAYIAK"])
    assert "2 distinct of 4 sequences" in command("esm2").stderr
    embeddings_NE = read(Path("out.h5"))[2]
    np.testing.assert_array_equal(embeddings_NE[[1, 3]], embeddings_NE[[0, 0]])


def test_empty_records_are_left_out_and_counted(command: Run) -> None:
    Path("in.fa").write_text(">none\n>one\nACGT\n>nothing\n\n>two\nGGCC\n")
    result = command("dnabert-s")
    assert result.exit_code == 0
    assert "Warning: empty records, which get no embedding: 2 of 4\n" in result.stderr
    rows, ids, embeddings_NE = read(Path("out.h5"))
    assert (rows, ids) == ([1, 3], ["one", "two"])
    assert embeddings_NE.shape == (2, 48)


def test_only_empty_records(command: Run) -> None:
    Path("in.fa").write_text(">none\n>nothing\n")
    assert command("dnabert-s").exit_code == 0
    assert read(Path("out.h5"))[2].shape == (0, 48)


def test_any_id_is_kept(command: Run) -> None:
    headers = [b"\xff\xe9 not utf-8", "é→".encode(), b"a;b|c\td", b"same", b"same"]
    Path("in.fa").write_bytes(b"".join(b">%s\nACGT\n" % header for header in headers))
    assert command("dnabert-s").exit_code == 0
    with h5py.File("out.h5") as file:
        assert file["ids"][:].tolist() == [header.split()[0] for header in headers]


def test_a_protein_is_not_taken_for_dna(command: Run) -> None:
    write_fasta(Path("in.fa"), ["ACGT", "MKTAYIAK"])
    result = command("dnabert-s")
    assert result.exit_code == 1
    assert "Error: in.fa, line 3: record 'r1' has 'I' at position 6" in result.stderr
    assert not Path("out.h5").exists()
    write_fasta(Path("in.fa"), ["ACGT", "GGCC"])
    assert command("dnabert-s", "--resume").exit_code == 0


def test_dna_is_not_taken_for_proteins(command: Run) -> None:
    write_fasta(Path("in.fa"), make_sequences("dnabert-s"))
    result = command("esm2")
    assert result.exit_code == 1
    assert "Error: in.fa: looks like DNA, and the backend reads proteins" in result.stderr
    assert not Path("out.h5").exists()
    assert command("esm2", "--force-alphabet", "--force").exit_code == 0
    assert len(read(Path("out.h5"))[0]) == 61


def test_the_stop_codon_of_a_protein_is_left_off(command: Run) -> None:
    write_fasta(Path("in.fa"), ["MKTAYIAK*", "MKTAYIAK", "*", "MK*AYIAK"])
    result = command("esm2")
    assert "1 of 4 records has * inside" in result.stderr
    assert "empty records, which get no embedding: 1 of 4" in result.stderr
    rows, _, embeddings_NE = read(Path("out.h5"))
    assert rows == [0, 1, 3]
    np.testing.assert_array_equal(embeddings_NE[0], embeddings_NE[1])


# Going on, and what is in the way


def test_an_interrupted_run_goes_on(config: EmbedConfig, tmp_path: Path, caplog) -> None:
    whole = replace(config, output_path=tmp_path / "whole.h5")
    embed(whole)
    for num_batches in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            embed(replace(config, resume=True), interrupt_after(num_batches))
        assert not config.output_path.exists()
    caplog.clear()
    embed(replace(config, resume=True))
    assert " already done, " in caplog.text
    assert config.output_path.read_bytes() == whole.output_path.read_bytes()
    assert not Path(f"{config.output_path}.parts").exists()


def test_what_is_there_is_not_overwritten_unasked(config: EmbedConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(config, interrupt_after(1))
    message = r"out\.h5: exists already, or its checkpoints do; continue that run with --resume"
    with pytest.raises(OutputExistsError, match=message):
        embed(config)
    embed(replace(config, resume=True))
    content = config.output_path.read_bytes()
    with pytest.raises(OutputExistsError, match="overwrite it with --force"):
        embed(config)
    assert config.output_path.read_bytes() == content


def test_force_starts_afresh(config: EmbedConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(config, interrupt_after(1))
    config.output_path.write_text("something else")
    write_fasta(Path(config.input), ["ACGT", "GGCC"])
    embed(replace(config, force=True))
    assert read(config.output_path)[1] == ["r0", "r1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bf16"}, "precision is bf16 now and was fp32 there"),
        ({"input": "other.fa"}, "the input has changed: its bytes, its compression or its order"),
    ],
)
def test_resume_refuses_other_runs(config: EmbedConfig, monkeypatch, change, message) -> None:
    monkeypatch.chdir(config.output_path.parent)
    write_fasta(Path("other.fa"), ["ACGT"])
    with pytest.raises(KeyboardInterrupt):
        embed(config, interrupt_after(1))
    with pytest.raises(IdentityMismatchError, match=message):
        embed(replace(config, resume=True, **change))
    embed(replace(config, resume=True))
    assert len(read(config.output_path)[0]) == 61


def test_not_even_force_disturbs_a_run_at_work(config: EmbedConfig) -> None:
    work_dir = Path(f"{config.output_path}.parts")
    work_dir.mkdir()
    (work_dir / "part-00000-000000.h5").touch()
    with locked(work_dir / ".lock"), pytest.raises(UsageError, match="another run is working here"):
        embed(replace(config, force=True))
    assert (work_dir / "part-00000-000000.h5").exists()
    embed(replace(config, force=True))


def test_a_second_run_is_refused_where_there_are_no_locks(
    config: EmbedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    refused = []

    def start_another(_: object) -> None:
        if not refused:
            with pytest.raises(UsageError, match="another run may be working here"):
                embed(replace(config, resume=True))
            refused.append(True)

    # As on a network file system: a file stands for the lock.
    monkeypatch.setattr(fcntl, "flock", refuse)
    embed(config, start_another)
    assert refused


def test_a_finished_file_is_left_alone_by_resume(config: EmbedConfig) -> None:
    written = embed(config).stat().st_mtime_ns

    assert embed(replace(config, resume=True)).stat().st_mtime_ns == written


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-8], lambda content: b"other"])
def test_a_damaged_file_is_not_finished(config: EmbedConfig, damage, caplog) -> None:
    path = embed(config)
    whole = path.read_bytes()
    damaged = damage(whole)
    path.write_bytes(damaged)
    embed(replace(config, resume=True))
    assert path.read_bytes() == whole
    assert path.with_name("out.h5.damaged").read_bytes() == damaged
    assert "set aside as out.h5.damaged and computed again" in caplog.text
    check_part(path)


def test_a_file_without_its_mark_is_not_finished(config: EmbedConfig) -> None:
    path = embed(config)
    whole = path.read_bytes()
    path.with_name("out.h5.done").unlink()
    embed(replace(config, resume=True))
    assert path.read_bytes() == whole
    assert path.with_name("out.h5.unfinished").read_bytes() == whole
    check_part(path)


def test_the_file_of_another_run_is_not_replaced(config: EmbedConfig, tmp_path: Path) -> None:
    path = embed(config)
    before = path.read_bytes()
    write_fasta(tmp_path / "in.fa", ["ACGT"])
    with pytest.raises(IdentityMismatchError, match=r"out\.h5 belongs to another run"):
        embed(replace(config, resume=True))
    assert not Path(f"{path}.parts").exists()
    assert path.read_bytes() == before
    check_part(path)
