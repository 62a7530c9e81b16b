from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from virnucpro_esm2 import backend as protein_backend
from virnucpro_esm2.attention import Packing
from virnucpro_esm2.tokens import TOKENS

import virnucpro
from tests.runs import accelerate_launch, run
from tests.tools.mini.small import SIZES, as_codes, random_chunks
from tools.mini import evaluate, finish, measure, train
from tools.mini.export import export_model
from tools.mini.figures import balanced_predictions, figures_by_kind
from tools.mini.genomes import LABELS, keep_groups, read_genomes, write_genomes
from tools.mini.kmers import KmerBaseline, count_kmers
from tools.mini.model import MiniModel
from tools.mini.sampling import SHARES, Sampler
from tools.mini.settings import SETTINGS_NAME, parse_arguments, write_settings
from tools.mini.stretches import (
    DNA_MASK,
    DNA_SPECIAL,
    PROTEIN_MASK,
    Proteins,
    pack_proteins,
    read_chunks,
)
from tools.mini.teachers import Teacher, embedding_loss, read_model
from tools.mini.train import Training, chunk_loss, make_model
from tools.mini.unpack_genomes import cut_records
from virnucpro.config import FrameRule
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.training.stretches import reverse_complement

pytestmark = pytest.mark.slow

SHIPPED = Path(virnucpro.__file__).parent / "data" / "mini"

KINDS = {
    "viral/phage": "AAA ATA TTA AAT GAT",
    "viral/plant_virus": "AAA ATT TTA ACT AGA",
    "bacteria/chromosome": "GGC GCC CTG GAC CAC",
    "archaea/chromosome": "GGC GCG CTC GAC CGC",
    "eukaryote/plant": "GGA GCC CTG GAG CCC",
}
"""For each kind the codons of its genes: none of them stops in a frame that they share."""

RULE = FrameRule("stretches")

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
    "--head-width=16",
    "--num-chunks=32",
    "--num-valid=64",
    "--learning-rate=0.01",
    "--max-mutation-rate=0.3",
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


