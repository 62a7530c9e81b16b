from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from tests import legacy_files as old
from tests.legacy.test_pickles import Bomb
from tools.make_classifier_weights import make_classifier
from virnucpro.checkpoints.parts import finished_parts
from virnucpro.cli.main import main
from virnucpro.scoring.classifier_files import load_classifier, read_classifier


def migrate(*arguments):
    return CliRunner().invoke(main, ["migrate", *map(str, arguments)])


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "old"
    frames = old.make_frames(3, 768)
    old.save(directory / "s_nucleotide/output_1_DNABERT_S.pt", old.dna_document(frames))
    old.write_shard(directory / "esm_v2/shard_0.h5", old.make_frames(2, 2560))
    return directory


def test_the_report_of_a_dry_run(run, tmp_path):
    result = migrate(run, "--dry-run", "--jobs", 1)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{run}/esm_v2/shard_0.h5\n"
        "  version 2 (v2.0, shard); protein, 2 rows of 2560 numbers, precision fp16\n"
        "  would be taken: 2 protein\n"
        "  note: a resumed run of v2.0 may have paired ids with the wrong embeddings, and "
        "nothing in the file tells; check it with --verify\n"
        f"{run}/s_nucleotide/output_1_DNABERT_S.pt\n"
        "  version 0 (A or C: the original, the fork before v1.0, or proteins of v2.0); dna, 3 "
        "rows of 768 numbers, precision unknown\n"
        "  would be taken: 3 dna\n"
        "ids: 3\n"
        "dna: 3\n"
        "protein: 2\n"
        "dna without protein: 1\n"
        "protein without dna: 0\n"
        "repeated: dna 0, protein 0\n"
        "ambiguous: dna 0, protein 0\n"
        "files refused: 0\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_a_dry_run_sees_what_would_be_refused(run, tmp_path):
    (tmp_path / "file").touch()
    result = migrate(run, "--dry-run", "--jobs", 1, "-o", tmp_path / "file/new")
    assert result.exit_code == 1
    assert "file/new: the output directory cannot be made (Not a directory)" in result.stderr
    result = migrate(run, "--dry-run", "-o", run / "new")
    assert "lies within" in result.stderr
    (tmp_path / "new").mkdir()
    assert migrate(run, "--dry-run", "--jobs", 1, "-o", tmp_path / "new").exit_code == 0
    assert not any((tmp_path / "new").iterdir())
    make_classifier(tmp_path / "500_model.safetensors", 768, 2560, 500)
    torch.save(read_classifier(tmp_path / "500_model.safetensors")[0], tmp_path / "500_model.pth")
    target = tmp_path / "file/500.safetensors"
    result = migrate(tmp_path / "500_model.pth", "--dry-run", "-e", 500, "-o", target)
    assert "file: the output directory cannot be made (" in result.stderr


def test_features_are_written(run, tmp_path):
    result = migrate(run, "-o", tmp_path / "new", "--jobs", 1, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["counts"]["ids"] == 3
    assert finished_parts(tmp_path / "new/dna")
    assert finished_parts(tmp_path / "new/protein")


def test_refused_files_give_exit_code_1(run, tmp_path):
    old.save(run / "s_protein/output_1_ESM.pt", Bomb(tmp_path / "ran"))
    result = migrate(run, "-o", tmp_path / "new", "--jobs", 1)
    assert result.exit_code == 1
    assert "  refused: it names posix.system" in result.stdout
    assert "files refused: 1" in result.stdout
    assert finished_parts(tmp_path / "new/dna")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give -o, or --dry-run"),
        (["--dry-run", "--verify", "3"], "--verify needs --dna-weights or --protein-weights"),
        (["--dry-run", "--dna-weights", "x"], "these need --verify"),
    ],
)
def test_wrong_usage(run, options, message):
    result = migrate(run, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_directory_without_features_is_no_success(tmp_path):
    (tmp_path / "features").mkdir()
    result = migrate(tmp_path / "features", "--dry-run")
    assert result.exit_code == 2
    assert "features: holds no file of features (.h5, .pt, .pth)" in result.stderr


def test_a_classifier(tmp_path):
    make_classifier(tmp_path / "made.safetensors", 6, 4, 300)
    source, target = tmp_path / "300_model.pth", tmp_path / "300.safetensors"
    torch.save(read_classifier(tmp_path / "made.safetensors").state, source)
    dims = ["--dna-dim", 6, "--protein-dim", 4]
    result = migrate(source, "-o", target, *dims)
    assert result.exit_code == 2
    assert "its name suggests -e 300" in result.stderr
    result = migrate(source, "-o", target, "-e", 300, "--dry-run", *dims)
    assert (result.exit_code, result.stdout) == (0, f"Would write: {target}\n")
    assert not target.exists()
    result = migrate(source, "-o", target, "-e", 300, *dims)
    assert (result.exit_code, result.stdout) == (0, f"Written: {target}\n")
    assert load_classifier(target).metadata.chunk_length_bp == 300
