"""The settings that several commands share."""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.config.options import Config, option
from virnucpro.config.published import DNABERT_S, ESM2_3B
from virnucpro.errors import UsageError

STDIN = "-"
"""Stands for standard input where a path is expected."""

SEQUENCE_FORMATS = "plain or compressed (gz, bz2, xz, zst); - is standard input."

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")
ATTENTIONS = ("auto", "eager", "sdpa", "flash")
COMPILE_SETTINGS = ("auto", "on", "off")

# Old files and published classifiers do not say these numbers.
DNA_DIM, PROTEIN_DIM = 768, 2560
"""Numbers in an embedding of the published models."""

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_COMPRESSION = frozenset({".gz", ".bz2", ".xz", ".zst"})


def can_be_read_once(path: str) -> bool:
    """Tell whether an input is standard input or a pipe, such as the shell's <(zcat a.fa.gz)."""
    if path == STDIN:
        return True
    # What is not there is an error elsewhere.
    with suppress(OSError):
        kind = Path(path).stat().st_mode
        return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))
    return False


def input_stem(path: str | Path) -> str:
    """Return an input's name without its compression's ending and one more: `a.b.fa.gz` is `a.b`.

    Any last ending goes, as in the fork, so that its users find their files under the old names.
    """
    name = Path(path)
    if name.suffix.lower() in _COMPRESSION:
        name = name.with_suffix("")
    return name.stem


def chunk_length_option(default: int | None, **about: Any) -> int:
    """Return the field of the length of chunks; `about` are attributes of `Option`."""
    field: int = option(
        default,
        "-e",
        "--expected-length",
        help="Length of the chunks that records are cut into.",
        metavar="BP",
        **about,
    )
    return field


def device_option() -> str:
    """Return the field of a device that computes."""
    field: str = option(
        "auto",
        "-d",
        help="auto, cpu, cuda, cuda:N or N.",
        details="If you name a GPU that is missing, this is an error. auto uses the CPU if there "
        "is no GPU.",
        group="Device and precision",
        metavar="DEVICE",
    )
    return field


def backend_option(molecule: str, default: str) -> str:
    """Return the field of the backend of one molecule."""
    field: str = option(
        default,
        help=f"Backend that embeds {molecule}; see virnucpro backends.",
        group="Embedding models",
        metavar="NAME",
    )
    return field


