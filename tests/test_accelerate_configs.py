from __future__ import annotations

import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parent.parent / "accelerate_configs"
NAMES = ("cpu", "multi_gpu", "multi_node", "single_gpu")
# Without a GPU, Accelerate joins the processes only when told that the CPU is meant.
SCRIPT = """
import sys, torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=not torch.cuda.is_available())
sys.stdout.write(f"rank {accelerator.process_index} of {accelerator.num_processes}\\n")
"""


def launch(directory: Path, *args: str) -> subprocess.Popen[str]:
    (directory / "who.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch", *args, "-m", "who"]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)


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
def test_every_key_is_commented(name: str) -> None:
    lines = Path(config(name)).read_text().splitlines()
    for above, line in pairwise(lines):
        if line and not line.startswith("#"):
            assert above.startswith("# "), line


@pytest.mark.launch
@pytest.mark.parametrize(("name", "num_processes"), [("cpu", 2), ("single_gpu", 1)])
def test_one_machine_starts_its_processes(tmp_path: Path, name: str, num_processes: int) -> None:
    output, _ = launch(tmp_path, "--config_file", config(name)).communicate(timeout=120)
    expected = [f"rank {rank} of {num_processes}" for rank in range(num_processes)]
    assert sorted(output.splitlines()) == expected


@pytest.mark.launch
def test_two_nodes_make_one_group(tmp_path: Path, free_port: int) -> None:
    settings = ["--config_file", config("multi_node"), "--num_processes", "2"]
    settings += ["--main_process_port", str(free_port)]
    nodes = [launch(tmp_path, *settings, "--machine_rank", str(rank)) for rank in range(2)]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert outputs == ["rank 0 of 2\n", "rank 1 of 2\n"]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
