"""The configurations that the project offers for `accelerate launch`: each one is used."""

from __future__ import annotations

import socket
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.runs import configured_launch, predict_options, read_tables, write_reads
from virnucpro import PredictConfig, predict

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parent.parent / "accelerate_configs"
NAMES = ("cpu", "multi_gpu", "multi_node", "single_gpu")


def config(name: str) -> str:
    return str(CONFIGS / f"{name}.yaml")


def test_all_configs_are_known() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(config(name)).to_dict()
    written = yaml.safe_load(Path(config(name)).read_text())
    assert {key: loaded[key] for key in written} == written
    assert written["mixed_precision"] == "no"


@pytest.mark.parametrize("name", NAMES)
def test_no_key_yields_to_a_default_of_the_command_line(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    defaults = vars(launch_command_parser().parse_args(["program"]))
    assert {defaults.get(key) for key in yaml.safe_load(Path(config(name)).read_text())} == {None}


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_commented(name: str) -> None:
    lines = Path(config(name)).read_text().splitlines()
    for above, line in pairwise(lines):
        if line and not line.startswith("#"):
            assert above.startswith("# "), line


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> Path:
    return write_reads(tmp_path_factory.mktemp("inputs") / "reads.fa", 60)


@pytest.fixture(scope="module")
def one_process(reads, demo_weights, tmp_path_factory) -> dict[str, bytes]:
    output_dir = tmp_path_factory.mktemp("one_process")
    predict(PredictConfig(inputs=reads, output_dir=output_dir, device="cpu", **demo_weights))
    return read_tables(output_dir)


@pytest.fixture
def port() -> int:
    """One that is free, and that two launchers can agree on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.launch
@pytest.mark.parametrize(
    ("name", "options", "num_processes"),
    [("single_gpu", [], 1), ("multi_node", ["--num_processes=2"], 2)],
)
def test_runs(
    name, options, num_processes, reads, demo_weights, one_process, tmp_path, port
) -> None:
    """On CPUs and, where there are several machines, with this one as both.

    tests/runtime/test_launch.py uses the other configurations.
    """
    program = ["-m", "virnucpro", "predict", str(reads), "-o", str(tmp_path / "out")]
    # The option is ours and not the launcher's, which has one of nearly the same name.
    program += [f"--num-processes={num_processes}", *predict_options(demo_weights)]
    if name == "multi_node":
        machines = [[f"--machine_rank={rank}", f"--main_process_port={port}"] for rank in (0, 1)]
    else:
        machines = [[]]
    launchers = [
        subprocess.Popen(
            configured_launch(name, *options, *one, *program), stderr=subprocess.PIPE, text=True
        )
        for one in machines
    ]
    messages = [launcher.communicate()[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0] * len(machines), messages
    assert read_tables(tmp_path / "out") == one_process
    assert f'"num_processes": {num_processes},' in (tmp_path / "out/run.json").read_text()
