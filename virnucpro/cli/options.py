"""What commands share: options, what was given, and what may be overwritten."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from virnucpro.cli import ARGUMENTS
from virnucpro.config import (
    ATTENTIONS,
    COMPILE_SETTINGS,
    MODEL_TYPES,
    PRECISIONS,
    ComputeConfig,
    EmbedConfig,
    PredictConfig,
    TrainConfig,
)
from virnucpro.errors import OutputExistsError, UsageError
from virnucpro.legacy.settings import read_settings
from virnucpro.runtime.environment import is_launched, is_main_process, num_processes

Config = TypeVar("Config", PredictConfig, EmbedConfig, TrainConfig)

INPUT_PATH = click.Path(exists=True, dir_okay=False, allow_dash=True)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _group(*options: Decorator) -> Decorator:
    """Return one decorator for several options, listed by `--help` in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


inputs_argument = click.argument(
    "inputs", nargs=-1, required=True, type=INPUT_PATH, metavar="INPUT..."
)

classifier_options = _group(
    click.option(
        "-m",
        "--model-type",
        type=click.Choice(MODEL_TYPES),
        default=PredictConfig.model_type,
        show_default=True,
        help="For chunks of 300 bp, of 500 bp; mini: the small model inside; or your own.",
    ),
    click.option(
        "-p",
        "--model-path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The classifier.  [default: {model type}_model.pth]",
    ),
    click.option(
        "-e",
        "--chunk-length-bp",
        "--expected-length",
        type=int,
        metavar="BP",
        help="Length of a chunk.  [default: the model type's]",
    ),
    click.option(
        "--min-length-bp",
        "--min-length",
        type=int,
        metavar="BP",
        default=PredictConfig.min_length_bp,
        show_default=True,
        help="Shorter records get no call.",
    ),
    click.option(
        "--threshold",
        type=float,
        metavar="SCORE",
        default=PredictConfig.threshold,
        show_default=True,
        help="Records are viral from this score on.",
    ),
)
"""What is called viral, and by which classifier."""

backend_options = _group(
    click.option(
        "--dna-backend",
        metavar="NAME",
        default=PredictConfig.dna_backend,
        show_default=True,
        help="Embeds DNA (see virnucpro backends).",
    ),
    click.option(
        "--protein-backend",
        metavar="NAME",
        default=PredictConfig.protein_backend,
        show_default=True,
        help="Embeds proteins.",
    ),
    click.option(
        "--dna-weights",
        metavar="WEIGHTS",
        help="File, directory or hub id (owner/name@revision).  [default: zhihan1996/DNABERT-S]",
    ),
    click.option(
        "--protein-weights",
        metavar="WEIGHTS",
        help=f"The same for proteins.  [default: {PredictConfig.protein_weights}]",
    ),
)
"""The two models that embed open frames."""

budget_options = _group(
    click.option(
        "--dna-batch-tokens",
        "--dnabert-batch-size",
        type=int,
        metavar="TOKENS",
        help="Tokens per batch of DNA.  [default: by the device]",
    ),
    click.option(
        "--protein-batch-tokens",
        "--esm-batch-size",
        type=int,
        metavar="TOKENS",
        help="Tokens per batch of proteins.  [default: by the device]",
    ),
)
"""How much of each of them goes into a batch."""

device_options = _group(
    click.option(
        "-d",
        "--device",
        metavar="DEVICE",
        default=ComputeConfig.device,
        show_default=True,
        help="auto, cpu, cuda, cuda:N or N.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=ComputeConfig.precision,
        show_default=True,
        help="auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU. "
        "fp8 is for Hopper and newer.",
    ),
    click.option(
        "--attention",
        type=click.Choice(ATTENTIONS),
        default=ComputeConfig.attention,
        show_default=True,
        help="auto: our kernels on GPUs, oneDNN's products on CPUs, or sdpa, which needs torch "
        "alone; flash needs flash-attn; eager is the plain reference.",
    ),
)
"""What to compute on, and how."""

