"""What the samples of a whole pass come to, for run.json."""

from __future__ import annotations

from typing import Any

from virnucpro.runtime.monitoring.status import Sample


class Summary:
    """Adds up samples, pass by pass and process by process."""

    def __init__(self) -> None:
        self._passes: dict[str, dict[int, _ProcessSummary]] = {}

    def add(self, sample: Sample) -> None:
        """Take note of a process's next sample."""
        processes = self._passes.setdefault(sample.pass_name, {})
        processes.setdefault(sample.rank, _ProcessSummary(sample)).add(sample)

    def to_dict(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return by the name of the pass and the rank what each process did.

        Shares are of the time from its first batch to its last part. Utilization and power are
        means over the time in which it embedded, memory and temperature the highest seen.
        """
        return {
            name: {rank: processes[rank].to_dict() for rank in sorted(processes)}
            for name, processes in self._passes.items()
        }


class _ProcessSummary:
    def __init__(self, first: Sample) -> None:
        self.last = first
        self.seconds: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self.highest: dict[str, float] = {}

    def add(self, sample: Sample) -> None:
        # Of unequal distances in time, so each counts for the time since the one before.
        seconds = sample.loop_seconds - self.last.loop_seconds
        self.last = sample
        if sample.gpu is None or seconds <= 0 or sample.state != "embedding":
            return
        for name, value in vars(sample.gpu).items():
            if value is not None:
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
                self.sums[name] = self.sums.get(name, 0.0) + seconds * value
                self.highest[name] = max(value, self.highest.get(name, value))

    def _mean(self, name: str) -> float | None:
        return round(self.sums[name] / self.seconds[name], 1) if name in self.sums else None

    def to_dict(self) -> dict[str, Any]:
        last = self.last
        seconds = last.loop_seconds or 1.0
        return {
            "rank": last.rank,
            "host": last.host,
            "device": last.device,
            "tokens_per_second": round(last.num_tokens / seconds, 1),
            "batch_fill": last.batch_fill,
            "data_share": round(last.data_seconds / seconds, 4),
            "device_share": round(last.device_seconds / seconds, 4),
            "disk_share": round(last.disk_seconds / seconds, 4),
            "gpu_utilization_percent": self._mean("utilization_percent"),
            "gpu_power_watts": self._mean("power_watts"),
            "gpu_memory_bytes": self.highest.get("memory_bytes"),
            "gpu_temperature_celsius": self.highest.get("temperature_celsius"),
        }
