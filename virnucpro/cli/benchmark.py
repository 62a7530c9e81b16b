"""`virnucpro benchmark`: how fast and how exact the models are on this machine."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click

from virnucpro.checkpoints.whole_files import make_output_dir, open_whole
from virnucpro.cli.options import config_command
from virnucpro.cli.starting import hide_other_gpus, make_compute_config, require_single_process
from virnucpro.cli.terminal import echo, format_table
from virnucpro.config import BenchmarkConfig
from virnucpro.errors import IncompleteError, UsageError, VirnucproError, count, first_line

logger = logging.getLogger(__name__)

Report = dict[str, Any]


@config_command("benchmark", short_help="Measure the speed and accuracy of the models here.")
def benchmark_command(ctx: click.Context, config: BenchmarkConfig) -> None:
    """Measure the models on this machine's first GPU, or on its CPU.

    Without --weights, the weights are random and have the published sizes; speed does not depend
    on them. Other implementations run in the same process. The speed limit of the device is
    measured with large matrix products.

    Exit code 1: embeddings differ too much from float32. 2: a model does not fit in memory, or
    wrong usage.

    \b
    Examples:
      virnucpro benchmark
      virnucpro benchmark --backend esm2 --weights esm2_t36_3B_UR50D.pt
      virnucpro benchmark --quick --device cpu --json
    """
    require_single_process(ctx)
    if config.weights is not None and config.backend is None:
        raise UsageError("--weights: of which backend? Name it with --backend")
    # The fork has this suite, so its scripts may ask for it.
    if config.suite == "scaling":
        logger.warning(
            "--suite scaling: measured as throughput, on one device; docs/scheduling.md says how "
            "runs scale over several GPUs"
        )
    # Before the measurements, which may take long.
    earlier = None if config.compare_to is None else _read_report(config.compare_to)
    hide_other_gpus(config.gpus)
    # Imported only now: CUDA reads the variable that was just set when torch starts it.
    from virnucpro.workflows.benchmark import run_benchmark

    report = asdict(run_benchmark(config, make_compute_config(config, config.compile)))
    if earlier is not None:
        _compare(report, earlier)
    text = _format_report(report)
    document = json.dumps(report, indent=2)
    echo(document if config.json else text)
    if config.output_dir is not None:
        make_output_dir(config.output_dir)
        for name, content in (("benchmark.json", document), ("benchmark.txt", text)):
            with open_whole(config.output_dir / name) as file:
                file.write(content + "\n")
    # Last, so that measurements are shown and kept before an error ends the command.
    _judge(report)


class _Earlier(NamedTuple):
    """What an earlier benchmark found on a device; `speeds` are the tokens/s of its lines."""

    path: Path
    device: str
    speeds: dict[tuple[Any, ...], float]


def _read_report(path: Path) -> _Earlier:
    """Return the report at `path`.

    Raises:
        UsageError: The file is not a report.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # A file of another kind may have anything in the place of a number.
        speeds = {_line_key(line): float(line["tokens_per_s"] or 0) for line in found["lines"]}
        return _Earlier(path, found["device"], speeds)
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: is not a benchmark.json ({type(error).__name__}: {first_line(error)}); "
            "give what `virnucpro benchmark --json` printed or -o wrote"
        ) from error


def _compare(report: Report, earlier: _Earlier) -> None:
    """Add to each line of `report` how much faster it is than in an earlier report."""
    if earlier.device != report["device"]:
        logger.warning(
            "%s: measured on %s, and this is %s", earlier.path, earlier.device, report["device"]
        )
    for line in report["lines"]:
        speed, before = line["tokens_per_s"], earlier.speeds.get(_line_key(line))
        line["change"] = speed / before - 1 if speed and before else None


def _line_key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["model"], line["implementation"], line["precision"], line["length_bp"]


# Heading, field of a line, and format of the columns that some suites lack.
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("frames/s", "sequences_per_s", "{:,.0f}"),
    ("of ceiling", "ceiling_share", "{:.1%}"),
    ("GiB", "peak_memory_bytes", "{:.2f}"),
    ("worst cosine", "worst_cosine", "{:.6f}"),
    ("change", "change", "{:+.1%}"),
)


def _format_report(report: Report) -> str:
    """Return the table, with the device above it and the missing packages below it."""
    lines = report["lines"]
    measured = [column for column in _COLUMNS if any(line.get(column[1]) for line in lines)]
    rows = [
        [
            line["model"],
            line["implementation"],
            line["precision"],
            f"{line['length_bp'] or '-'}",
            *(_format_value(line, name, form) for _, name, form in measured),
        ]
        for line in lines
    ]
    headings = ["model", "implementation", "precision", "bp", *(column[0] for column in measured)]
    device = report["device"]
    # Without the number of threads, the speed of a CPU says little.
    threads = f" ({count(report['num_threads'], 'thread')})" if device == "cpu" else ""
    text = [f"{device}{threads}, torch {report['torch']}, virnucpro {report['virnucpro']}"]
    if report["ceilings"] is not None:
        text.append(_format_ceilings(report["ceilings"]))
    text += ["", format_table(headings, rows, num_left=2)]
    notes = [f"{line['implementation']}: {line['note']}" for line in lines if line["note"]]
    return "\n".join([*text, *([""] if notes else []), *dict.fromkeys(notes)])


def _format_value(line: dict[str, Any], name: str, form: str) -> str:
    value = line.get(name)
    if value is None:
        return "-"
    return form.format(value / 2**30 if name == "peak_memory_bytes" else value)


def _format_ceilings(ceilings: dict[str, Any]) -> str:
    products = [
        f"{precision} {flop_per_s / 1e12:,.2f} TFLOP/s"
        for precision, flop_per_s in ceilings["flop_per_s"].items()
    ]
    copied = f"copies {ceilings['copy_bytes_per_s'] / 1e9:,.0f} GB/s"
    return f"At best: {', '.join([*products, copied])}"


def _judge(report: Report) -> None:
    """Make the command fail if our encoders do not fit the memory or are not exact enough.

    Raises:
        IncompleteError: One of them does not fit.
        VirnucproError: One of them is too far from float32.
    """
    ours = [line for line in report["lines"] if line["is_ours"]]
    named = {
        field: [f"{line['model']} in {line['precision']}" for line in ours if line[field]]
        for field in ("note", "is_off")
    }
    if named["note"]:
        raise IncompleteError(f"out of memory: {'; '.join(named['note'])}")
    if named["is_off"]:
        raise VirnucproError(
            f"further from float32 than it should be: {'; '.join(dict.fromkeys(named['is_off']))}; "
            "see the column of cosines, and try --precision fp32 or --attention sdpa"
        )
