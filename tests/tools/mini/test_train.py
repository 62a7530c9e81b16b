from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs import accelerate_launch, run
from tools.mini import evaluate, finish
from tools.mini.figures import (
    balanced_predictions,
    chunk_logits,
    figures_by_kind,
    fit_frame_calibration,
)
from tools.mini.genomes import LABELS, keep_groups, read_genomes, write_genomes
from tools.mini.kmers import KmerBaseline, count_kmers
from tools.mini.sampling import SHARES, Sampler
from tools.mini.train import (
    SETTINGS_NAME,
    Training,
    call_losses,
    parse_arguments,
    read_teacher,
    write_settings,
)
from virnucpro.scoring import calls as scoring
from virnucpro.scoring.classifier_files import load_classifier

KINDS = {
    "viral/phage": "AAA ATA TTA AAT GAT",
    "viral/plant_virus": "AAA ATT TTA ACT AGA",
    "bacteria/chromosome": "GGC GCC CTG GAC CAC",
    "archaea/chromosome": "GGC GCG CTC GAC CGC",
    "eukaryote/plant": "GGA GCC CTG GAG CCC",
}
"""For each kind the codons of its genes: none of them stops in a frame that they share."""

SMALL = [
    "--dna-layers=1",
    "--dna-width=16",
    "--dna-heads=2",
    "--dna-inner=16",
    "--protein-layers=1",
    "--protein-width=16",
    "--protein-heads=2",
    "--protein-inner=16",
    "--hidden=8",
    "--word-bp=3",
    "--num-frames=32",
    "--num-valid=64",
    "--learning-rate=0.01",
]


@pytest.fixture(scope="module")
def genomes_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genomes") / "genomes.npz"
    rng = np.random.default_rng(0)
    sequences = []
    labels: dict[str, list[str]] = {name: [] for name in LABELS}
    for split in ("train", "valid"):
        for kind, codons in KINDS.items():
            for number in range(3):
                letters = "".join(rng.choice(codons.split(), 400 * (number + 1)))
                sequences.append(letters.encode())
                named = (split, *kind.split("/"), f"{kind[0]}{split}{number}")
                for label, name in zip(LABELS, named, strict=True):
                    labels[label].append(name)
    write_genomes(path, sequences, labels)
    return path


def run_tool(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *words: object) -> None:
    """Run a tool in this process: each call of the model is then a second instead of five."""
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, words)])
    main()


def arguments(genomes_path: Path, output: Path, *options: str) -> argparse.Namespace:
    output.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", str(genomes_path), str(output), *options])
        return parse_arguments()