def batch_tokens_option(molecule: str, fork_name: str) -> int | None:
    """Return the field of the size of batches of one molecule."""
    field: int | None = option(
        None,
        fork_name,
        help=f"Tokens in a batch of {molecule}.",
        unset="by the device",
        details="The fork's default was 2048. The command profile measures the best number.",
        group="Speed and memory",
        metavar="TOKENS",
        minimum=1,
    )
    return field


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Config, group="Device and precision"):
    """The device that computes, and how it computes."""

    device: str = device_option()
    precision: str = option(
        "auto",
        help="Number format of the models. auto: bf16 on GPUs that have it, fp16 on older GPUs, "
        "fp32 on a CPU. fp8 needs a Hopper GPU or newer.",
        details="auto never chooses fp8. A backend that has no fp8 computes in bf16 instead.",
        choices=PRECISIONS,
    )
    attention: str = option(
        "auto",
        help="Code that computes attention. auto: our kernels on GPUs, oneDNN on CPUs, otherwise "
        "sdpa. sdpa needs torch alone; flash needs flash-attn; eager is the plain reference.",
        details="Our kernels need an NVIDIA GPU since Ampere, and bf16 or fp16.",
        choices=ATTENTIONS,
    )

    def __post_init__(self) -> None:
        # First, because this makes the device a text.
        super().__post_init__()
        device = f"cuda:{self.device}" if self.device.isdigit() else self.device
        if not _DEVICE.fullmatch(device):
            raise UsageError(f"device {self.device!r}: wanted auto, cpu, cuda, cuda:N or N")
        self._set("device", device)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(DeviceConfig, group="Speed and memory"):
    """How to compute embeddings."""

    compile: str = option(
        "auto",
        help="Compile the models with torch.compile. auto: compile where this saves time.",
        details="Compiling takes some seconds for each model and needs a C++ compiler. With auto, "
        "a model is compiled on a GPU if it has no kernels of ours and the pass is long enough. "
        "Models with our kernels or with oneDNN are never compiled, so give --attention sdpa, "
        "too, if you give on. The compiled code is kept below ~/.cache/virnucpro "
        "($XDG_CACHE_HOME), or in $TORCHINDUCTOR_CACHE_DIR.",
        group="Device and precision",
        choices=COMPILE_SETTINGS,
    )
    dataloader_workers: int | None = option(
        None, help="Tokenizing processes for each GPU.", unset="by the machine", minimum=0
    )
    pin_memory: bool | None = option(
        None, help="Keep batches in pinned host memory.", unset="on a GPU"
    )
    cache_clear_interval: int = option(
        100, help="Empty CUDA's cache every N batches (0: never).", minimum=0
    )
    expandable_segments: bool = option(
        True,
        help="Let CUDA's allocator grow its segments, against fragmentation.",
        details="PYTORCH_ALLOC_CONF overrides it. The fork had it off by default.",
    )
    rendezvous_timeout: int = option(
        600,
        help="Seconds to wait for the other processes of a launch.",
        details="After 20 seconds, a warning says how many are missing.",
        group="Processes",
        metavar="SECONDS",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(ComputeConfig, group="Output"):
    """What a run does with the work of an earlier run."""

    resume: bool = option(
        False,
        help="Continue an earlier run with the same settings; keep what it finished.",
        details="predict also continues a run of the original or of the fork. Damaged parts are "
        "computed again.",
    )
    force: bool = option(
        False,
        "-f",
        help="Overwrite existing results.",
        details="With --resume, finished work is kept.",
    )


@dataclass(frozen=True, kw_only=True)
class FramesConfig(RunConfig, group="Embedding models"):
    """The models that embed open frames."""

    dna_backend: str = backend_option("DNA", "dnabert-s")
    protein_backend: str = backend_option("proteins", "esm2")
    dna_weights: str = option(
        DNABERT_S.location,
        help="Weights of the DNA backend: a file, a directory, a hub id (owner/name@revision) or a "
        "name of virnucpro models list.",
        unset="zhihan1996/DNABERT-S",
        details="The default is pinned to one revision. --model-type mini of predict has its own "
        "weights.",
        metavar="WEIGHTS",
    )
    protein_weights: str = option(
        ESM2_3B.location,
        help="Weights of the protein backend: a file, a directory, a hub id or a name of "
        "virnucpro models list.",
        unset="facebook/esm2_t36_3B_UR50D",
        details="The default is pinned to one revision. --model-type mini of predict has its own "
        "weights.",
        metavar="WEIGHTS",
    )
    dna_batch_tokens: int | None = batch_tokens_option("DNA", "--dnabert-batch-size")
    protein_batch_tokens: int | None = batch_tokens_option("proteins", "--esm-batch-size")


@dataclass(frozen=True, kw_only=True)
class ProgressConfig(Config):
    """What a person sees of a run."""

    no_progress: bool = option(
        False,
        help="Show no progress.",
        details="Otherwise a terminal shows a view of the run, and a log file gets some lines.",
    )


@dataclass(frozen=True, kw_only=True)
class SummaryConfig(Config, group="Output"):
    """What a command prints at its end."""

    json: bool = option(False, help="Print the summary at the end as JSON.")


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(ProgressConfig, group="Processes"):
    """The processes that a command starts."""

    gpus: str | None = option(
        None,
        help="Use these GPUs only, for example 0,1.",
        unset="all",
        details="The option replaces CUDA_VISIBLE_DEVICES, and --device cuda:N counts these GPUs "
        "only. One process starts for each of them, unless the command already runs in a launch.",
        metavar="N[,N...]",
    )
    num_processes: int | None = option(
        None,
        help="Number of processes to start, also on a CPU.",
        unset="one per GPU",
        details="On a CPU the default is one process.",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class DimsConfig(Config, group="Older files"):
    """The size of the embeddings in older files, which do not tell it."""

    dna_dim: int = option(DNA_DIM, help="Numbers in a DNA embedding of older files.", minimum=1)
    protein_dim: int = option(
        PROTEIN_DIM, help="Numbers in a protein embedding of older files.", minimum=1
    )
