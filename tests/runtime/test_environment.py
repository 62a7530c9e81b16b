"""What the variables of a launch and of the user's system mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.errors import UsageError
from virnucpro.runtime import environment


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "LOCAL_RANK",
        "RANK",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        *environment.MPI_SIZES,
        "TORCHELASTIC_RUN_ID",
        "ACCELERATE_MIXED_PRECISION",
        environment.RELAUNCHED,
    ):
        monkeypatch.delenv(name, raising=False)


def test_a_process_alone_is_the_main_process() -> None:
    assert not environment.is_launched()
    assert environment.num_processes() == 1
    assert environment.num_local_processes() == 1
    assert environment.is_main_process()
    assert environment.reads_settings_first()


def test_a_process_of_a_launch_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    assert environment.is_launched()
    assert environment.num_processes() == 8
    assert environment.num_local_processes() == 4
    assert not environment.is_main_process()
    assert not environment.reads_settings_first()


WHOLE = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        WHOLE,
        WHOLE | {"OMPI_COMM_WORLD_SIZE": "4"},
        {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "1", "PMI_SIZE": "1"},
        {"RANK": "0"},
        {"WORLD_SIZE": ""},
    ],
)
def test_a_launch_is_whole_or_none(monkeypatch, variables) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment.check_launch()
    assert environment.num_processes() == (
        4 if "MASTER_ADDR" in variables and "RANK" in variables else 1
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, r"\(WORLD_SIZE=4\), but RANK, LOCAL_RANK, MASTER_PORT, MASTER_ADDR"),
        ({"RANK": "3"}, r"\(RANK=3\), but WORLD_SIZE, LOCAL_RANK, .*; to run alone: unset RANK;"),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "x"}, "but WORLD_SIZE, RANK, MASTER_PORT: missing or"),
        (WHOLE | {"RANK": "4"}, "but RANK, LOCAL_RANK: missing or wrong; to run alone: unset"),
        (WHOLE | {"MASTER_PORT": "abc"}, "MASTER_PORT=abc.*, but MASTER_PORT: missing or wrong"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, r"\(OMPI_COMM_WORLD_SIZE=2\).*not work through MPI; to"),
        ({"PMI_SIZE": "8", "WORLD_SIZE": "1"}, r"unset PMI_SIZE; to run in several"),
    ],
)
def test_half_a_launch_is_refused(monkeypatch, variables, message) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        environment.check_launch()
    environment.is_main_process()  # the log asks before anything is checked
    environment.num_local_processes()


def test_a_process_that_virnucpro_started_leaves_comments_to_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(environment.RELAUNCHED, "1")
    assert environment.is_main_process()
    assert not environment.reads_settings_first()


def test_machines_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for rank in ("0", "1"):
        monkeypatch.setenv("GROUP_RANK", rank)
        names.add(environment.machine_name())
    assert len(names) == 2


@pytest.mark.parametrize(
    ("membership", "files", "quotas"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {}, []),
        # A limit of a parent counts.
        ("0::/pods/one", {"pods/one/cpu.max": "max 100000", "pods/cpu.max": "200000 50000"}, [4]),
        ("0::/pods/one", {"pods/one/cpu.max": "8 4", "pods/cpu.max": "3 1"}, [2, 3]),
        # The name outside of the container, whose files are at the root.
        ("0::/../outside/name:with:colons", {"cpu.max": "2 1"}, [2]),
        (
            "4:memory:/one\n3:cpu,cpuacct:/one\n2:cpuset:/two\n0::/",
            {"cpu/one/cpu.cfs_quota_us": "250000\n", "cpu/one/cpu.cfs_period_us": "100000\n"},
            [2.5],
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        # No quota, and whatever a sandbox may show.
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "0\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ("0::/", {"cpu.max": "100000 0"}, []),
        ("nonsense", {"cpu.max": "2 1"}, []),
    ],
)
def test_quotas_are_those_of_the_group_and_its_parents(
    tmp_path: Path, membership: str, files: dict[str, str], quotas: list[float]
) -> None:
    mounted = tmp_path / "mounted"
    for name, content in files.items():
        path = mounted / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "membership").write_text(membership)
    assert list(environment.read_cpu_quotas(tmp_path / "membership", mounted)) == quotas


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert not list(environment.read_cpu_quotas(tmp_path / "none", tmp_path))


@pytest.mark.parametrize(("quota", "num_cores"), [(0.2, 1), (1.5, 2), (2.0, 2)])
def test_a_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float, num_cores: int
) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: set(range(64)), False)
    monkeypatch.setattr(environment, "read_cpu_quotas", lambda *_: iter([96.0, quota]))
    assert environment._count_allowed_cores() == num_cores