def read_log(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def test_packed_genomes_come_back(tmp_path: Path) -> None:
    sequences = [b"ACGTNACGTACGTR", b"nnacg", b"TTTTT"]
    labels = {
        "split": ["train", "valid", "train"],
        "class": ["viral", "viral", "archaea"],
        "sub": ["phage", "phage", "chromosome"],
        "group": ["v1", "v2", "a1"],
    }
    write_genomes(tmp_path / "genomes.npz", sequences, labels)
    train, valid = (read_genomes(tmp_path / "genomes.npz", split) for split in ("train", "valid"))
    assert train.codes_N.tolist() == [0, 1, 2, 3, 4] + [0, 1, 2, 3] * 2 + [4] + [3] * 5
    assert train.start_S.tolist() == [0, 14]
    assert train.length_S.tolist() == [14, 5]
    assert [train.names["class"][index] for index in train.labels["class"]] == ["viral", "archaea"]
    assert valid.codes_N.tolist() == [4, 4, 0, 1, 2]
    with pytest.raises(ValueError, match="no test"):
        read_genomes(tmp_path / "genomes.npz", "test")


def test_large_groups_are_cut_and_small_ones_kept(tmp_path: Path) -> None:
    rows = ["id\tfile\tlength\tclass\tsub\tgroup\tsplit"]
    records = []
    for number, (group, length, split) in enumerate(
        [("b1", 900, "train"), ("b1", 300, "train"), ("b2", 200, "train"), ("b3", 90, "valid")]
    ):
        rows.append(f"s{number}\tb.fa\t{length}\tbacteria\tchromosome\t{group}\t{split}")
        records.append(f">s{number} x\n{'ACGT' * (length // 4)}{'A' * (length % 4)}\n")
    (tmp_path / "index.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "b.fa").write_text("".join(records))
    command = (sys.executable, "-m", "tools.mini.pack_genomes", tmp_path / "index.tsv")
    done = run(*command, tmp_path / "genomes.npz", "--class-mb=0.0008")
    assert done.returncode == 0, done.stderr
    train = read_genomes(tmp_path / "genomes.npz", "train")
    # 800 bases may stay: 200 of b2, and 600 of the 1,200 of b1, half of each sequence.
    assert train.length_S.tolist() == [450, 150, 200]
    assert read_genomes(tmp_path / "genomes.npz", "valid").length_S.tolist() == [80]


def test_a_teacher_that_is_agreed_with_pulls_nowhere(genomes_path: Path) -> None:
    genomes = read_genomes(genomes_path, "train")
    batch = Sampler(genomes, 300, 3, torch.Generator().manual_seed(0)).draw_batch(
        40, has_errors=False
    )
    logits_F2 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def pull(weight: float) -> float:
        losses = call_losses(logits_F2, [batch], logits_F2.detach(), weight)
        (gradient,) = torch.autograd.grad(sum(losses), logits_F2)
        return float(gradient.abs().max())

    assert pull(1.0) < 1e-7
    # What the truth still counts is what is left of its pull.
    assert pull(0.75) == pytest.approx(pull(0.0) / 4, rel=1e-5)


def test_a_finished_run_teaches_another_of_other_sizes(genomes_path: Path, tmp_path: Path) -> None:
    args = arguments(genomes_path, tmp_path / "teacher", *SMALL)
    write_settings(tmp_path / "teacher" / SETTINGS_NAME, args, 1)
    first = Training(args)
    for _ in range(3):
        first.step()
    first.evaluate({})
    with pytest.raises(ValueError, match=r"learned words of 3 bases, wanted .* those of 6"):
        read_teacher(tmp_path / "teacher", word_bp=6)
    teacher = read_teacher(tmp_path / "teacher", word_bp=3)
    for name, value in first.ema.module.state_dict().items():
        torch.testing.assert_close(teacher.state_dict()[name], value)
    options = ("--protein-width=32", "--teachers", str(tmp_path / "teacher"))
    second = Training(arguments(genomes_path, tmp_path / "run", *SMALL, *options))
    assert second.step()["frame"].isfinite()


def test_chunks_are_balanced_and_stay_in_their_sequence(genomes_path: Path) -> None:
    genomes = read_genomes(genomes_path, "train")
    sampler = Sampler(genomes, 300, 3, torch.Generator().manual_seed(0))
    _, sequence_C = sampler.draw_chunks(sampler.weight_S, 20_000)
    drawn = np.array(sampler.kind_of(sequence_C))
    for name, share in SHARES.items():
        assert np.char.startswith(drawn, f"{name}/").mean() == pytest.approx(share, abs=0.02)
    codes_CL, sequence_C = sampler.draw_chunks(sampler.weight_S, 200)
    letters = np.frombuffer(b"ACGTN", np.uint8)
    for codes_L, sequence in zip(codes_CL, sequence_C.tolist(), strict=True):
        start = int(genomes.start_S[sequence])
        whole = genomes.codes_N[start : start + int(genomes.length_S[sequence])].numpy()
        assert letters[codes_L.numpy()].tobytes() in letters[whole].tobytes()
    wrong_CL, _ = sampler.draw_chunks(sampler.weight_S, 200, has_errors=True)
    assert wrong_CL.shape == (200, 300)
    assert wrong_CL.max() <= 3


def test_the_same_seed_draws_the_same_chunks(genomes_path: Path) -> None:
    genomes = read_genomes(genomes_path, "train")
    first, second, other = (
        Sampler(genomes, 300, 3, torch.Generator().manual_seed(seed)).draw_batch(
            50, has_errors=True
        )
        for seed in (0, 0, 1)
    )
    assert len(first.frames.chunk_F) == 50
    assert torch.equal(first.frames.dna_FT, second.frames.dna_FT)
    assert not torch.equal(first.frames.dna_FT, other.frames.dna_FT)


def test_a_share_of_the_groups_is_kept_of_every_kind(genomes_path: Path) -> None:
    genomes = read_genomes(genomes_path, "train")
    for share, num_groups in ((1.0, 3), (0.67, 2), (0.01, 1)):
        kept = keep_groups(genomes, share)
        units = torch.stack([kept.labels[name] for name in ("class", "sub", "group")], 1).unique(
            dim=0
        )
        _, num_groups_of_kinds = units[:, :2].unique(dim=0, return_counts=True)
        assert num_groups_of_kinds.tolist() == [num_groups] * len(KINDS)
        assert torch.isin(kept.start_S, genomes.start_S).all()
        assert torch.equal(keep_groups(genomes, share).start_S, kept.start_S)


def test_chunk_logits_are_those_of_the_pipelines_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_F2 = torch.randn(50, 2, generator=generator)
    chunk_F = torch.arange(50) // 3
    first_frames = np.append(np.arange(0, 50, 3), 50)
    calls = scoring.call_chunks(logits_F2.softmax(1).numpy(), first_frames)
    scores_C = chunk_logits(logits_F2, chunk_F, 17).sigmoid()
    np.testing.assert_allclose(scores_C, scoring.score_chunks(calls), rtol=1e-5)


def test_figures_are_those_counted_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.1, 0.4, 0.4, 0.9])
    is_viral = np.array([False, False, False, False, True, True])
    kinds = np.array(["bacteria", "bacteria", "fungi", "fungi", "phage", "phage"])
    found = figures_by_kind(balanced_predictions(scores, scores, is_viral), kinds)
    # Two viral chunks weigh as much as the four others. The bins of 0.1 and 0.9 are off by 0.1 with
    # a quarter of the weight each, that of 0.4 by 0.1 with half of it.
    assert found["ece"] == pytest.approx(0.1)
    assert found["all"] == found["phage"] == found["fungi"] == pytest.approx(3.5 / 4)


