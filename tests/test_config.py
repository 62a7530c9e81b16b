from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from virnucpro.config import EmbedConfig, PredictConfig, input_stem, read_settings
from virnucpro.errors import UsageError

FORK_DEFAULTS = """\
version: "2.0.0"
prediction:
  batch_size: 256
  num_workers: 4
  sequences_per_file: 10000
  default_model_type: "500"
  models:
    "300": "300_model.pth"
    "500": "500_model.pth"
device:
  default: "auto"
  fallback_to_cpu: true
features:
  dnabert:
    model_name: "zhihan1996/DNABERT-S"
    trust_remote_code: true
    batch_size: 2048
  esm:
    model_name: "esm2_t36_3B_UR50D"
    truncation_seq_length: 1024
    toks_per_batch: 2048
    representation_layer: 36
parallelization: {enabled: false, num_workers: 4}
checkpointing: {enabled: true, checkpoint_dir: ".checkpoints", keep_history: 5}
files:
  auto_cleanup: true
  keep_files: ["prediction_results.txt", "prediction_results_highestscore.csv"]
logging: {default_level: "INFO", format: "%(message)s", auto_log_file: true}
progress: {enabled: true, bar_width: 100, update_interval: 0.1}
validation: {warn_ambiguous_bases: true, max_ambiguous_percent: 5.0, check_duplicate_ids: true}
"""


@pytest.fixture
def settings_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


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
        ({"model_type": "300", "expected_length": 400}, 400),
        ({"model_type": "custom", "model_path": "mine.pth"}, 500),
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
        ({"model_type": "400"}, "model_type '400': wanted one of 300, 500, custom"),
        ({"model_type": "custom"}, "custom needs a model"),
        ({"device": "gpu"}, "device 'gpu': wanted auto"),
        ({"precision": "int8"}, "precision 'int8': wanted one of auto, fp32"),
        ({"attention": "fast"}, "attention 'fast'"),
        ({"esm_batch_size": 0}, "esm_batch_size 0: wanted a whole number, at least 1"),
        ({"sequences_per_file": None}, "sequences_per_file None"),
        ({"expected_length": -5}, "expected_length -5"),
        ({"esm_batch_size": "2048"}, "esm_batch_size '2048'"),
        ({"dataloader_workers": True}, "dataloader_workers True"),
        ({"min_length": -1}, "min_length -1"),
        ({"threshold": 1.5}, "threshold 1.5: wanted a score from 0 to 1"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(UsageError, match=message):
        PredictConfig(**{"inputs": "a.fa"} | settings)


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
    assert settings["expected_length"] == 500
    assert settings["precision"] == "auto"


def test_the_forks_own_defaults_mean_ours(settings_file, caplog):
    fields = read_settings(settings_file(FORK_DEFAULTS))
    ours = PredictConfig(inputs="a.fa", dnabert_batch_size=2048, esm_batch_size=2048)
    assert PredictConfig(inputs="a.fa", **fields).settings() == ours.settings()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "checkpointing.keep_history" in message
    assert "toks_per_batch" not in message


def test_keys_without_meaning_are_reported_by_the_main_process_alone(
    settings_file, caplog, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    assert read_settings(settings_file("progress: {enabled: false}")) == {}
    assert not caplog.records


def test_every_meaningful_key_arrives(settings_file, caplog):
    caplog.set_level(logging.WARNING)
    fields = read_settings(
        settings_file(
            "prediction: {sequences_per_file: 9, default_model_type: 300}\n"
            "device: {default: 1}\n"
            "features:\n"
            "  dnabert: {model_name: me/DNA@v2, batch_size: 10}\n"
            "  esm: {model_name: esm2_t6_8M_UR50D, toks_per_batch: 11}\n"
            "files: {auto_cleanup: false}\n"
        )
    )
    assert fields == {
        "sequences_per_file": 9,
        "model_type": "300",
        "device": "1",
        "dna_weights": "me/DNA@v2",
        "dnabert_batch_size": 10,
        "protein_weights": "facebook/esm2_t6_8M_UR50D",
        "esm_batch_size": 11,
        "keep_intermediate": True,
    }
    assert not caplog.records


@pytest.mark.parametrize(
    ("model_type", "path"), [(None, "three.pth"), ("500", "five.pth"), ("custom", None)]
)
def test_the_model_goes_with_the_model_type(settings_file, model_type, path):
    text = "prediction: {default_model_type: 300, models: {300: three.pth, '500': five.pth}}"
    assert read_settings(settings_file(text), model_type).get("model_path") == path


@pytest.mark.parametrize("text", ["", "# nothing\n", "features:\n", "device: {default: }"])
def test_what_is_left_empty_sets_nothing(settings_file, text):
    assert read_settings(settings_file(text)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "device:\n  defualt: cpu\n",
            r"settings.yaml, line 2: unknown key 'device.defualt'; did you mean 'device.default'\?",
        ),
        ("predictions: {batch_size: 1}", r"'predictions'; did you mean 'prediction'\?"),
        ("esm: {toks_per_batch: 1}", r"unknown key 'esm'; did you mean 'features.esm'\?"),
        ("colour: red", "unknown key 'colour'; known are checkpointing, "),
        (
            "prediction: {sequences_per_file: many}",
            "line 1: prediction.sequences_per_file is 'many', wanted a who",
        ),
        ("prediction: {sequences_per_file: true}", "is True, wanted a whole number"),
        ("files: {auto_cleanup: 1}", "files.auto_cleanup is 1, wanted true or false"),
        ("device: {default: [0, 1]}", r"device.default is \[0, 1\], wanted text or a whole number"),
        ("prediction: 5", "line 1: found '5', wanted `key: value` lines"),
        ("just text", "wanted `key: value` lines"),
        ("a: [1", "cannot be read as YAML"),
        ("device: {default: *missing}", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(settings_file, text, message):
    with pytest.raises(UsageError, match=message):
        read_settings(settings_file(text))


def test_a_file_that_would_run_code_is_refused(settings_file, tmp_path):
    trace = tmp_path / "was_run"
    text = f"device: {{default: !!python/object/apply:os.mkdir ['{trace}']}}"
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        read_settings(settings_file(text))
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no\.yaml: cannot be read"):
        read_settings(tmp_path / "no.yaml")
