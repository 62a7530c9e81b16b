"""What the variables of a launch and of the user's system mean."""

from __future__ import annotations

import pytest

from virnucpro.runtime import environment


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "LOCAL_RANK",
        "RANK",
        "GROUP_RANK",
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
