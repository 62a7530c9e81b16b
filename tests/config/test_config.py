from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest

from virnucpro.config import (
    CalibrateConfig,
    EmbedConfig,
    EvaluateConfig,
    MergeConfig,
    PredictConfig,
    ReportConfig,
    TrainConfig,
    input_stem,
)
from virnucpro.errors import UsageError


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("contigs.fa", "contigs"),
        ("runs/day.1/reads.R1.fastq.gz", "reads.R1"),
        ("SAMPLE.FNA.BZ2", "SAMPLE"),
        ("sample.txt", "sample"),
        ("sample.zst", "sample"),
        ("sample", "sample"),
        (".fa", ".fa"),
    ],
)
def test_stem(name, stem):
    assert input_stem(name) == stem


def test_defaults_are_those_of_the_fork():
    config = PredictConfig(inputs=Path("data/contigs.fasta"))
    assert config.inputs == ("data/contigs.fasta",)
    assert config.stem == "contigs"
    assert config.resolved_output_dir == Path("contigs_predictions")
    assert config.resolved_model_path == Path("500_model.pth")
    assert config.chunk_length_bp == 500
    assert config.cache_clear_interval == 100


@pytest.mark.parametrize(
    ("settings", "length_bp"),
    [
        ({"model_type": "300"}, 300),
        ({"model_type": "300", "chunk_length_bp": 400}, 400),
        ({"model_type": "custom", "model_path": "mine.pth"}, 500),
        ({"model_type": "mini"}, 1000),
        ({"model_type": "mini", "paired": True}, 300),
        ({"model_type": "mini", "chunk_length_bp": 300}, 300),
    ],
)
def test_chunk_length_comes_from_the_model_type(settings, length_bp):
    assert PredictConfig(inputs="a.fa", **settings).chunk_length_bp == length_bp


@pytest.mark.parametrize("inputs", [("a.fa", "b.fa"), ("-",)])
def test_without_one_file_the_output_directory_gives_the_stem(inputs):
    assert PredictConfig(inputs=inputs, output_dir="results/day1/").stem == "day1"


def test_an_output_directory_does_not_change_the_stem_of_one_file():
    config = PredictConfig(inputs="a.fa", output_dir="results")
    assert (config.stem, config.resolved_output_dir) == ("a", Path("results"))


@pytest.mark.parametrize(
    ("given", "device"), [("auto", "auto"), ("cpu", "cpu"), ("cuda", "cuda"), ("2", "cuda:2")]
)
def test_devices(given, device):
    assert PredictConfig(inputs="a.fa", device=given).device == device


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": ()}, "no input"),
        ({"inputs": ("-", "-"), "output_dir": "out"}, "given twice"),
        ({"inputs": ("a.fa", "b.fa")}, "need an output directory"),
        ({"inputs": "-"}, "need an output directory"),
        ({"model_type": "400"}, "model_type '400': wanted one of 300, 500, mini, custom"),
        ({"model_type": "custom"}, "custom needs a classifier"),
        ({"model_type": "mini", "chunk_length_bp": 400}, "chunk length 400: model type mini"),
        ({"device": "gpu"}, "device 'gpu': wanted auto"),
        ({"precision": "int8"}, "precision 'int8': wanted one of auto, fp32"),
        ({"attention": "fast"}, "attention 'fast'"),
        ({"protein_batch_tokens": 0}, "protein_batch_tokens 0: wanted a whole number, at least 1"),
        ({"sequences_per_file": None}, "sequences_per_file None"),
        ({"chunk_length_bp": -5}, "chunk_length_bp -5"),
        ({"protein_batch_tokens": "2048"}, "protein_batch_tokens '2048'"),
        ({"dataloader_workers": True}, "dataloader_workers True"),
        ({"min_length_bp": -1}, "min_length_bp -1"),
        ({"threshold": 1.5}, "threshold 1.5: wanted a number from 0 to 1"),
        ({"max_fdr": 0}, "max_fdr 0: wanted a share between 0 and 1"),
        (
            {"viral_share": 1.0},
            "viral_share 1.0: wanted a share between 0 and 1, such as 0.05 for 5 %",
        ),
        ({"max_fdr": 0.1, "threshold": 0.7}, "--max-fdr and --threshold both decide"),
        (
            {"inputs": ("1.fq", "./1.fq"), "output_dir": "out", "paired": True},
            "paired: one file was given for the first and for the second mates",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(UsageError, match=message):
        PredictConfig(**{"inputs": "a.fa"} | settings)


def test_a_file_is_not_viral_and_other_at_once():
    with pytest.raises(UsageError, match=r"b\.fa: was given 2 times; give each file once"):
        TrainConfig(viral=("a.fa", "b.fa"), other="./b.fa", output_path="head.safetensors")


def test_what_a_command_reads_is_not_its_output(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "labels.tsv")
    with pytest.raises(UsageError, match="link: is read by this command and would be replaced"):
        CalibrateConfig(
            classifier=tmp_path / "head.safetensors",
            run_dir=tmp_path,
            truth=tmp_path / "labels.tsv",
            output_path=tmp_path / "link",
            force=True,
        )


def test_settings_have_their_former_names(tmp_path):
    for make, former, value in (
        (partial(EvaluateConfig, truth="truth.tsv"), "predictions", Path("run")),
        (partial(CalibrateConfig, "a", truth="truth.tsv", output_path="b"), "run", Path("run")),
        (MergeConfig, "runs", (Path("one"), Path("two"))),
        (ReportConfig, "runs", (Path("one"),)),
    ):
        present = "run_dirs" if former == "runs" else "run_dir"
        config = make(**{former: value})
        assert config == make(**{present: value})
        assert getattr(config, present) == value
        other = value * 2 if former == "runs" else Path("other")
        changed = dataclasses.replace(config, **{former: other})
        assert changed == dataclasses.replace(config, **{present: other}) != config
    with pytest.raises(TypeError, match="run_dir"):
        EvaluateConfig(truth="truth.tsv")


def test_embed_settings():
    config = EmbedConfig(input="a.faa", backend="esm2", weights=Path("w"), output_path="a.h5")
    assert (config.weights, config.output_path) == ("w", Path("a.h5"))
    with pytest.raises(UsageError, match="batch_tokens 0"):
        EmbedConfig(input="a", backend="b", weights="w", output_path="o", batch_tokens=0)


def test_settings_are_json_with_defaults_filled_in():
    settings = json.loads(json.dumps(PredictConfig(inputs="a.fa").settings()))
    assert settings["inputs"] == ["a.fa"]
    assert settings["output_dir"] == "a_predictions"
    assert settings["model_path"] == "500_model.pth"
    assert settings["chunk_length_bp"] == 500
    assert settings["precision"] == "auto"
