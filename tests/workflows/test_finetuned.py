"""Classifiers that change the encoders: every command embeds as with weights changed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.finetuned import make_changes, merge_by_hand, write_finetuned
from tests.runs import read_table, read_tables, write_reads
from virnucpro import (
    CalibrateConfig,
    CallConfig,
    EmbedConfig,
    PredictConfig,
    Scorer,
    calibrate,
    call,
    embed,
    predict,
)
from virnucpro.backend.changes import LowRank
from virnucpro.checkpoints.parts import finished_parts, read_identity
from virnucpro.cli.main import main
from virnucpro.config import CheckPrecisionConfig, ExportConfig, MergeConfig
from virnucpro.embedding.models import open_model
from virnucpro.errors import ClassifierError, IdentityMismatchError, WeightsError
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.sequences.fasta import RecordReader
from virnucpro.workflows.check_precision import check_precision
from virnucpro.workflows.export import export_embeddings
from virnucpro.workflows.merge import merge
from virnucpro.workflows.predict import predict_shard

Make = Callable[..., PredictConfig]
CHANGES = make_changes(0)


@pytest.fixture(scope="module")
def settings(demo_weights, tmp_path_factory) -> dict[str, dict[str, str]]:
    """The settings of a classifier with changes, and of weights that have them already."""
    directory = tmp_path_factory.mktemp("finetuned")
    return {
        "tuned": write_finetuned(demo_weights, directory / "tuned.safetensors", CHANGES),
        "by hand": merge_by_hand(demo_weights, directory, CHANGES),
    }


@pytest.fixture(scope="module")
def make(settings, tmp_path_factory) -> Make:
    directory = tmp_path_factory.mktemp("runs")
    reads = write_reads(directory / "reads.fa", 40)

    def make_config(kind: str = "tuned", name: str = "run", **others: Any) -> PredictConfig:
        return PredictConfig(
            inputs=(str(reads),),
            device="cpu",
            dataloader_workers=0,
            report=False,
            **settings[kind] | {"output_dir": directory / name} | others,
        )

    return make_config


@pytest.fixture(scope="module")
def runs(make: Make) -> dict[str, Path]:
    return {kind: predict(make(kind, kind)).output_dir for kind in ("tuned", "by hand")}


def test_the_tables_are_those_of_weights_changed_by_hand(
    runs: dict[str, Path], make: Make, demo_weights, tmp_path: Path
) -> None:
    assert read_tables(runs["tuned"]) == read_tables(runs["by hand"])
    base = predict(make(output_dir=tmp_path / "base", **demo_weights)).output_dir
    columns = [
        [row["score"] for row in read_table(one / "records.tsv")] for one in (runs["tuned"], base)
    ]
    assert columns[0] != columns[1]


def test_the_run_says_which_weights_it_had(runs: dict[str, Path]) -> None:
    document = json.loads((runs["tuned"] / "run.json").read_text())
    made_for = document["classifier"]["made_for"]
    assert made_for["finetuned"] == {"targets": ["dna", "protein"]}
    for model in document["backends"]:
        alphabet = model["alphabet"]
        assert model["weights_identity"] == made_for[f"{alphabet}_weights_identity"]
        (part, *_) = finished_parts(runs["tuned"] / "checkpoints" / alphabet)
        wanted = f"{model['weights_identity']}+{model['changes_identity']}"
        assert read_identity(part).weights_identity == wanted
    plain = json.loads((runs["by hand"] / "run.json").read_text())
    assert not any("changes_identity" in model for model in plain["backends"])


def test_parts_of_other_changes_are_never_taken(
    runs: dict[str, Path], make: Make, demo_weights, tmp_path: Path
) -> None:
    predict(make(output_dir=runs["tuned"], resume=True))
    other = make_changes(0)
    other["dna"]["layers.1.mlp_out.bias"] = CHANGES["dna"]["layers.1.mlp_out.bias"] + 1e-3
    others = write_finetuned(demo_weights, tmp_path / "other", other)
    for settings in (others, demo_weights):
        with pytest.raises(IdentityMismatchError, match=r"weights identity is sha256:\w+"):
            predict(make(output_dir=runs["tuned"], resume=True, **settings))


def test_shares_are_merged(runs: dict[str, Path], make: Make, tmp_path: Path) -> None:
    shares = [make(output_dir=tmp_path / f"{n}", shard=f"{n}/2") for n in (1, 2)]
    for share in shares:
        predict_shard(share)
    config = MergeConfig(
        run_dirs=tuple(share.output_dir for share in shares), output_dir=tmp_path / "merged"
    )
    assert read_tables(merge(config).output_dir) == read_tables(runs["tuned"])


def test_a_scorer_scores_as_a_run(runs: dict[str, Path], make: Make, settings) -> None:
    scorer = Scorer("custom", device="cpu", **settings["tuned"])
    records = {one.id: one.sequence for one in RecordReader(make().inputs[0], "dna")}
    found = scorer.score(records).calls.score
    rows = read_table(runs["tuned"] / "records.tsv")
    wanted = [float(row["score"].replace("NA", "nan")) for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5.1e-5)


def test_a_precision_is_checked_with_the_changes(make: Make) -> None:
    checks = [
        check_precision(
            CheckPrecisionConfig(
                **{
                    name: getattr(make(kind, f"checked {kind}"), name)
                    for name in (
                        "inputs",
                        "output_dir",
                        "model_path",
                        "dna_weights",
                        "protein_weights",
                        "device",
                    )
                },
                precision="bf16",
            )
        )
        for kind in ("tuned", "by hand")
    ]
    assert checks[0] == checks[1]
    assert all(one.min_cosine < 1 for one in checks[0].embeddings)


def test_a_screen_may_have_changes(
    runs: dict[str, Path], make: Make, settings, tmp_path: Path
) -> None:
    tuned = settings["tuned"]
    screen = {
        "screen": tuned["model_path"],
        "screen_dna_weights": tuned["dna_weights"],
        "screen_protein_weights": tuned["protein_weights"],
        "screen_loss": 0.2,
    }
    output = predict(make("by hand", output_dir=tmp_path / "screened", **screen)).output_dir
    judged = read_table(output / "records.tsv")
    alone = {row["record_id"]: row for row in read_table(runs["tuned"] / "records.tsv")}
    found = {row["record_id"] for row in judged if row["judged_by"] == "screen"}
    assert found
    for row in judged:
        if row["record_id"] in found:
            assert row["score"] == alone[row["record_id"]]["score"]
    backends = json.loads((output / "run.json").read_text())["screen"]["backends"]
    assert all(one["changes_identity"].startswith("sha256:") for one in backends)
    share = make("by hand", output_dir=tmp_path / "share", shard="1/1", **screen)
    predict_shard(share)
    merged = merge(MergeConfig(run_dirs=(share.output_dir,), output_dir=tmp_path / "merged"))
    assert read_tables(merged.output_dir) == read_tables(output)


def test_embed_and_export_give_the_changed_embeddings(
    runs: dict[str, Path], make: Make, settings, tmp_path: Path
) -> None:
    exported = {
        kind: export_embeddings(ExportConfig(run_dir=run, output_dir=tmp_path / kind, to="npz"))
        for kind, run in runs.items()
    }
    with (
        np.load(exported["tuned"].paths[0]) as found,
        np.load(exported["by hand"].paths[0]) as wanted,
    ):
        for name in ("ids", "dna", "protein"):
            np.testing.assert_array_equal(found[name], wanted[name])
    embedded = []
    for kind, classifier in (("tuned", settings["tuned"]["model_path"]), ("by hand", None)):
        config = EmbedConfig(
            input=make().inputs[0],
            backend="dnabert-s",
            weights=settings[kind]["dna_weights"],
            output_path=tmp_path / f"{kind}.h5",
            classifier=classifier,
            device="cpu",
            dataloader_workers=0,
        )
        with h5py.File(embed(config)) as file:
            embedded.append(file["embeddings"][:])
            identity = file.attrs["weights_identity"]
        assert ("+" in identity) == (kind == "tuned")
    np.testing.assert_array_equal(*embedded)


def test_calls_and_calibrations_keep_the_changes(
    runs: dict[str, Path], settings, tmp_path: Path
) -> None:
    before = read_tables(runs["tuned"])
    assert call(CallConfig(run_dir=runs["tuned"])).num_records == 40
    assert read_tables(runs["tuned"]) == before
    rows = read_table(runs["tuned"] / "records.tsv")
    truth = tmp_path / "truth.tsv"
    lines = [f"{row['record_id']}\t{('virus', 'others')[n % 2]}\n" for n, row in enumerate(rows)]
    truth.write_text("id\tlabel\n" + "".join(lines))
    source = Path(settings["tuned"]["model_path"])
    config = CalibrateConfig(
        classifier=source, run_dir=runs["tuned"], truth=truth, output_path=tmp_path / "c"
    )
    calibrate(config)
    found, wanted = load_classifier(tmp_path / "c"), load_classifier(source)
    assert found.metadata.finetuned == wanted.metadata.finetuned
    assert found.metadata.calibration != wanted.metadata.calibration
    assert found.changes.keys() == wanted.changes.keys()
    down_RI, up_OR = found.changes["dna"]["layers.0.mlp_out.weight"]
    assert torch.equal(down_RI, CHANGES["dna"]["layers.0.mlp_out.weight"].down_RI)
    assert torch.equal(up_OR, CHANGES["dna"]["layers.0.mlp_out.weight"].up_OR)


@pytest.mark.parametrize(
    ("alphabet", "name", "change", "message"),
    [
        ("dna", "layers.9.qkv.weight", torch.ones(3, 3), "no such parameter"),
        ("protein", "layers.0.fc1.weight", torch.ones(3, 3), "shape"),
        (
            "protein",
            "layers.0.out.weight",
            # Their product would take 16 TB.
            LowRank(torch.ones(1, 2_000_000), torch.ones(2_000_000, 1)),
            "shape",
        ),
    ],
)
def test_changes_of_another_encoder_are_refused(
    demo_weights, tmp_path: Path, alphabet, name: str, change, message: str
) -> None:
    path = tmp_path / "c"
    write_finetuned(demo_weights, path, {alphabet: {name: change}})
    backend = {"dna": "dnabert-s", "protein": "esm2"}[alphabet]
    changes = load_classifier(path).changes[alphabet]
    model = open_model(backend, demo_weights[f"{alphabet}_weights"], None, changes)
    with pytest.raises(WeightsError, match=rf"'{name}' .*{message}"):
        model.load_encoder(torch.device("cpu"), "fp32", "auto")


def test_other_weights_are_refused(make: Make, settings, tmp_path: Path) -> None:
    mixed = settings["tuned"] | {"dna_weights": settings["by hand"]["dna_weights"]}
    with pytest.raises(
        ClassifierError, match=r"trained on dnabert-s weights sha256:\w+, and the run"
    ):
        predict(make(output_dir=tmp_path / "out", **mixed))


@pytest.fixture
def embed_command(make: Make, settings, tmp_path: Path) -> Callable[..., Result]:
    def run_command(*args: str) -> Result:
        names = ["embed", make().inputs[0], "-o", str(tmp_path / "out.h5"), "-d", "cpu"]
        return CliRunner().invoke(main, [*names, *args])

    return run_command


def test_embed_refuses_a_classifier_of_another_model(
    embed_command, settings, tmp_path: Path
) -> None:
    dna = ["--backend", "dnabert-s", "--weights"]
    cases = [
        (
            "by hand",
            "by hand",
            "changes no dna model, and dnabert-s is one; leave out --classifier",
        ),
        ("tuned", "by hand", "trained on dnabert-s weights sha256:"),
    ]
    for classifier, weights, message in cases:
        done = embed_command(
            *dna,
            settings[weights]["dna_weights"],
            "--classifier",
            settings[classifier]["model_path"],
        )
        assert done.exit_code == 1
        assert message in done.output
    assert not (tmp_path / "out.h5").exists()
