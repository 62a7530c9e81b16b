"""Which processes need somebody to look at them: pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_high

from virnucpro.runtime.monitoring.history import History, ProcessHistory


@dataclass(frozen=True)
class Limits:
    """From when on a process is reported.

    Attributes:
        stalled_batches: It finished nothing for so many times its usual batch time,
        stalled_seconds: and at least for so long.
        slow_share: Its throughput is less than this share of its peers' median.
        data_share: Its GPU waits for data more than this share of the time.
        window_seconds: The time over which these two are measured.
    """

    stalled_batches: float = 10.0
    stalled_seconds: float = 60.0
    slow_share: float = 0.5
    data_share: float = 0.25
    window_seconds: float = 60.0


@dataclass(frozen=True)
class Trouble:
    """A process that needs a look.

    Attributes:
        kind: `stalled`, `slow` or `hungry`.
        message: What was seen, and what to look at.
    """

    kind: str
    rank: int
    message: str


def find_trouble(history: History, limits: Limits, now: float) -> list[Trouble]:
    """Return what is wrong now, by rank."""
    usual = _Usual.of(history)
    troubles: list[Trouble] = []
    for rank, process in sorted(history.processes.items()):
        for kind, message in _judge(process, usual, limits, now):
            where = f"{history.pass_name}: {process.last.place}"
            troubles.append(Trouble(kind, rank, f"{where} {message}"))
    return troubles


@dataclass(frozen=True)
class _Usual:
    """What to expect of a process, from all of them.

    Attributes:
        load_seconds: To the first batch; None while nobody has had one.
        tokens_per_second: By the name of the device. Of two processes the faster one's.
    """

    load_seconds: float | None
    tokens_per_second: dict[str, float]

    @classmethod
    def of(cls, history: History) -> _Usual:
        loads: list[float] = []
        speeds: dict[str, list[float]] = {}
        for process in history.processes.values():
            if process.batch_seconds is not None:
                loads.append(process.last.load_seconds)
            if process.fills_window:
                speeds.setdefault(process.last.device, []).append(_speed(process))
        medians = {device: median_high(found) for device, found in speeds.items()}
        return cls(median_high(loads) if loads else None, medians)


def _judge(
    process: ProcessHistory, usual: _Usual, limits: Limits, now: float
) -> Iterator[tuple[str, str]]:
    if message := _judge_stall(process, usual, limits, now):
        yield "stalled", message
    elif process.fills_window:
        if message := _judge_speed(process, usual, limits):
            yield "slow", message
        if message := _judge_data(process, limits):
            yield "hungry", message


def _judge_stall(process: ProcessHistory, usual: _Usual, limits: Limits, now: float) -> str | None:
    idle = now - process.advanced_at
    if idle < limits.stalled_seconds or process.last.state not in ("loading", "embedding"):
        return None
    look = (
        f"look on {process.last.host} whether it still runs (py-spy dump --pid {process.last.pid}),"
        " whether its GPU is well and its own (nvitop, dmesg), and whether the disks answer"
    )
    if process.batch_seconds is None:
        if usual.load_seconds is None or idle < limits.stalled_batches * usual.load_seconds:
            return None
        return (
            f"has not finished its first batch for {idle:.0f} s, and others had theirs after "
            f"{usual.load_seconds:.2g} s: {look}"
        )
    if idle < limits.stalled_batches * process.batch_seconds:
        return None
    return (
        f"has finished nothing for {idle:.0f} s, and a batch takes it "
        f"{process.batch_seconds:.2g} s: {look}"
    )


def _speed(process: ProcessHistory) -> float:
    """Return the throughput up to when the process was last heard of: silence is no slowness."""
    return process.tokens_per_second(process.last.time)


def _judge_speed(process: ProcessHistory, usual: _Usual, limits: Limits) -> str | None:
    """Compare a process with those on devices of the same name."""
    speed = _speed(process)
    expected = usual.tokens_per_second[process.last.device]
    if speed >= limits.slow_share * expected:
        return None
    gpu = process.last.gpu
    found = "" if gpu is None else f" (now {gpu.temperature_celsius} °C, {gpu.power_watts} W)"
    return (
        f"makes {speed:,.0f} tokens/s, and others with the same device {expected:,.0f}: look on "
        f"{process.last.host} for other programs on its device, and whether heat or a power limit "
        f"slows it down{found}"
    )


def _judge_data(process: ProcessHistory, limits: Limits) -> str | None:
    share = process.share("data")
    if process.last.device == "cpu" or share <= limits.data_share:
        return None
    return (
        f"waits for data {100 * share:.0f} % of the time: give more --dataloader-workers, or look "
        f"on {process.last.host} whether its CPU cores are taken by others"
    )
