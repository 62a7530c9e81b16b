"""Reads one GPU through NVIDIA's management library, by nvitop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuReading:
    """The state of a GPU at one moment; None for each value that the GPU does not report.

    Attributes:
        utilization_percent: The share of the last second or less in which a kernel ran.
        memory_bytes: Memory in use, by any process.
    """

    utilization_percent: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None


def open_gpu(uuid: str | None) -> Callable[[], GpuReading | None]:
    """Return a function that reads the GPU with this UUID; it returns None where it cannot.

    The UUID (`GPU-...`) is the only name of a GPU that CUDA and the management library share. Their
    numbers differ with CUDA_VISIBLE_DEVICES, and where CUDA sorts by speed.
    """
    if uuid is None:
        return lambda: None
    # Without a driver, nvitop would explain at length how to install one.
    logging.getLogger("nvitop.api.libnvml").addFilter(lambda record: False)
    try:
        from nvitop import Device

        device = Device(uuid=uuid)
    # Without the library, or without permission, the run goes on without readings.
    except Exception as error:
        logger.debug("GPU %s is not watched: %s", uuid, error)
        return lambda: None

    def read() -> GpuReading | None:
        try:
            milliwatts = _number(device.power_usage())
            return GpuReading(
                utilization_percent=_number(device.gpu_utilization()),
                memory_bytes=_number(device.memory_used()),
                memory_total_bytes=_number(device.memory_total()),
                power_watts=None if milliwatts is None else round(milliwatts / 1000, 1),
                temperature_celsius=_number(device.temperature()),
            )
        # The run is worth more than its readings, whatever NVIDIA's library raises.
        except Exception as error:
            logger.debug("GPU %s does not answer: %s", uuid, error)
            return None

    return read


def _number(value: Any) -> Any:
    # Anything else is nvitop's "N/A".
    return value if isinstance(value, (int, float)) else None
