"""What a CPU has no memory for is refused as a GPU would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from virnucpro.kernels.host_memory import measure_free, require_memory
from virnucpro.runtime.devices import is_out_of_memory


def test_more_than_any_machine_has_is_refused() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="1,152,921,504,606,846,976 bytes") as caught:
        require_memory(1 << 60, torch.device("cpu"))
    assert is_out_of_memory(caught.value)


def test_what_is_there_passes_and_a_gpu_answers_itself() -> None:
    require_memory(1 << 20, torch.device("cpu"))
    require_memory((1 << 30) + 1, torch.device("cpu"))
    require_memory(1 << 60, torch.device("cuda"))


@pytest.mark.parametrize(
    ("membership", "name"),
    [
        ("0::/job/task", "job/task/memory.max"),
        # The limit of a job, of which this process is one task.
        ("0::/job/task", "job/memory.max"),
        # The name outside of the container, whose files are at the root.
        ("0::/../outside", "memory.max"),
        ("5:cpu:/\n4:memory:/job\n0::/", "memory/job/memory.limit_in_bytes"),
    ],
)
def test_a_limit_of_a_group_or_of_its_parent_counts(
    tmp_path: Path, membership: str, name: str
) -> None:
    (tmp_path / "membership").write_text(membership)
    (tmp_path / "job/task").mkdir(parents=True)
    (tmp_path / "job/task/memory.max").write_text("max\n")
    limit = tmp_path / name
    limit.parent.mkdir(parents=True, exist_ok=True)
    limit.write_text("500\n")
    # This process has taken more than that already.
    assert measure_free(tmp_path / "membership", tmp_path) < 500
    limit.write_text("max\n")
    assert measure_free(tmp_path / "membership", tmp_path) > 500
