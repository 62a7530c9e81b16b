"""Draws the state of a run: a table of processes under a progress bar, or one line of text."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from virnucpro.errors import count, format_seconds, shorten
from virnucpro.runtime.monitoring import RunState, TrainingStatus, describe_speed
from virnucpro.runtime.monitoring.gpu import GpuReading
from virnucpro.runtime.monitoring.history import ProcessHistory

_LINES_BESIDE_PROCESSES = 5
_SILENT_SECONDS = 15.0
_LOST_SECONDS = 60.0
_NAME_WIDTH = 12
_GIB = 1 << 30
# Anything else is the name of an error.
_OUTCOMES = {
    "finished": "finished",
    "KeyboardInterrupt": "interrupted (Ctrl-C)",
    "Terminated": "terminated",
}

# In a narrow terminal, these columns are left out, in this order.
_OPTIONAL_COLUMNS = ("°C", "W", "fill", "busy", "mem")


def render(state: RunState, width: int, height: int) -> RenderableType:
    """Return the view of a run for a terminal of `width` columns and `height` lines."""
    history = state.history
    # Weights are opened and input is read before the first pass.
    if history.pass_name is None:
        if state.training is None:
            what = (
                "nothing was left to embed" if state.outcome == "finished" else "no embedding yet"
            )
            return Text(f"{what}: {describe_outcome(state)}")
        head = _make_head("fine-tuning", state.training.share_done, describe_outcome(state))
        return Group(head, Text(_describe_training(state.training)))
    head = _make_head(history.pass_name, history.share_done, _time_left(state))
    shown, hidden = _choose(state, max(1, height - _LINES_BESIDE_PROCESSES))
    totals = Text(_describe_totals(state), no_wrap=True, overflow="ellipsis")
    lines: list[RenderableType] = [head, totals, _make_table(state, shown, width)]
    if hidden:
        speeds = sorted(process.tokens_per_second(state.last_time) for process in hidden)
        lines.append(
            Text(f"... and {len(hidden):,} more, {speeds[0]:,.0f} to {speeds[-1]:,.0f} tokens/s")
        )
    return Group(*lines)


def _make_head(name: str, share_done: float, text: str) -> Table:
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(
        Text(name, style="bold"),
        ProgressBar(total=1.0, completed=share_done),
        f"{100 * share_done:.1f} %  {text}",
    )
    return head


def _describe_training(training: TrainingStatus) -> str:
    text = f"step {training.step:,} of {training.num_steps:,}: loss {training.loss:.4f}"
    if training.valid is None or training.auroc is None:
        return text
    return f"{text}; held out: loss {training.valid:.4f}, AUROC {training.auroc:.4f}"


def describe_pass(state: RunState) -> str:
    """Return one line about a pass that is going on."""
    history = state.history
    return (
        f"{history.pass_name}: {100 * history.share_done:.1f} % ({_describe_rows(state)}), "
        f"{history.tokens_per_second(state.last_time):,.0f} tokens/s, {_time_left(state)}"
    )


def describe_pass_end(state: RunState) -> str:
    """Return one line about a pass that is over."""
    processes = state.history.processes.values()
    text = describe_speed([process.last for process in processes])
    used = [process.summary()["gpu_utilization_percent"] for process in processes]
    found = [percent for percent in used if percent is not None]
    return f"{text}, GPU {sum(found) / len(found):.0f} %" if found else text


def _time_left(state: RunState) -> str:
    if state.outcome is not None or state.history.is_done(state.num_processes):
        return describe_outcome(state)
    silence = describe_silence(state)
    if silence is not None:
        return silence
    if state.history.cost == 0:
        return "loading"
    left = state.history.seconds_left(state.last_time)
    return "time left unknown" if left is None else f"{format_seconds(left)} left"


def describe_silence(state: RunState) -> str | None:
    """Return for how long nothing was heard of a run, or None if that is not long."""
    if not state.is_there:
        return "the metrics are gone"
    # It may have been killed before it wrote its first line.
    if not state.num_processes:
        return "nothing written yet"
    silent = time.time() - state.last_time
    # The main process writes 50 lines a second at most, so a large launch is silent for longer.
    if silent <= max(_LOST_SECONDS, 0.1 * state.num_processes):
        return None
    return f"nothing written for {format_seconds(silent)}"


def describe_outcome(state: RunState) -> str:
    """Return how a run ended, or that it goes on."""
    if state.outcome is None:
        return "running"
    return _OUTCOMES.get(state.outcome, f"ended by {state.outcome}: see run.log")


def _describe_rows(state: RunState) -> str:
    return f"{state.history.num_rows:,} of {count(state.history.total_rows, 'row')}"


def _describe_totals(state: RunState) -> str:
    history = state.history
    samples = [process.last for process in history.processes.values()]
    devices = Counter(_short_device(sample.device) for sample in samples)
    hosts = {_short_host(sample.host) for sample in samples}
    # The table names several machines, and leaves out the column for one.
    where = hosts.pop() if len(hosts) == 1 else f"{len(hosts)} machines"
    on = " + ".join(f"{number} x {name}" for name, number in sorted(devices.items()))
    return (
        f"{_describe_rows(state)}  {history.tokens_per_second(state.last_time):,.0f} tokens/s  "
        f"{'running' if state.outcome is None else 'ran'} "
        f"{format_seconds(state.last_time - state.began_at)}  {on} on {where}"
    )


def _choose(
    state: RunState, num_lines: int
) -> tuple[Sequence[ProcessHistory], Sequence[ProcessHistory]]:
    """Return the processes to show, and the faster ones, for which there is no line."""
    processes = [process for _, process in sorted(state.history.processes.items())]
    if len(processes) <= num_lines:
        return processes, ()
    # The slowest processes are the ones that somebody has to look at.
    processes.sort(key=lambda process: process.tokens_per_second(state.last_time))
    return processes[: num_lines - 1], processes[num_lines - 1 :]


def _make_table(state: RunState, processes: Sequence[ProcessHistory], width: int) -> Table:
    """Return a line for each process, without columns that are empty, alike or too wide."""
    rows = [_make_cells(process, state) for process in processes]
    # Without NVIDIA's library, the columns of GPUs are empty for every process.
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    # Of all processes, shown or not: otherwise columns would come and go with the lines.
    every = [process.last for process in state.history.processes.values()]
    if len({sample.host for sample in every}) == 1:
        columns.remove("host")
    if len({sample.device for sample in every}) == 1:
        columns.remove("device")
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for name in _OPTIONAL_COLUMNS:
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
            # Only words may be cut: a number without its last digits would be another number.
            min_width=4 if is_text else widths[name],
        )
    for row in rows:
        table.add_row(*(Text(row[name]) for name in columns))
    return table


def _make_cells(process: ProcessHistory, state: RunState) -> dict[str, str]:
    last = process.last
    silent = state.last_time - last.time
    # As in `_time_left`: of a large launch, each process is heard more rarely.
    is_heard = silent <= max(_SILENT_SECONDS, 0.1 * state.num_processes)
    gpu = last.gpu or GpuReading()
    # The means of the pass, because the GPU is idle by now.
    if last.state == "done":
        seen = process.summary()
        names = ("utilization_percent", "memory_bytes", "power_watts", "temperature_celsius")
        gpu = GpuReading(**{name: seen[f"gpu_{name}"] for name in names})
    return {
        "#": str(last.rank),
        "host": _short_host(last.host),
        "device": _short_device(last.device),
        "state": last.state if last.state == "done" or is_heard else f"silent {silent:.0f} s",
        "rows": f"{last.num_rows:,}",
        "tokens/s": f"{process.tokens_per_second(state.last_time):,.0f}",
        "fill": _format(100 * last.batch_fill, " %"),
        "busy": _format(100 * process.share("device"), " %"),
        "data": _format(100 * process.share("data"), " %"),
        "disk": _format(100 * process.share("disk"), " %"),
        "GPU": _format(gpu.utilization_percent, " %"),
        "mem": _format(gpu.memory_bytes and gpu.memory_bytes / _GIB, " G"),
        "W": _format(gpu.power_watts),
        "°C": _format(gpu.temperature_celsius),
    }


def _format(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.0f}{unit}"


def _short_device(device: str) -> str:
    for maker in ("NVIDIA ", "GeForce ", "Tesla "):
        device = device.removeprefix(maker)
    return shorten(device, _NAME_WIDTH)


def _short_host(host: str) -> str:
    return shorten(host.partition(".")[0], _NAME_WIDTH)