@pytest.fixture(scope="module")
def trained(genomes_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The directory of a run of 60 steps, and the loss of its first step."""
    path = tmp_path_factory.mktemp("trained") / "run"
    args = arguments(genomes_path, path, *SMALL)
    write_settings(path / SETTINGS_NAME, args, 1)
    training = Training(args)
    training.progress.seconds = 0.02 * 3600  # past the warm-up
    training.step()
    first = training.losses["chunk"].item()
    for _ in range(59):
        training.step()
    training.evaluate()
    return path, first


def run_tool(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *words: object) -> None:
    """Run a tool in this process: each call of the model is then a second instead of five."""
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, words)])
    main()


def arguments(genomes_path: Path, output: Path, *options: str) -> argparse.Namespace:
    output.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", str(genomes_path), str(output), *options])
        return parse_arguments(None)


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
    train, valid = (read_genomes([tmp_path / "genomes.npz"], split) for split in ("train", "valid"))
    assert train.codes_N.tolist() == [0, 1, 2, 3, 4] + [0, 1, 2, 3] * 2 + [4] + [3] * 5
    assert train.start_S.tolist() == [0, 14]
    assert train.length_S.tolist() == [14, 5]
    assert [train.names["class"][index] for index in train.labels["class"]] == ["viral", "archaea"]
    assert valid.codes_N.tolist() == [4, 4, 0, 1, 2]
    with pytest.raises(ValueError, match="no sequence of the split test"):
        read_genomes([tmp_path / "genomes.npz"], "test")


def test_packed_genomes_become_records_of_other_chunks_each_round(genomes_path: Path) -> None:
    genomes = read_genomes([genomes_path], "train")
    num_bases = len(genomes.codes_N)
    records = dict(cut_records(genomes, num_bases + 1000))
    assert sum(map(len, records.values())) == pytest.approx(num_bases + 1000, abs=300)
    first = records["s0_0"]
    assert len(first) == int(genomes.length_S[0])
    assert records.get("s0_250", first[250:]) == first[250:]
    assert any(name.endswith("_250") for name in records)


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
    done = run(*command, "--output", tmp_path / "genomes.npz", "--class-mb=0.0008")
    assert done.returncode == 0, done.stderr
    train = read_genomes([tmp_path / "genomes.npz"], "train")
    # 800 bases may stay: 200 of b2, and 600 of the 1,200 of b1, half of each sequence.
    assert train.length_S.tolist() == [450, 150, 200]
    assert read_genomes([tmp_path / "genomes.npz"], "valid").length_S.tolist() == [80]


def test_several_indexes_are_packed_into_several_files(tmp_path: Path) -> None:
    for name, group in (("a", "v1"), ("b", "v0")):
        (tmp_path / name).mkdir()
        row = f"{name}1\tv.fa\t40\tviral\tphage\t{group}\ttrain"
        header = "id\tfile\tlength\tclass\tsub\tgroup\tsplit"
        (tmp_path / name / "index.tsv").write_text(f"{header}\n{row}\n")
        (tmp_path / name / "v.fa").write_text(f">{name}1\n{'ACGT' * 10}\n")
    indexes = [tmp_path / name / "index.tsv" for name in "ab"]
    command = (sys.executable, "-m", "tools.mini.pack_genomes", *indexes)
    done = run(*command, "--output", tmp_path / "all.npz", "--num-files=2")
    assert done.returncode == 0, done.stderr
    train = read_genomes([tmp_path / "all_1.npz", tmp_path / "all_2.npz"], "train")
    assert train.codes_N.tolist() == [0, 1, 2, 3] * 20
    assert train.start_S.tolist() == [0, 40]
    assert {train.names["group"][index] for index in train.labels["group"]} == {"v1", "v0"}


def test_chunks_without_a_stretch_do_not_count() -> None:
    logits_C = torch.tensor([0.0, 50.0, 1.0], requires_grad=True)
    loss = chunk_loss(logits_C, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx((np.log(2) + np.log(1 + np.exp(-1))) / 2)
    (gradient_C,) = torch.autograd.grad(loss, logits_C)
    assert gradient_C[1] == 0


def test_embeddings_that_a_teacher_makes_too_cost_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    taught_FD = torch.randn(50, 6, generator=generator) * torch.arange(1, 7) + 5
    is_stretch_F = torch.arange(50) < 40
    real_FD = taught_FD[:40]
    mapped_FD = (taught_FD - real_FD.mean(0)) / real_FD.std(0, correction=0)
    mapped_FD[40:] = 1e3
    assert embedding_loss(mapped_FD, taught_FD, is_stretch_F) < 1e-6
    assert embedding_loss(torch.zeros(50, 6), taught_FD, is_stretch_F) > 0.2


def test_a_finished_run_teaches_another_of_other_sizes(genomes_path: Path, tmp_path: Path) -> None:
    args = arguments(genomes_path, tmp_path / "teacher", *SMALL)
    first = Training(args)
    for _ in range(3):
        first.step()
    first.evaluate()
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"learned words of 3 bases, wanted .* those of 6"):
        Teacher(tmp_path / "teacher" / "model", 6, torch.float32, cpu)
    teacher = Teacher(tmp_path / "teacher" / "model", 3, torch.float32, cpu)
    chunks = [read_chunks(as_codes(random_chunks(9, bp, seed=bp)), RULE, 3) for bp in (300, 200)]
    proteins = pack_proteins(chunks)
    with first.averaged(), torch.no_grad():
        wanted_C, wanted_FD = first.network.score(chunks, proteins)
    taught_C, taught_FD = teacher.score(chunks, proteins)
    # The exported encoders are in half precision.
    torch.testing.assert_close(taught_C, wanted_C, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(taught_FD, wanted_FD, rtol=1e-2, atol=1e-2)
    assert wanted_FD.std() > 0.1
    options = ("--protein-width=32", "--teachers", *[str(tmp_path / "teacher" / "model")] * 2)
    args = arguments(genomes_path, tmp_path / "run", *SMALL, *options)
    second = Training(args)
    second.progress.seconds = 0.02 * 3600  # past the warm-up
    second.step()
    before = second.losses["embedding"].item()
    for _ in range(15):
        second.step()
    assert second.losses["embedding"].item() < 0.9 * before
    second.evaluate()
    learned, rule = read_model(tmp_path / "run" / "model")
    assert learned.sizes.protein_width == 32
    assert rule == RULE


def test_chunks_are_masked_with_all_their_stretches(genomes_path: Path, tmp_path: Path) -> None:
    training = Training(arguments(genomes_path, tmp_path / "run", *SMALL, "--mask-rate=1"))
    chunks = [read_chunks(as_codes(random_chunks(20, bp, seed=bp)), RULE, 3) for bp in (300, 200)]
    proteins = pack_proteins(chunks)
    masked = training._mask(chunks, proteins)
    is_masked_F = []
    for one, (seen_CT, masked_M) in zip(chunks, masked.dna, strict=True):
        is_masked_C1 = (seen_CT == DNA_MASK).any(1, keepdim=True)
        assert 0 < is_masked_C1.sum() < len(is_masked_C1)
        is_word_CT = one.dna_CT >= len(DNA_SPECIAL)
        assert torch.equal(seen_CT, one.dna_CT.masked_fill(is_word_CT & is_masked_C1, DNA_MASK))
        assert masked_M.tolist() == (seen_CT != one.dna_CT).flatten().nonzero().flatten().tolist()
        is_masked_F += is_masked_C1.expand_as(one.is_stretch_CN).flatten().tolist()
    seen = masked.protein_T.split(proteins.packing.lengths_B.tolist())
    whole = proteins.token_ids_T.split(proteins.packing.lengths_B.tolist())
    for stretch, seen_T, whole_T in zip(proteins.order_F.tolist(), seen, whole, strict=True):
        masked_T = whole_T.masked_fill(whole_T >= TOKENS.index("L"), PROTEIN_MASK)
        assert torch.equal(seen_T, masked_T if is_masked_F[stretch] else whole_T)
    is_hit_T = masked.protein_T != proteins.token_ids_T
    assert masked.protein_M.tolist() == is_hit_T.nonzero().flatten().tolist()


def test_a_training_begins_with_another_model(
    genomes_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(genomes_path, tmp_path / "first", *SMALL, "--protein-layers=2")
    first = Training(args)
    for _ in range(3):
        first.step()
    first.evaluate()
    known, _ = read_model(tmp_path / "first" / "model")
    chunks = [read_chunks(as_codes(random_chunks(9, 300, seed=1)), RULE, 3)]
    proteins = pack_proteins(chunks)
    wanted_C, _ = known.score(chunks, proteins)
    begin = f"--init={tmp_path / 'first' / 'model'}"
    found = {}
    for num_layers in (1, 2, 5):
        args = arguments(genomes_path, tmp_path / "run", begin, f"--protein-layers={num_layers}")
        assert (args.sizes.protein_layers, args.sizes.word_bp) == (num_layers, 3)
        model = make_model(args, [7]).eval()
        assert model.protein.config.num_layers == len(model.protein.layers) == num_layers
        with torch.no_grad():
            found[num_layers], _ = model.score(chunks, proteins)
    assert torch.equal(found[2], wanted_C)
    # The new layers add nothing yet.
    assert torch.equal(found[5], wanted_C)
    assert not torch.equal(found[1], wanted_C)
    with pytest.raises(SystemExit):
        arguments(genomes_path, tmp_path / "run", begin, "--protein-width=32")
    assert "has other sizes; of these only --protein-layers may differ" in capsys.readouterr().err


def test_the_model_that_ships_is_read_as_predict_reads_it() -> None:
    model, rule = read_model(SHIPPED)
    assert str(rule) == "stretches:2:20"
    chunks = [read_chunks(as_codes(random_chunks(20, 500, seed=1)), rule, model.sizes.word_bp)]
    proteins = pack_proteins(chunks)
    taught_C, _ = Teacher(SHIPPED, model.sizes.word_bp, torch.float32, torch.device("cpu")).score(
        chunks, proteins
    )
    with torch.no_grad():
        found_C, _ = model.score(chunks, proteins)
    torch.testing.assert_close(found_C, taught_C, rtol=1e-4, atol=1e-4)
    assert found_C.std() > 0.1


def test_what_teachers_say_is_mixed_with_the_truth(genomes_path: Path, tmp_path: Path) -> None:
    args = arguments(genomes_path, tmp_path / "teacher", *SMALL)
    teacher = Training(args)
    teacher.step()
    teacher.evaluate()
    found = {}
    for weight in (0.0, 0.5, 1.0):
        options = ("--teachers", str(tmp_path / "teacher" / "model"), f"--teacher-weight={weight}")
        training = Training(arguments(genomes_path, tmp_path / "run", *SMALL, *options))
        training.step()
        found[weight] = training.losses["chunk"].item()
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2, rel=1e-5)
    assert found[0.0] != found[1.0]


def test_published_weights_are_begun_with(genomes_path: Path, tmp_path: Path) -> None:
    sizes = dataclasses.replace(SIZES, protein_width=24, protein_token_dropout=True)
    published = MiniModel(sizes).requires_grad_(False)
    for parameter in published.protein.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    export_model(tmp_path, published, FrameRule("stretches"))
    options = (f"--protein-init={tmp_path / 'esm2'}", "--encoder-learning-rate=0.0001")
    args = arguments(genomes_path, tmp_path / "run", *SMALL, *options)
    assert args.sizes.protein_width == 24
    assert args.sizes.protein_token_dropout
    training = Training(args)
    weights = protein_backend.open_weights(str(tmp_path / "esm2"))
    encoder = protein_backend.load_encoder(
        weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
    )
    proteins = ["MKVLAAGIVGLLLAQWERTY", "ACDEFGHIKLMNPQRSTVWYACDEFGHIKL"]
    batch = protein_backend.load_collator(weights)(np.arange(2), proteins)
    offsets = torch.nn.functional.pad(batch.lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
    packing = Packing(batch.lengths_B, offsets, batch.max_length)
    model = training.network.eval()
    with torch.no_grad():
        found_FD, _ = model.embed_proteins(Proteins(batch.token_ids_T, packing, torch.arange(2)))
    torch.testing.assert_close(found_FD, encoder(batch), rtol=1e-3, atol=1e-3)
    assert {group["peak"] for group in training.optimizer.param_groups} == {0.0001, 0.01}
    training.step()
    training.evaluate()
    again, _ = read_model(tmp_path / "run" / "model")
    assert again.protein.config == model.protein.config


def test_chunks_are_balanced_and_stay_in_their_sequence(genomes_path: Path) -> None:
    genomes = read_genomes([genomes_path], "train")
    sampler = Sampler(genomes, 300, torch.Generator().manual_seed(0))
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


def test_the_same_seed_draws_the_same_chunks_of_both_strands(genomes_path: Path) -> None:
    genomes = read_genomes([genomes_path], "train")
    first, second, other = (
        Sampler(genomes, 300, torch.Generator().manual_seed(seed)).draw_labelled(200)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])
    # Viral genomes have many an A, and so their other strands many a T.
    viral_CL = first[0][first[1]]
    num_a, num_t = ((viral_CL == code).float().mean(1) for code in (0, 3))
    assert 0.35 < (num_t > num_a).float().mean() < 0.65
    assert torch.equal(reverse_complement(reverse_complement(viral_CL)), viral_CL)


def test_a_share_of_the_groups_is_kept_of_every_kind(genomes_path: Path) -> None:
    genomes = read_genomes([genomes_path], "train")
    for share, num_groups in ((1.0, 3), (0.67, 2), (0.01, 1)):
        kept = keep_groups(genomes, share)
        units = torch.stack([kept.labels[name] for name in ("class", "sub", "group")], 1).unique(
            dim=0
        )
        _, num_groups_of_kinds = units[:, :2].unique(dim=0, return_counts=True)
        assert num_groups_of_kinds.tolist() == [num_groups] * len(KINDS)
        assert torch.isin(kept.start_S, genomes.start_S).all()
        assert torch.equal(keep_groups(genomes, share).start_S, kept.start_S)


def test_figures_are_those_counted_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.1, 0.4, 0.4, 0.9])
    is_viral = np.array([False, False, False, False, True, True])
    kinds = np.array(["bacteria", "bacteria", "fungi", "fungi", "phage", "phage"])
    found = figures_by_kind(balanced_predictions(scores, scores, is_viral), kinds)
    # Two viral chunks weigh as much as the four others. The bins of 0.1 and 0.9 are off by 0.1 with
    # a quarter of the weight each, that of 0.4 by 0.1 with half of it.
    assert found["ece"] == pytest.approx(0.1)
    assert found["all"] == found["phage"] == found["fungi"] == pytest.approx(3.5 / 4)


def test_kmers_of_both_strands_are_one() -> None:
    codes_CL = torch.randint(0, 4, (5, 40), generator=torch.Generator().manual_seed(0))
    features_CD = count_kmers(codes_CL.byte())
    assert features_CD.shape == (5, 2080)
    torch.testing.assert_close(features_CD, count_kmers((3 - codes_CL).flip(1).byte()))
    torch.testing.assert_close(features_CD.sum(1), torch.ones(5))
    is_viral_C = torch.tensor([True, False, True, False, True])
    scores_C = KmerBaseline(features_CD, is_viral_C, 1e-4).score(features_CD)
    assert ((scores_C > 0.5) == is_viral_C).all()


def test_a_model_learns_what_tells_its_genomes_apart(
    trained: tuple[Path, float],
    genomes_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_path, untrained = trained
    (after,) = read_log(run_path)
    assert [after["valid"][length]["all"] > 0.9 for length in ("300", "500", "1000")] == [True] * 3
    assert untrained > 0.6
    assert after["loss"]["chunk"] < 0.4
    assert after["step_seconds"]["draw"] < after["step_seconds"]["model"]
    words = ("--models", run_path / "model", "--lengths", 500, "--num-chunks", 256)
    run_tool(monkeypatch, measure.main, genomes_path, *words)
    *_, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["all"] > 0.9


def test_a_model_is_finished_and_evaluated(
    trained: tuple[Path, float],
    genomes_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished = tmp_path / "finished"
    words = (trained[0], finished, tmp_path / "work", "--num-of-kind=12", "--genomes", genomes_path)
    lengths = ("--lengths", 500, 1000)
    run_tool(monkeypatch, finish.main, *words, "--chunk-lengths", 500, *lengths)
    made_for = load_classifier(finished / "500_model.safetensors").metadata
    assert made_for.calibration.most_chunks == 2
    assert made_for.threshold >= 0.5
    assert made_for.protein_weights_identity.startswith("sha256:")
    assert made_for.origin["step"] == 60
    assert "viral: 0.1 at 1000 bp, 0.05 at 3000 bp" in made_for.origin["threshold"]
    assert made_for.origin["settings"]["dna_width"] == 16
    assert made_for.origin["inputs"][0]["sha256"] == sha256(genomes_path.read_bytes()).hexdigest()
    words = (genomes_path, "--model", finished, "--former", SHIPPED, "--genomes", genomes_path)
    options = ("--split=valid", "--num-of-kind=12", "--num-chunks=40", "--lengths", 1000)
    capsys.readouterr()
    run_tool(monkeypatch, evaluate.main, *words, *options, "--output", tmp_path / "evaluated")
    title, models, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "genomes, 1,000 bp"
    assert models.split() == ["model", "former", "6-mers"]
    table = {name: numbers for name, *numbers in map(str.split, lines[: 1 + len(KINDS)])}
    assert table["all"][0] == "60"
    assert float(table["all"][2]) > 0.9
    for kind in KINDS:
        # So few groups have no intervals.
        num_records, _, everything, called, share, virus = map(float, table[kind][:6])
        assert (num_records, share) == (12, 1)
        assert everything == called
        assert 0 <= virus <= 1
        assert (table[kind][6] == "-") != kind.startswith("viral/")
    figures = json.loads((tmp_path / "evaluated" / "1000" / "figures.json").read_text())
    found = figures["genomes"]["all"]["models"]["former"]
    assert found["called_share"] == 1


@pytest.mark.launch
def test_two_processes_train_and_one_goes_on(
    genomes_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(genomes_path), str(tmp_path / "run"), *SMALL]
    words += ["--minutes=1000", "--leg-minutes=0.001"]
    done = run(*accelerate_launch(2, "-m", "tools.mini.train", *words))
    assert done.returncode == 0, done.stderr
    run_tool(monkeypatch, train.main, *words)
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [10, 20]
    assert log[1]["seconds"] > log[0]["seconds"]
    config = json.loads((tmp_path / "run" / "model" / "esm2" / "config.json").read_text())
    assert config["hidden_size"] == 16
