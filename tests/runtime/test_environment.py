"""What the variables of a launch and of the user's system mean."""

from __future__ import annotations

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
        (
            {"WORLD_SIZE": "4"},
            r"\(WORLD_SIZE=4\), but RANK, LOCAL_RANK, MASTER_PORT, MASTER_ADDR",
        ),
        ({"RANK": "3"}, r"\(RANK=3\), but WORLD_SIZE, LOCAL_RANK, .*; to run alone: unset RANK;"),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "x"}, "but WORLD_SIZE, RANK, MASTER_PORT: missing or"),
        (
            WHOLE | {"RANK": "4"},
            "but RANK, LOCAL_RANK: missing or wrong; to run alone: unset",
        ),
        (WHOLE | {"MASTER_PORT": "abc"}, "MASTER_PORT=abc.*, but MASTER_PORT: missing or wrong"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            r"\(OMPI_COMM_WORLD_SIZE=2\).*not work through MPI; to",
        ),
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
