"""What a CPU has no memory for is refused as a GPU would."""

from __future__ import annotations

import pytest
import torch

from virnucpro.kernels.host_memory import require_memory
from virnucpro.runtime.devices import is_out_of_memory


def test_more_than_any_machine_has_is_refused() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="1,152,921,504,606,846,976 bytes") as caught:
        require_memory(1 << 60, torch.device("cpu"))
    assert is_out_of_memory(caught.value)


def test_what_is_there_passes_and_a_gpu_answers_itself() -> None:
    require_memory(1 << 20, torch.device("cpu"))
    require_memory((1 << 30) + 1, torch.device("cpu"))
    require_memory(1 << 60, torch.device("cuda"))