def test_calibration_undoes_what_was_done() -> None:
    generator = torch.Generator().manual_seed(0)
    true_C = 2 * torch.randn(20_000, generator=generator)
    is_viral_C = torch.rand(20_000, generator=generator) < true_C.sigmoid()
    bad_F2 = torch.stack((torch.zeros_like(true_C), 3 * true_C + 1), 1)
    scale, shift = fit_frame_calibration(bad_F2, torch.arange(20_000), is_viral_C)
    assert scale == pytest.approx(1 / 3, abs=0.02)
    assert shift == pytest.approx(-1 / 3, abs=0.05)


def test_kmers_of_both_strands_are_one() -> None:
    codes_CL = torch.randint(0, 4, (5, 40), generator=torch.Generator().manual_seed(0))
    features_CD = count_kmers(codes_CL.byte())
    assert features_CD.shape == (5, 2080)
    torch.testing.assert_close(features_CD, count_kmers((3 - codes_CL).flip(1).byte()))
    torch.testing.assert_close(features_CD.sum(1), torch.ones(5))
    is_viral_C = torch.tensor([True, False, True, False, True])
    scores_C = KmerBaseline(features_CD, is_viral_C, 1e-4).score(features_CD)
    assert ((scores_C > 0.5) == is_viral_C).all()


def test_a_model_learns_what_tells_its_genomes_apart(genomes_path: Path, tmp_path: Path) -> None:
    training = Training(arguments(genomes_path, tmp_path / "run", *SMALL))
    training.clock.seconds = 0.02 * 3600  # past the warm-up
    untrained = training.step()
    for _ in range(60):
        losses = training.step()
    training.evaluate(losses)
    (after,) = read_log(tmp_path / "run")
    assert after["valid"]["300"]["all"] > 0.9
    assert untrained["chunk"] > 0.6
    assert after["loss"]["chunk"] < 0.4
    for length_bp in (300, 500):
        classifier = load_classifier(tmp_path / "run" / "model" / f"{length_bp}_model.safetensors")
        assert classifier.metadata.chunk_length_bp == length_bp


@pytest.mark.launch
def test_two_processes_train_and_one_goes_on(genomes_path: Path, tmp_path: Path) -> None:
    program = ["-m", "tools.mini.train", str(genomes_path), str(tmp_path / "run"), *SMALL]
    program += ["--minutes=1000", "--leg-minutes=0.001"]
    for command in (accelerate_launch(2, *program), [sys.executable, *program]):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [20, 40]
    assert log[1]["seconds"] > log[0]["seconds"]
    config = json.loads((tmp_path / "run" / "model" / "esm2" / "config.json").read_text())
    assert config["hidden_size"] == 16


def test_a_trained_model_is_finished_and_evaluated(
    genomes_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained, finished = tmp_path / "run", tmp_path / "finished"
    args = arguments(genomes_path, trained, *SMALL)
    write_settings(trained / "settings.json", args, 1)
    training = Training(args)
    training.clock.seconds = 0.02 * 3600  # past the warm-up
    for _ in range(60):
        losses = training.step()
    training.evaluate(losses)
    words = (genomes_path, trained, finished, tmp_path / "work", "--num-records=60")
    run_tool(monkeypatch, finish.main, *words, "--chunk-lengths", 500)
    made_for = load_classifier(finished / "500_model.safetensors").metadata
    assert made_for.calibration.slope > 0
    assert made_for.calibration.most_chunks == 6
    assert made_for.origin["step"] == 60
    assert made_for.origin["settings"]["dna_width"] == 16
    assert made_for.origin["inputs"][0]["sha256"] == sha256(genomes_path.read_bytes()).hexdigest()
    words = (genomes_path, genomes_path, finished, tmp_path / "evaluated")
    options = ("--split=valid", "--num-records=60", "--num-chunks=40", "--lengths", 1000)
    capsys.readouterr()
    run_tool(monkeypatch, evaluate.main, *words, *options)
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "1000 bp (60 of 60 records have a call)"
    table = {name: numbers for name, *numbers in map(str.split, lines)}
    assert float(table["all"][0]) > 0.9
    for kind in KINDS:
        _, _, called, virus = map(float, table[kind])
        assert called == 1
        assert (virus > 0.5) == kind.startswith("viral/")
