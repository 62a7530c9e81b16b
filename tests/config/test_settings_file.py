from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.config.settings_file import command_keys, read_settings
from virnucpro.errors import UsageError


@pytest.fixture
def read(tmp_path):
    """Read a settings file with the keys of all commands."""

    def read(text: str) -> dict[str, object]:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return read_settings(path, command_keys())

    return read


def test_names_have_hyphens_or_underscores_and_may_be_aliases(read):
    assert read(
        "predict: {chunk-length-bp: 300, min_length: 9, esm-batch-size: 7, gpus: 0}\n"
        "check_precision: {sample: 5}\n"
        "checkpoints: {show: {json: true}}\n"
    ) == {
        "predict.chunk_length_bp": 300,
        "predict.min_length_bp": 9,
        "predict.protein_batch_tokens": 7,
        "predict.gpus": "0",
        "check-precision.num_records": 5,
        "checkpoints.show.json": True,
    }


def test_values_have_the_types_of_the_options(read):
    assert read(
        "train: {viral: [a.fa, b.fa], other: c.fa, groups: 1.tsv, valid-share: 0.2, compile: off}\n"
        "predict: {compile: yes, model-type: 300, threshold: 1, pin-memory: false}\n"
    ) == {
        "train.viral": ("a.fa", "b.fa"),
        "train.other": ("c.fa",),
        "train.groups": Path("1.tsv"),
        "train.valid_share": 0.2,
        "train.compile": "off",
        "predict.compile": "on",
        "predict.model_type": "300",
        "predict.threshold": 1.0,
        "predict.pin_memory": False,
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "predict:\n", "predict: {threshold: }"])
def test_what_is_left_empty_sets_nothing(read, text):
    assert read(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "embed:\n  precison: bf16\n",
            r"settings.yaml, line 2: unknown key 'embed.precison'; did you mean 'embed.precision'",
        ),
        ("predikt: {}", r"unknown key 'predikt'; did you mean 'predict'\?"),
        ("zzz: 1", "unknown key 'zzz'; known are backends, benchmark, calibrate, call"),
        ("utils: {zzz: 1}", "known are utils.generate-config, utils.validate, utils.validate-ch"),
        ("predict: {inputs: a.fa}", "unknown key 'predict.inputs'"),
        ("predict: {precision: bf17}", "line 1: predict.precision is 'bf17', wanted one of auto"),
        ("predict: {threshold: 2}", "predict.threshold is 2, wanted a number from 0 to 1"),
        ("predict: {max-fdr: 1}", "predict.max-fdr is 1, wanted a share between 0 and 1"),
        ("train: {epochs: 0}", "train.epochs is 0, wanted a whole number, at least 1"),
        ("train: {viral: {a: b}}", "train.viral is {'a': 'b'}, wanted a list"),
        ("train: {viral: [[a]]}", r"train.viral is \[\['a'\]\], wanted text"),
        ("predict: {resume: 1}", "predict.resume is 1, wanted true or false"),
        ("predict: {output-dir: [a]}", r"predict.output-dir is \['a'\], wanted a path"),
        ("predict: {output-dir: ''}", "predict.output-dir is '', wanted a path that is not empty"),
        ("predict: [1, 2]", "line 1: found a list, wanted `key: value` lines"),
        ("checkpoints: {show: 5}", "line 1: found '5', wanted `key: value` lines"),
        ("predict: {gpus: &a [*a]}", "cannot be read as YAML"),
        ("predict:\n\tgpus: 0", r"line 2: cannot be read as YAML \(found character '\\t' that"),
        ("predict: [1", r"line 1: cannot be read as YAML \(expected ',' or '\]', but got"),
        ("predict: {gpus: " + "[" * 2000 + "]" * 2000 + "}", "cannot be read as YAML"),
        ("predict: {<<: {gpus: 0}}", "unknown key 'predict.<<'"),
        ("predict: {gpus: 2026-13-45}", "gpus is '2026-13-45', which YAML cannot read .month must"),
        ("predict: {gpus: !!int x}", "line 1: predict.gpus is 'x', which YAML cannot read"),
        ("predict: {gpus: !!bool x}", "predict.gpus is 'x', which YAML cannot read"),
        ("predict: {gpus: !!timestamp x}", "predict.gpus is 'x', which YAML cannot read"),
        ("predict: {gpus: !!python/name:os.system }", "cannot be read as YAML"),
        ("predict: {gpus: 0x" + "f" * 4_000 + "}", "gpus is a very long int, wanted text|gpus is"),
        ("predict: {gpus: 1" + ":59" * 300_000 + "}", "a value of 900,001 characters"),
        ("predict: {gpus: " + "x" * 2_000_000 + "}", "more than 1,048,576 bytes"),
        ("? " + "x" * 500_000 + "\n: 1", "unknown key 'xxx"),
        ("[a, b]: 1", "line 1: found a list as a key, wanted a name"),
        ("predict: {min-length: 9,\n min_length_bp: 8}", "line 2: predict.min_length_bp is th"),
        ("predict: {}\ntrain: {}\npredict: {}", "line 3: predict is there twice"),
        ("predict: !!python/name:os.system\n  gpus: 0", "found a tag, wanted `key: value` lines"),
        ("predict: !!map x", "found 'x', wanted `key: value` lines"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(read, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(text)
    assert len(str(caught.value)) < 1000


def test_aliases_that_multiply_are_refused_in_a_short_message(read):
    levels = ["a0: &a0 [x, x]"]
    levels += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    with pytest.raises(UsageError, match=r"predict\.gpus is ") as caught:
        read(f"predict: {{gpus: [{{{', '.join(levels)}}}]}}")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("place", ["{gpus: VALUE}", "{gpus: [VALUE]}", "VALUE"])
def test_merged_aliases_that_multiply_are_refused_at_once(read, place):
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    with pytest.raises(UsageError) as caught:
        read("predict: " + place.replace("VALUE", f"{{{', '.join(levels)}}}"))
    assert len(str(caught.value)) < 1000