compute_options = _group(
    device_options,
    click.option(
        "--compile",
        type=click.Choice(COMPILE_SETTINGS),
        default=ComputeConfig.compile,
        show_default=True,
        help="Compile the models with torch.compile; auto: where that pays.",
    ),
    click.option(
        "--dataloader-workers",
        type=int,
        metavar="N",
        help="Tokenizing processes per GPU.  [default: by the machine]",
    ),
)
"""The same for a run, which also reads and tokenizes."""

launch_options = _group(
    click.option("--gpus", metavar="N[,N...]", help="Use these GPUs.  [default: all]"),
    click.option(
        "--num-processes",
        type=click.IntRange(min=1),
        metavar="N",
        help="Start so many.  [default: one per GPU]",
    ),
)
"""How many processes a command starts."""

LAUNCH_OPTIONS = frozenset({"gpus", "num_processes"})
"""The `launch_options`, which are no fields of a config."""


def given_options(ctx: click.Context) -> dict[str, Any]:
    """Return the parameters that the user gave, without those that are at their defaults."""
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def predict_settings(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of PredictConfig: those `given`, before those of the settings file.

    Raises:
        UsageError: The settings file cannot be read, or has an unknown key or a wrong value.
    """
    path = ctx.find_root().params.get("config")
    settings = read_settings(path, given.get("model_type")) if path is not None else {}
    return settings | given


def require_classifier(config: PredictConfig) -> None:
    """Make sure that the classifier is there, before anything that takes longer.

    Raises:
        UsageError: It is not.
    """
    if not config.resolved_model_path.is_file():
        raise UsageError(
            f"{config.resolved_model_path}: no such classifier; give the path of one with "
            "-p, or -m mini for the small model that ships with virnucpro"
        )


def settle_output(config: Config, path: Path, *, used: bool, may_ask: bool) -> Config | None:
    """Return `config`, with `force` set where the user agreed to it; None where they declined.

    Args:
        config: The settings so far.
        path: The output file or directory.
        used: Whether there is anything to lose in it.
        may_ask: False where standard input is the data.

    Raises:
        OutputExistsError: Something is there and nobody can be asked.
    """
    # The main process of a launch may already have begun to write what another finds here.
    if not used or config.force or config.resume or not is_main_process():
        return config
    if num_processes() > 1 or not (may_ask and sys.stdin.isatty() and sys.stderr.isatty()):
        raise OutputExistsError(
            f"{path} exists; give --resume to go on with what is there, --force to overwrite it, "
            "or another output with -o"
        )
    if click.confirm(f"{path} exists. Overwrite it?", err=True):
        return dataclasses.replace(config, force=True)
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


def leave_to_launch(ctx: click.Context, config: ComputeConfig, *, force: bool) -> None:
    """Run the command in several processes, if it is to have them, and exit as they do.

    Args:
        ctx: The command's.
        config: What the processes will read again from the command line.
        force: Whether to add `--force`, which a person at the terminal agreed to.

    Raises:
        UsageError: There are no devices for so many processes.
    """
    wanted = ctx.params["num_processes"]
    if is_launched():
        if wanted not in (None, num_processes()):
            raise UsageError(
                f"--num-processes {wanted}: this is a launch of {num_processes()} already; "
                "leave the option out"
            )
        return
    from virnucpro.runtime import launching

    num_wanted = launching.choose_num_processes(config.device, wanted, ctx.params["gpus"])
    if num_wanted == 1:
        return
    before, own = ctx.meta[ARGUMENTS]
    forced = ["--force"] if force else []
    ctx.exit(launching.launch(num_wanted, [*before, *forced, *own]))


def wants_progress(ctx: click.Context) -> bool:
    """Return whether the user wants to see progress, and this process is to show it."""
    quiet = ctx.find_root().params.get("quiet") or ctx.params.get("verbose") is False
    return is_main_process() and not (quiet or ctx.params["no_progress"])
