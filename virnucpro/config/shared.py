"""What the settings of several commands have in common."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.errors import UsageError

STDIN = "-"
"""Stands for standard input where a path is expected."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")
ATTENTIONS = ("auto", "eager", "sdpa", "flash")
COMPILE_SETTINGS = ("auto", "on", "off")

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_COMPRESSION = frozenset({".gz", ".bz2", ".xz", ".zst"})


def input_stem(path: str | Path) -> str:
    """Return an input's name without its compression's ending and one more: `a.b.fa.gz` is `a.b`.

    Any last ending goes, as in the fork, so that its users find their files under the old names.
    """
    name = Path(path)
    if name.suffix.lower() in _COMPRESSION:
        name = name.with_suffix("")
    return name.stem


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How to compute: what `predict` and `embed` share.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `N`. Several GPUs are used by launching several
            processes, each of which takes its own.
        precision: What the models compute in; `auto` is bf16 on GPUs that have it, fp16 on older
            ones and fp32 on a CPU. A backend that knows no fp8 computes in bf16 instead.
        attention: `auto` is our kernels on GPUs, oneDNN's products on CPUs, or `sdpa`, which
            needs torch alone; `flash` needs flash-attn; `eager` is the plain reference.
        compile: Whether torch.compile compiles the models' layers; `auto` is where that pays: on a
            GPU, for a model without kernels of its own, and for enough sequences.
        dataloader_workers: Tokenizing processes per GPU; None for as many as suit the machine.
        pin_memory: Whether batches lie in pinned host memory; None for yes on a GPU.
        cache_clear_interval: Batches between two clearings of CUDA's cache; 0 for never.
        expandable_segments: Let CUDA's allocator grow its segments, against fragmentation, unless
            PYTORCH_ALLOC_CONF says otherwise.

    Raises:
        UsageError: A value is not to be had.
    """

    device: str = "auto"
    precision: str = "auto"
    attention: str = "auto"
    compile: str = "auto"
    dataloader_workers: int | None = None
    pin_memory: bool | None = None
    cache_clear_interval: int = 100
    expandable_segments: bool = True

    def __post_init__(self) -> None:
        device = f"cuda:{self.device}" if str(self.device).isdigit() else str(self.device)
        if not _DEVICE.fullmatch(device):
            raise UsageError(f"device {self.device!r}: wanted auto, cpu, cuda, cuda:N or N")
        self._set("device", device)
        self._require_one_of("precision", PRECISIONS)
        self._require_one_of("attention", ATTENTIONS)
        self._require_one_of("compile", COMPILE_SETTINGS)
        self._require_at_least("dataloader_workers", 0)
        self._require_at_least("cache_clear_interval", 0)

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, for run.json."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require_one_of(self, name: str, wanted: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in wanted:
            raise UsageError(f"{name} {value!r}: wanted one of {', '.join(wanted)}")

    def _require_at_least(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UsageError(f"{name} {value!r}: wanted a whole number, at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(ComputeConfig):
    """How a run treats what an earlier run left: what `predict`, `train` and `embed` share.

    Attributes:
        resume: Keep what an earlier run of the same settings finished, and do the rest.
        force: Overwrite what is there. With `resume`, finished work is kept.

    Raises:
        UsageError: A setting has an invalid value.
    """

    resume: bool = False
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class FramesConfig(RunConfig):
    """What embeds the open frames: what `predict` and `train` share.

    Attributes:
        dna_backend: Name of the backend that embeds DNA.
        protein_backend: Name of the backend that embeds proteins.
        dna_weights: Its weights: a file, a directory or a hub id (`owner/name[@revision]`).
        protein_weights: Its weights, likewise.
        dna_batch_tokens: Tokens in a batch of the DNA backend; None for the device's default.
        protein_batch_tokens: Tokens in a batch of the protein backend; None, likewise.

    Raises:
        UsageError: A setting has an invalid value.
    """

    dna_backend: str = "dnabert-s"
    protein_backend: str = "esm2"
    dna_weights: str = "zhihan1996/DNABERT-S@00e47f96cdea35e4b6f5df89e5419cbe47d490c6"
    protein_weights: str = "facebook/esm2_t36_3B_UR50D"
    dna_batch_tokens: int | None = None
    protein_batch_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dna_weights", "protein_weights"):
            self._set(name, str(getattr(self, name)))
        for name in ("dna_batch_tokens", "protein_batch_tokens"):
            self._require_at_least(name, 1)

    def _set_paths(self, name: str) -> None:
        given: Any = getattr(self, name)
        paths = (given,) if isinstance(given, str | Path) else given
        self._set(name, tuple(str(path) for path in paths))

    def _require_share(self, name: str) -> None:
        """Refuse what is no share strictly between 0 and 1."""
        value = getattr(self, name)
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} {value!r}: wanted a share between 0 and 1")
