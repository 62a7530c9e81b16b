"""What commands do before their work: look whether it can be done, ask, and start processes."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
from pathlib import Path
from typing import TypeVar

import click

from virnucpro.cli import ARGUMENTS
from virnucpro.config import (
    ComputeConfig,
    DeviceConfig,
    LaunchConfig,
    PredictConfig,
    ProgressConfig,
    RunConfig,
)
from virnucpro.config.published import PUBLISHED, find_weights
from virnucpro.errors import OutputExistsError, UsageError
from virnucpro.runtime.environment import check_launch, is_launched, is_main_process, num_processes

logger = logging.getLogger(__name__)

AnyRunConfig = TypeVar("AnyRunConfig", bound=RunConfig)


def make_compute_config(
    config: DeviceConfig, compile: str = ComputeConfig.compile
) -> ComputeConfig:
    """Return how to compute on the device of settings that say no more."""
    return ComputeConfig(
        device=config.device,
        precision=config.precision,
        attention=config.attention,
        compile=compile,
    )


def require_classifier(config: PredictConfig) -> None:
    """Make sure that the classifier exists, before anything that takes longer.

    Raises:
        UsageError: It does not.
    """
    if config.resolved_model_path.is_file():
        return
    if config.model_path is None and config.model_type in PUBLISHED:
        weights = (
            find_weights(config.dna_weights, config.dna_backend),
            find_weights(config.protein_weights, config.protein_backend),
        )
        # Weights of the user's own are no models to download.
        names = [model.name for model in PUBLISHED.values() if model.location in weights]
        mini = "-m mini" if config.chunk_length_bp == 500 else "-m mini -e 300"
        raise UsageError(
            f"{config.resolved_model_path}: no such classifier; get it and its models with "
            f"`virnucpro models download {' '.join([config.model_type, *names])}`, give the path "
            f"of a classifier with -p, or {mini} for the small model that ships with virnucpro"
        )
    raise UsageError(
        f"{config.resolved_model_path}: no such classifier; give the path of a classifier with "
        "-p, or -m mini for the small model that ships with virnucpro"
    )


def settle_output(
    config: AnyRunConfig, path: Path, *, used: bool, may_ask: bool
) -> AnyRunConfig | None:
    """Return `config`, with `force` set if the user agreed to it; None if they declined.

    Args:
        config: The settings so far.
        path: The output file or directory.
        used: Whether there is anything in it that could be lost.
        may_ask: False if standard input is the data.

    Raises:
        OutputExistsError: Something is there and nobody can be asked.
    """
    # The main process of a launch may already have begun to write what another finds here.
    if not used or config.force or config.resume or not is_main_process():
        return config
    what = "the results in it (other files stay)" if path.is_dir() else "it"
    # A launch has no terminal to itself, and data on standard input cannot answer a question.
    if num_processes() > 1 or not (may_ask and sys.stdin.isatty() and sys.stderr.isatty()):
        raise OutputExistsError(
            f"{path} exists; give --resume to continue the run in it, --force to overwrite "
            f"{what}, or another output with -o"
        )
    question = f"{path} exists; --resume would continue the run in it. Overwrite {what}?"
    # Asked on standard error, because standard output may be JSON for a program.
    if click.confirm(question, err=True):
        return dataclasses.replace(config, force=True)
    logger.info("%s: nothing was changed", path)
    return None


def hide_other_gpus(gpus: str | None) -> None:
    """Leave visible only the GPUs that `--gpus` names, if it names some.

    As in the fork the ids replace CUDA_VISIBLE_DEVICES, and `cuda:N` counts among them. CUDA reads
    that when it starts, which is later; so this holds in each process of a launch as well.

    Raises:
        UsageError: These are no ids.
    """
    if gpus is None:
        return
    if not re.fullmatch(r"\d+(,\d+)*", gpus):
        raise UsageError(f"--gpus {gpus}: wanted numbers with commas between, such as 0,1")
    # Processes that are started from here inherit it.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def require_single_process(ctx: click.Context) -> None:
    """Refuse to measure in several processes, which would disturb each other.

    Raises:
        UsageError: A launch has started others along with this one.
    """
    if num_processes() > 1:
        raise UsageError(
            f"{ctx.command.name} measures one device; run it without a launcher, or in one process"
        )


def leave_to_launch(
    ctx: click.Context, config: ComputeConfig, launch: LaunchConfig, *, force: bool
) -> None:
    """Run the command in several processes if it needs them, and exit as they do.

    Args:
        ctx: The command's.
        config: What the processes will read again from the command line.
        launch: How many processes, on which GPUs.
        force: Whether to add `--force`, which a person at the terminal agreed to.

    Raises:
        UsageError: There are no devices for so many processes.
    """
    wanted = launch.num_processes
    # Each process of a launch runs the whole command again, and ends up here.
    if is_launched():
        # The launch was given the same words, so its own number is no contradiction.
        if wanted not in (None, num_processes()):
            raise UsageError(
                f"--num-processes {wanted}: this is a launch of {num_processes()} already; "
                "leave the option out"
            )
        check_launch()
        _start_workers_early(config)
        return
    check_launch()
    # Not above: a command that starts no processes needs none of it.
    from virnucpro.runtime import launching

    num_wanted = launching.choose_num_processes(config.device, wanted, launch.gpus)
    if num_wanted == 1:
        _start_workers_early(config)
        return
    for path in getattr(config, "inputs", ()):
        # But for standard input, open files stay behind in this process.
        if re.match(r"/(dev|proc/self)/fd/[1-9]", str(path)):
            raise UsageError(
                f"{path}: a pipe of the shell cannot be passed on to {num_wanted} processes; pipe "
                "into standard input (-), give a file, or choose --num-processes 1"
            )
    before, own = ctx.meta[ARGUMENTS]
    forced = ["--force"] if force else []
    ctx.exit(launching.launch(num_wanted, [*before, *forced, *own]))


def _start_workers_early(config: ComputeConfig) -> None:
    """Let the process of the loader's workers import torch at the same time as this one.

    Otherwise it would begin when this one has done, and the first batch would wait for it.
    """
    num_workers = config.dataloader_workers
    # Without a GPU there are no workers, unless the user wants some.
    if num_workers is None and config.device != "cpu":
        from virnucpro.runtime.launching import ask_driver

        num_workers = ask_driver()
    if num_workers:
        from virnucpro.runtime.forkserver import start_forkserver

        start_forkserver()


def wants_progress(ctx: click.Context, config: ProgressConfig) -> bool:
    """Return whether the user wants to see progress, and this process shows it."""
    # One view for all processes, because each would draw over the others.
    return is_main_process() and not (is_quiet(ctx) or config.no_progress)


def is_quiet(ctx: click.Context) -> bool:
    """Return whether the user wants to see errors only."""
    # The fork's --quiet stands behind the command, and ours before it.
    return bool(ctx.find_root().params.get("quiet")) or ctx.params.get("verbose") is False
