"""Shares of one input that separate jobs embed, and checkpoints that outlive a machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.runs import VIRNUCPRO, invoke, read_tables, run, write_reads
from tools.make_demo_weights import make_demo_weights
from virnucpro import MergeConfig, PredictConfig, merge, predict, predict_shard
from virnucpro.errors import InputError, OutputExistsError, UsageError

pytestmark = pytest.mark.slow

BUDGETS = {"dna_batch_tokens": 200, "protein_batch_tokens": 200}
GIVEN = ("model_type", "device", "dna_weights", "protein_weights", "model_path", *BUDGETS)
MERGED = ("records.tsv", "chunks.tsv", "viral.fasta", "viral_regions.tsv", "scores.bedgraph")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PredictConfig:
    directory = tmp_path_factory.mktemp("inputs")
    weights = make_demo_weights(directory / "weights")
    reads = write_reads(directory / "reads.fa", 60)
    return PredictConfig(
        inputs=(str(reads),),
        output_dir=directory / "whole",
        model_type="custom",
        device="cpu",
        dataloader_workers=0,
        report=False,
        **weights,
        **BUDGETS,
    )


@pytest.fixture(scope="module")
def shares(config: PredictConfig) -> list[Path]:
    assert config.output_dir is not None
    found = []
    for number in (1, 2, 3):
        share = dataclasses.replace(
            config, output_dir=config.output_dir.with_name(f"s{number}"), shard=f"{number}/3"
        )
        predict_shard(share)
        found.append(share.resolved_output_dir)
    return found


def test_shares_become_the_run_that_embedded_everything(
    config: PredictConfig, shares: list[Path], tmp_path: Path
) -> None:
    whole = predict(config)
    # The shares were computed elsewhere, and their order says nothing.
    moved = [Path(shutil.copytree(share, tmp_path / share.name)) for share in shares]
    result = merge(MergeConfig(run_dirs=tuple(moved[::-1]), output_dir=tmp_path / "merged"))
    assert (result.num_virus, result.num_none) == (whole.num_virus, whole.num_none)
    for name in MERGED:
        assert (tmp_path / "merged" / name).read_bytes() == (
            whole.output_dir / name
        ).read_bytes(), name
    assert read_tables(result.output_dir) == read_tables(whole.output_dir)
    ours, theirs = (
        json.loads((directory / "run.json").read_text())
        for directory in (result.output_dir, whole.output_dir)
    )
    for name in ("counts", "calls", "backends", "precision"):
        assert ours[name] == theirs[name], name
    rows = [
        sum(told["num_rows"] for told in one["passes"]["DNA embeddings"]) for one in (ours, theirs)
    ]
    assert rows[0] == rows[1] > 0
    # Every share embedded about a third.
    assert all(told["num_rows"] < rows[1] / 2 for told in ours["passes"]["DNA embeddings"])
    with pytest.raises(OutputExistsError, match="exists already; overwrite it with --force, or"):
        merge(MergeConfig(run_dirs=tuple(moved), output_dir=tmp_path / "merged"))


def test_a_share_is_not_overwritten_by_the_whole(shares: list[Path], tmp_path: Path) -> None:
    # By another path, which the settings alone do not show.
    moved = [Path(shutil.copytree(share, tmp_path / share.name)) for share in shares]
    (tmp_path / "s1" / "checkpoints").rename(tmp_path / "kept")
    for name in ("s1", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "kept")
    before = sorted((tmp_path / "kept").rglob("*"))
    for output_dir in (tmp_path / "s1", tmp_path / "out"):
        with pytest.raises(UsageError, match="choose another output"):
            merge(MergeConfig(run_dirs=tuple(moved), output_dir=output_dir, force=True))
    assert sorted((tmp_path / "kept").rglob("*")) == before


def test_a_missing_share_is_named(shares: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found the shares 1/3, 3/3; missing: 2/3"):
        merge(MergeConfig(run_dirs=(shares[0], shares[2]), output_dir=tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_of_many_missing_shares_a_few_are_named(shares: list[Path], tmp_path: Path) -> None:
    moved = [Path(shutil.copytree(share, tmp_path / share.name)) for share in shares]
    for number, share in zip((10, 9, 2), moved, strict=True):
        document = json.loads((share / "run.json").read_text())
        (share / "run.json").write_text(json.dumps(document | {"shard": f"{number}/999999"}))
    with pytest.raises(InputError) as caught:
        merge(MergeConfig(run_dirs=tuple(moved), output_dir=tmp_path / "m"))
    assert str(caught.value).endswith(
        ": found the shares 2/999999, 9/999999, 10/999999; missing: 1/999999, 3/999999, 4/999999, "
        "5/999999, 6/999999 and 999,991 more. Name the directories of all shares"
    )


def test_shares_of_other_settings_are_refused(
    config: PredictConfig, shares: list[Path], tmp_path: Path
) -> None:
    other = dataclasses.replace(config, output_dir=tmp_path / "s2", shard="2/3", threshold=0.9)
    predict_shard(other)
    with pytest.raises(InputError, match=r"s2: is no share of the same run .*: threshold differ"):
        merge(
            MergeConfig(run_dirs=(shares[0], tmp_path / "s2", shares[2]), output_dir=tmp_path / "m")
        )


def test_shares_of_a_later_version_are_refused(shares: list[Path], tmp_path: Path) -> None:
    moved = [Path(shutil.copytree(share, tmp_path / share.name)) for share in shares]
    for share in moved:
        document = json.loads((share / "run.json").read_text())
        document["settings"]["new_setting"] = 1
        (share / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"'new_setting'; .* is of another version of virnucpro"):
        merge(MergeConfig(run_dirs=tuple(moved), output_dir=tmp_path / "m"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard": 3}, r"s2/run\.json: shard is 3, wanted a text such as '2/8'; the file was"),
        ({"shard": "2/0"}, r"s2/run\.json: shard is '2/0', wanted a text such as '2/8'; the file"),
        ({"settings": []}, r"s2/run\.json: settings is \[\], wanted an object; the file was chan"),
        ({"classifier": {"path": "c"}}, r"s2/run\.json: lacks classifier\.identity; the file was"),
        ({"passes": {}}, r"s2/run\.json: lacks passes\.'DNA embeddings', which the settings of"),
        ({"passes": {"x": [{"failed_rows": [-1]}]}}, r"passes\.x\[0\]\.failed_rows\[0\] is -1, w"),
        ({"frame_rule": None}, r"s2/run\.json: frame_rule is None, wanted a text; the file was ch"),
    ],
)
def test_a_share_with_a_wrong_field_is_named(
    shares: list[Path], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    moved = Path(shutil.copytree(shares[1], tmp_path / "s2"))
    document = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(document | change))
    with pytest.raises(InputError, match=message):
        merge(MergeConfig(run_dirs=(shares[0], moved, shares[2]), output_dir=tmp_path / "m"))


def test_shares_with_other_batches_are_refused(
    config: PredictConfig, shares: list[Path], tmp_path: Path
) -> None:
    other = dataclasses.replace(
        config, output_dir=tmp_path / "s2", shard="2/3", dna_batch_tokens=1000
    )
    predict_shard(other)
    with pytest.raises(InputError, match=r"DNA embeddings: \d+ of \d+ .* 200, 1000 tokens"):
        merge(
            MergeConfig(run_dirs=(shares[0], tmp_path / "s2", shares[2]), output_dir=tmp_path / "m")
        )


def test_a_share_calls_nothing_and_is_no_whole_run(
    config: PredictConfig, shares: list[Path], tmp_path: Path
) -> None:
    assert not (shares[0] / "records.tsv").exists()
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    predict(whole)
    with pytest.raises(InputError, match=r"run\.json: lacks shard; wanted .* predict --shard"):
        merge(MergeConfig(run_dirs=(tmp_path / "whole",), output_dir=tmp_path / "m"))
    with pytest.raises(UsageError, match="calls need all shares"):
        predict(dataclasses.replace(config, shard="1/2"))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/0", "a/b", "-1/2"])
def test_impossible_shares_are_refused(config: PredictConfig, shard: str) -> None:
    with pytest.raises(UsageError, match="wanted I/N"):
        dataclasses.replace(config, shard=shard)


@pytest.mark.parametrize(
    ("option", "place", "locked"), [("kept", "kept", "kept"), (None, "here/checkpoints", "here")]
)
def test_two_runs_cannot_share_checkpoints(
    config: PredictConfig, option: str | None, place: str, locked: str, tmp_path: Path
) -> None:
    there = dataclasses.replace(
        config, output_dir=tmp_path / "there", checkpoint_dir=tmp_path / place, resume=True
    )
    here = dataclasses.replace(
        there, output_dir=tmp_path / "here", checkpoint_dir=option and tmp_path / option
    )
    refused = []

    def start_another(status: object) -> None:
        with pytest.raises(UsageError, match=rf"{locked}: another run is working here") as error:
            predict(there)
        refused.append(error)

    first = predict(here, on_progress=start_another)
    assert refused
    # It may go on from there when the first has ended.
    assert read_tables(predict(there).output_dir) == read_tables(first.output_dir)


def test_a_run_whose_checkpoints_are_linked_to_itself_goes_on(
    config: PredictConfig, tmp_path: Path
) -> None:
    # `--checkpoint-dir` could be the output directory in earlier states.
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoints").symlink_to(out)
    for option in (out, None):
        run_config = dataclasses.replace(config, output_dir=out, checkpoint_dir=option, resume=True)
        assert predict(run_config).num_records == 60
        assert (out / "dna").is_dir()
    passes = json.loads((out / "run.json").read_text())["passes"]
    assert not any(one["num_rows"] for told in passes.values() for one in told)


def test_finished_checkpoints_may_be_in_an_archive(config: PredictConfig, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    there = dataclasses.replace(config, output_dir=tmp_path / "there", checkpoint_dir=kept)
    before = predict(there)
    options = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in GIVEN]
    command = (*VIRNUCPRO, "predict", *config.inputs, *options, "--no-report", "--resume")
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    archive = ("unshare", "--mount", "sh", "-c", script, kept)
    if shutil.which("unshare") is None or run(*archive, "true").returncode:
        pytest.skip("this user cannot mount a directory")
    (kept / ".lock").unlink()
    done = run(*archive, *command, "--checkpoint-dir", kept, "-o", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert not (kept / ".lock").exists()
    assert read_tables(tmp_path / "here") == read_tables(before.output_dir)


def test_a_run_goes_on_elsewhere_from_its_checkpoints(
    config: PredictConfig, tmp_path: Path
) -> None:
    there = dataclasses.replace(
        config, output_dir=tmp_path / "there", checkpoint_dir=tmp_path / "kept"
    )

    class MachineLostError(Exception):
        pass

    def lose_machine(status: object) -> None:
        raise MachineLostError

    with pytest.raises(MachineLostError):
        predict(there, on_progress=lose_machine)
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(OutputExistsError):
        predict(dataclasses.replace(there, output_dir=tmp_path / "here"))
    here = dataclasses.replace(there, output_dir=tmp_path / "here", resume=True)
    result = predict(here)
    done = json.loads((tmp_path / "here" / "run.json").read_text())
    (told,) = done["passes"]["DNA embeddings"]
    assert 0 < told["num_rows"] < done["counts"]["distinct_dna"]
    again = predict(dataclasses.replace(config, output_dir=tmp_path / "whole"))
    assert (result.output_dir / "records.tsv").read_bytes() == (
        again.output_dir / "records.tsv"
    ).read_bytes()
    with pytest.raises(UsageError, match="holds the checkpoints of this run already"):
        predict(dataclasses.replace(here, checkpoint_dir=tmp_path / "other"))
    # The checkpoints have moved.
    (tmp_path / "kept").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"is a link to .*kept, which is not there; say where"):
        predict(dataclasses.replace(here, checkpoint_dir=None))
    here = dataclasses.replace(here, checkpoint_dir=tmp_path / "moved")
    predict(here)
    passes = json.loads((tmp_path / "here" / "run.json").read_text())["passes"]
    assert not any(one["num_rows"] for told in passes.values() for one in told)
    # Starting afresh empties the directory of the checkpoints, and keeps the link.
    predict(dataclasses.replace(here, resume=False, force=True))
    assert (tmp_path / "here" / "checkpoints").is_symlink()


def test_a_share_prints_what_it_did_as_json(config: PredictConfig, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in GIVEN]
    share = ["--shard", "2/3", "--output-dir", str(tmp_path / "out"), "--json"]
    found = invoke("-q", "predict", *config.inputs, *options, *share)
    summary = json.loads(found.stdout)
    assert (summary["shard"], summary["counts"]["records"]) == ("2/3", 60)
    assert summary["output_dir"] == str(tmp_path / "out")
    assert summary["seconds"]["total"] > 0
