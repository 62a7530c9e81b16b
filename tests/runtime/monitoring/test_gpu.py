from __future__ import annotations

import pytest

from virnucpro.runtime.monitoring.gpu import open_gpu


def test_without_nvidia_there_is_nothing_to_read(caplog):
    assert open_gpu(None)() is None
    assert open_gpu("GPU-00000000-0000-0000-0000-000000000000")() is None
    assert caplog.records == []


@pytest.mark.gpu
def test_the_gpu_of_a_process_is_read():
    import torch

    from virnucpro.runtime.devices import gpu_uuid

    device = torch.device("cuda", 0)
    held = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    reading = open_gpu(gpu_uuid(device))()
    assert reading.memory_bytes > len(held)
    assert reading.memory_total_bytes == pytest.approx(
        torch.cuda.get_device_properties(device).total_memory, rel=0.1
    )
    assert 10 < reading.temperature_celsius < 110
    assert reading.power_watts > 10
    assert 0 <= reading.utilization_percent <= 100
