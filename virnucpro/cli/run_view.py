"""What a run's state looks like: a table of processes under a bar, or one line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from virnucpro.runtime.monitoring import RunState, Sample
from virnucpro.runtime.monitoring.gpu import GpuReading
from virnucpro.runtime.monitoring.history import ProcessHistory

_LINES_BESIDE_PROCESSES = 5
_SILENT_SECONDS = 15.0
_LOST_SECONDS = 60.0
_NAME_WIDTH = 12
_GIB = 1 << 30

# What is left out first where the terminal is narrow.
_LEAST_IMPORTANT = ("°C", "W", "fill", "busy", "mem")


def render(state: RunState, width: int, height: int) -> RenderableType:
    """Return the view of a run in a terminal of so many columns and lines."""
    history = state.history
    if history.pass_name is None:
        return Text(f"no embedding yet: {_outcome(state)}")
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(
        Text(history.pass_name, style="bold"),
        ProgressBar(total=1.0, completed=history.share_done),
        f"{100 * history.share_done:.1f} %  {_time_left(state)}",
    )
    shown, hidden = _choose(state, max(1, height - _LINES_BESIDE_PROCESSES))
    lines: list[RenderableType] = [
        head,
        Text(_totals(state), no_wrap=True, overflow="ellipsis"),
        _table(state, shown, width),
    ]
    if hidden:
        speeds = sorted(process.tokens_per_second(state.last_time) for process in hidden)
        lines.append(
            Text(f"... and {len(hidden):,} more, {speeds[0]:,.0f} to {speeds[-1]:,.0f} tokens/s")
        )
    return Group(*lines)


def describe_pass(state: RunState) -> str:
    """Return one line on a pass that goes on."""
    history = state.history
    return (
        f"{history.pass_name}: {100 * history.share_done:.1f} % ({_rows(state)}), "
        f"{history.tokens_per_second(state.last_time):,.0f} tokens/s, {_time_left(state)}"
    )


def describe_pass_end(state: RunState) -> str:
    """Return one line on a pass that is over."""
    history = state.history
    done = state.summary.to_dict()[history.pass_name or ""].values()
    seconds = max(process.last.loop_seconds for process in history.processes.values())
    shares = {
        kind: sum(process[f"{kind}_share"] for process in done) / len(done)
        for kind in ("device", "data")
    }
    text = (
        f"{history.pass_name}: {history.num_rows:,} rows in {format_seconds(seconds)}, "
        f"{history.tokens_per_second(state.last_time):,.0f} tokens/s, "
        f"device busy {100 * shares['device']:.0f} % of the time, "
        f"waiting for data {100 * shares['data']:.0f} %"
    )
    used = [process["gpu_utilization_percent"] for process in done]
    found = [percent for percent in used if percent is not None]
    return f"{text}, GPU {sum(found) / len(found):.0f} %" if found else text


def format_seconds(seconds: float) -> str:
    """Return a time as people say it, as exactly as they want it."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {whole} s" if minutes else f"{whole} s"


def _time_left(state: RunState) -> str:
    if state.outcome is not None or state.history.is_done(state.num_processes):
        return _outcome(state)
    silent = time.time() - state.last_time
    if silent > max(_LOST_SECONDS, 0.1 * state.num_processes):
        return f"nothing heard for {format_seconds(silent)}"
    if state.history.cost == 0:
        return "loading"
    left = state.history.seconds_left(state.last_time)
    return "time left unknown" if left is None else f"{format_seconds(left)} left"


def _outcome(state: RunState) -> str:
    if state.outcome is None:
        return "going on"
    return "finished" if state.outcome == "finished" else f"ended by {state.outcome}"


def _rows(state: RunState) -> str:
    return f"{state.history.num_rows:,} of {state.history.total_rows:,} rows"


def _totals(state: RunState) -> str:
    history = state.history
    samples = [process.last for process in history.processes.values()]
    devices = Counter(_short(sample.device) for sample in samples)
    hosts = {_short_host(sample.host) for sample in samples}
    where = hosts.pop() if len(hosts) == 1 else f"{len(hosts)} machines"
    on = " + ".join(f"{number} x {name}" for name, number in sorted(devices.items()))
    return "  ".join(
        (
            _rows(state),
            f"{history.tokens_per_second(state.last_time):,.0f} tokens/s",
            f"running {format_seconds(state.last_time - state.began_at)}",
            f"{on} on {where}",
        )
    )


def _choose(
    state: RunState, num_lines: int
) -> tuple[Sequence[ProcessHistory], Sequence[ProcessHistory]]:
    """Return the processes to show, by rank, and those that there is no line for, the faster."""
    processes = [process for _, process in sorted(state.history.processes.items())]
    if len(processes) <= num_lines:
        return processes, ()
    slowest_first = sorted(
        processes, key=lambda process: process.tokens_per_second(state.last_time)
    )
    return slowest_first[: num_lines - 1], slowest_first[num_lines - 1 :]


def _table(state: RunState, processes: Sequence[ProcessHistory], width: int) -> Table:
    """Return a line for each process, without the columns that are empty or do not fit."""
    seen = state.summary.to_dict()[state.history.pass_name or ""]
    rows = [
        _cells(process, state) | _gpu_cells(process.last, seen[process.last.rank])
        for process in processes
    ]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    every = [process.last for process in state.history.processes.values()]
    if len({sample.host for sample in every}) == 1:
        columns.remove("host")
    if len({sample.device for sample in every}) == 1:
        columns.remove("device")
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for name in _LEAST_IMPORTANT:
        if name in columns and sum(widths[kept] + 1 for kept in columns) > width + 1:
            columns.remove(name)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        is_text = name in ("host", "device", "state")
        table.add_column(
            name,
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=4 if is_text else widths[name],
        )
    for row in rows:
        table.add_row(*(Text(row[name]) for name in columns))
    return table


def _cells(process: ProcessHistory, state: RunState) -> dict[str, str]:
    last = process.last
    silent = state.last_time - last.time
    is_heard = silent <= max(_SILENT_SECONDS, 0.1 * state.num_processes)
    return {
        "#": str(last.rank),
        "host": _short_host(last.host),
        "device": _short(last.device),
        "state": last.state if last.state == "done" or is_heard else f"silent {silent:.0f} s",
        "rows": f"{last.num_rows:,}",
        "tokens/s": f"{process.tokens_per_second(state.last_time):,.0f}",
        "fill": _percent(last.batch_fill),
        "busy": _percent(process.share("device")),
        "data": _percent(process.share("data")),
        "disk": _percent(process.share("disk")),
    }


def _gpu_cells(last: Sample, seen: dict[str, Any]) -> dict[str, str]:
    """Return how the GPU is, or when the process is done, how it was."""
    gpu = last.gpu or GpuReading()
    if last.state == "done":
        gpu = GpuReading(
            utilization_percent=seen["gpu_utilization_percent"],
            memory_bytes=seen["gpu_memory_bytes"],
            power_watts=seen["gpu_power_watts"],
            temperature_celsius=seen["gpu_temperature_celsius"],
        )
    return {
        "GPU": _number(gpu.utilization_percent, " %"),
        "mem": _number(gpu.memory_bytes and gpu.memory_bytes / _GIB, " G"),
        "W": _number(gpu.power_watts),
        "°C": _number(gpu.temperature_celsius),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.0f}{unit}"


def _short(device: str) -> str:
    for maker in ("NVIDIA ", "GeForce ", "Tesla "):
        device = device.removeprefix(maker)
    return _cut(device)


def _short_host(host: str) -> str:
    return _cut(host.partition(".")[0])


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
