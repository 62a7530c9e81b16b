"""What NVIDIA's management library says of one GPU, through nvitop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuReading:
    """A GPU at one moment; None for what it does not tell.

    Attributes:
        utilization_percent: Of the last second or less, the share in which a kernel ran.
        memory_bytes: In use, by any process.
    """

    utilization_percent: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None


def open_gpu(uuid: str | None) -> Callable[[], GpuReading | None]:
    """Return a function that reads the GPU with this UUID, and returns None where nothing can.

    The UUID (`GPU-...`) is the one name of a GPU that CUDA and the management library share: their
    numbers differ with CUDA_VISIBLE_DEVICES, and where CUDA sorts by speed.
    """
    if uuid is None:
        return lambda: None
    # It would tell at length how to install a driver.
    logging.getLogger("nvitop.api.libnvml").addFilter(lambda record: False)
    try:
        from nvitop import Device

        device = Device(uuid=uuid)
    except Exception as error:  # no library, no right to use it: whatever it is, the run goes on
        logger.debug("GPU %s is not watched: %s", uuid, error)
        return lambda: None

    def read() -> GpuReading | None:
        try:
            return _read(device)
        except Exception as error:
            logger.debug("GPU %s does not answer: %s", uuid, error)
            return None

    return read


def _read(device: Any) -> GpuReading:
    power_milliwatts = _number(device.power_usage())
    return GpuReading(
        utilization_percent=_number(device.gpu_utilization()),
        memory_bytes=_number(device.memory_used()),
        memory_total_bytes=_number(device.memory_total()),
        power_watts=None if power_milliwatts is None else round(power_milliwatts / 1000, 1),
        temperature_celsius=_number(device.temperature()),
    )


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else None  # else it is nvitop's "N/A"
