from __future__ import annotations

import logging
from pathlib import Path

import pytest

from virnucpro.config import PredictConfig
from virnucpro.config.settings_file import command_keys, read_settings
from virnucpro.errors import UsageError
from virnucpro.legacy.settings import FORK_KEYS, read_fork_fields

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


def read_fields(path: Path, model_type: str | None = None) -> dict[str, object]:
    found = read_settings(path, {**command_keys(), **FORK_KEYS})
    return read_fork_fields(path, found, model_type)


def test_the_forks_own_defaults_mean_ours(settings_file, caplog):
    fields = read_fields(settings_file(FORK_DEFAULTS))
    ours = PredictConfig(inputs="a.fa", dna_batch_tokens=2048, protein_batch_tokens=2048)
    assert PredictConfig(inputs="a.fa", **fields).settings() == ours.settings()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "checkpointing.keep_history" in message
    assert "toks_per_batch" not in message


def test_keys_without_meaning_are_reported_by_the_main_process_alone(
    settings_file, caplog, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert read_fields(settings_file("progress: {enabled: false}")) == {}
    assert not caplog.records


def test_every_meaningful_key_arrives(settings_file, caplog):
    caplog.set_level(logging.WARNING)
    fields = read_fields(
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
        "dna_batch_tokens": 10,
        "protein_weights": "facebook/esm2_t6_8M_UR50D",
        "protein_batch_tokens": 11,
        "keep_intermediate": True,
    }
    assert not caplog.records


@pytest.mark.parametrize(
    ("model_type", "path"), [(None, "three.pth"), ("500", "five.pth"), ("custom", None)]
)
def test_the_model_goes_with_the_model_type(settings_file, model_type, path):
    text = "prediction: {default_model_type: 300, models: {300: three.pth, '500': five.pth}}"
    assert read_fields(settings_file(text), model_type).get("model_path") == (path and Path(path))


@pytest.mark.parametrize("text", ["", "# nothing\n", "features:\n", "device: {default: }"])
def test_what_is_left_empty_sets_nothing(settings_file, text):
    assert read_fields(settings_file(text)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "device:\n  defualt: cpu\n",
            r"settings.yaml, line 2: unknown key 'device.defualt'; did you mean 'device.default'\?",
        ),
        ("predictions: {batch_size: 1}", r"'predictions'; did you mean 'prediction'\?"),
        ("esm: {toks_per_batch: 1}", r"unknown key 'esm'; did you mean 'features.esm'\?"),
        ("colour: red", "unknown key 'colour'; known are backends, benchmark, calibrate, call, "),
        (
            "prediction: {sequences_per_file: many}",
            "line 1: prediction.sequences_per_file is 'many', wanted a who",
        ),
        ("prediction: {sequences_per_file: true}", "is True, wanted a whole number"),
        ("files: {auto_cleanup: 1}", "files.auto_cleanup is 1, wanted true or false"),
        ("device: {default: [0, 1]}", r"device.default is \[0, 1\], wanted text"),
        ("prediction: 5", "line 1: found '5', wanted `key: value` lines"),
        ("just text", "wanted `key: value` lines"),
        ("a: [1", "cannot be read as YAML"),
        ("device: {default: *missing}", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(settings_file, text, message):
    with pytest.raises(UsageError, match=message):
        read_fields(settings_file(text))


def test_a_file_that_would_run_code_is_refused(settings_file, tmp_path):
    trace = tmp_path / "was_run"
    text = f"device: {{default: !!python/object/apply:os.mkdir ['{trace}']}}"
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        read_fields(settings_file(text))
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no\.yaml: cannot be read"):
        read_fields(tmp_path / "no.yaml")
