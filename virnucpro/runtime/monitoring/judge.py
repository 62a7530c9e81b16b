"""Decides which processes need attention, by pure functions of what was seen of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_high

from virnucpro.errors import format_rounded
from virnucpro.runtime.monitoring.history import History, ProcessHistory


@dataclass(frozen=True)
class Limits:
    """The limits beyond which a process is reported.

    Attributes:
        stalled_batches: It finished nothing for this many times its usual batch time,
        stalled_seconds: and for at least this long.
        slow_share: Its throughput is below this share of the median of its peers.
        data_share: It waits for data for more than this share of the time,
        busy_share: and its GPU computes for less than this share of it.
        window_seconds: The time over which throughput and waiting are measured.
    """

    stalled_batches: float = 10.0
    stalled_seconds: float = 60.0
    slow_share: float = 0.5
    data_share: float = 0.25
    busy_share: float = 0.9
    window_seconds: float = 60.0


@dataclass(frozen=True)
class Trouble:
    """A process that needs attention.

    Attributes:
        kind: `stalled`, `slow` or `hungry`.
        message: What was seen, and what to check.
    """

    kind: str
    rank: int
    message: str


def find_trouble(history: History, limits: Limits, now: float) -> list[Trouble]:
    """Return what is wrong now, by rank."""
    loads: list[float] = []
    speeds: dict[str, list[float]] = {}
    for process in history.processes.values():
        if process.batch_seconds is not None:
            # Only processes that have computed a batch: their loading is over.
            loads.append(process.last.load_seconds)
        if process.fills_window:
            speeds.setdefault(process.last.device, []).append(_speed(process))
    usual_load = median_high(loads) if loads else None
    # Of two processes the faster one is the norm, or neither would ever be slow.
    usual_speeds = {device: median_high(found) for device, found in speeds.items()}
    return [
        Trouble(kind, rank, f"{history.pass_name}: {process.last.place} {message}")
        for rank, process in sorted(history.processes.items())
        for kind, message in _judge(process, usual_load, usual_speeds, limits, now)
    ]


def _speed(process: ProcessHistory) -> float:
    """Return the throughput up to the last sample: a silent process is not a slow one."""
    return process.tokens_per_second(process.last.time)


def _judge(
    process: ProcessHistory,
    usual_load: float | None,
    usual_speeds: dict[str, float],
    limits: Limits,
    now: float,
) -> Iterator[tuple[str, str]]:
    # A stalled process is neither slow nor hungry as well: one cause, one warning.
    if message := _judge_stall(process, usual_load, limits, now):
        yield "stalled", message
    elif process.fills_window:
        last, speed, waiting = process.last, _speed(process), process.share("data")
        # Compared with equal devices only: a slower card is not a broken one.
        usual_speed = usual_speeds[last.device]
        if speed < limits.slow_share * usual_speed:
            gpu = last.gpu
            found = f" (now {gpu.temperature_celsius} °C, {gpu.power_watts} W)" if gpu else ""
            yield (
                "slow",
                f"makes {speed:,.0f} tokens/s, and others with the same device make "
                f"{usual_speed:,.0f}: check on {last.host} for other programs on its device, and "
                f"whether heat or a power limit slows it down{found}",
            )
        # On a CPU the process tokenizes itself, so waiting for data is part of its work. And a
        # process may wait for the next batches while its GPU still computes those before.
        is_idle = last.device != "cpu" and process.share("device") < limits.busy_share
        if is_idle and waiting > limits.data_share:
            yield (
                "hungry",
                f"waits for data {100 * waiting:.0f} % of the time: give more "
                f"--dataloader-workers, or check on {last.host} whether other programs use its "
                "CPU cores",
            )


def _judge_stall(
    process: ProcessHistory, usual_load: float | None, limits: Limits, now: float
) -> str | None:
    last, idle = process.last, now - process.advanced_at
    # A process that waits for the others has nothing to do, and is not stalled.
    if idle < limits.stalled_seconds or last.state not in ("loading", "embedding"):
        return None
    # Before its first batch, a process is compared with the loading of the others.
    usual = usual_load if process.batch_seconds is None else process.batch_seconds
    if usual is None or idle < limits.stalled_batches * usual:
        return None
    if process.batch_seconds is None:
        seen = (
            f"has not finished its first batch for {idle:.0f} s, and others finished theirs after "
            f"{format_rounded(usual)} s"
        )
    else:
        seen = (
            f"has finished no batch for {idle:.0f} s, and a batch usually takes it "
            f"{format_rounded(usual)} s"
        )
    return (
        f"{seen}: check on {last.host} whether it still runs (py-spy dump --pid {last.pid}), "
        "whether its GPU works and runs no other program (nvitop, dmesg), and whether the disks "
        "respond"
    )
