"""The settings of `profile` and `benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.options import REQUIRED, option
from virnucpro.config.shared import COMPILE_SETTINGS, DeviceConfig
from virnucpro.errors import UsageError

# The fork's words, so that its scripts still run; two of them mean the same today.
SUITES = ("scaling", "throughput", "memory", "equivalence", "all")
DATA_SIZES = ("tiny", "small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(DeviceConfig, group="Measuring"):
    """The settings of `profile`."""

    backend: str = option(
        REQUIRED,
        "-m",
        "--model",
        help="Name of a backend that virnucpro backends lists.",
        group="Embedding models",
        metavar="NAME",
    )
    weights: str | None = option(
        None,
        help="Weights of the backend: a file, a directory, a hub id or a name of virnucpro "
        "models list.",
        unset="as for predict",
        details="Backends that predict does not use by default need it.",
        group="Embedding models",
        metavar="WEIGHTS",
    )
    min_batch_tokens: int = option(
        512,
        "--min-batch",
        help="Smallest number of tokens in a batch.",
        metavar="TOKENS",
        minimum=1,
    )
    max_batch_tokens: int | None = option(
        None,
        "--max-batch",
        help="Largest number of tokens in a batch.",
        unset="131072, on a CPU 8192",
        details="Measuring stops earlier when memory is full. The fork's default was 8192.",
        metavar="TOKENS",
        minimum=1,
    )
    step_tokens: int | None = option(
        None,
        "--step",
        help="Difference between two numbers of tokens.",
        unset="each number is twice the previous one",
        details="The fork's default was 512.",
        metavar="TOKENS",
        minimum=1,
    )
    test_file: Path | None = option(
        None,
        help="Sequences to measure with.",
        unset="random open frames of 500 bp",
        details="Up to 10,000 sequences of the file are used, and repeated if necessary.",
        group="Input",
        metavar="FASTA",
        path="file",
    )
    output_path: Path | None = option(
        None,
        "-o",
        "--output",
        help="Also write the measurements to this file.",
        group="Output",
        metavar="JSON",
        path="new file",
    )
    force: bool = option(False, "-f", help="Overwrite an existing file.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        smallest, largest = self.min_batch_tokens, self.max_batch_tokens
        if largest is not None and largest < smallest:
            raise UsageError(
                f"batches of {smallest} to {largest} tokens: the largest has to be at least the "
                "smallest"
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(DeviceConfig, group="Measuring"):
    """The settings of `benchmark`."""

    suite: str = option(
        "all",
        help="What to measure: speed (throughput), GPU memory, cosines against float32 "
        "(equivalence), or all. scaling is the same as throughput.",
        choices=SUITES,
    )
    data_size: str = option(
        "small", help="Time for each line: 0.1, 1, 3 or 10 seconds.", choices=DATA_SIZES
    )
    compile: str = option(
        "off",
        help="Compile the models with torch.compile.",
        group="Device and precision",
        choices=COMPILE_SETTINGS,
    )
    quick: bool = option(
        False,
        help="Measure the small models of a CPU, with the data size tiny.",
        details="8 sequences instead of 32 are compared with float32.",
    )
    backend: str | None = option(
        None,
        "--model",
        help="Measure this backend only.",
        unset="all",
        group="Embedding models",
        metavar="NAME",
    )
    weights: str | None = option(
        None,
        help="Weights of that backend.",
        unset="random",
        group="Embedding models",
        metavar="WEIGHTS",
    )
    gpus: str | None = option(
        None,
        help="Hide the other GPUs; the first of these is measured.",
        unset="all",
        group="Processes",
        metavar="N[,N...]",
    )
    vanilla_baseline: bool = option(
        True,
        help="Also measure other implementations of the models.",
        details="The fork had it off by default.",
    )
    output_dir: Path | None = option(
        None,
        "-o",
        help="Directory for benchmark.json and benchmark.txt.",
        group="Output",
        path="new directory",
    )
    compare_to: Path | None = option(
        None,
        help="Show the difference to an earlier benchmark.json.",
        details="The table gets a column with the change in tokens per second.",
        group="Input",
        metavar="JSON",
        path="file",
    )
    json: bool = option(False, help="Print JSON instead of a table.", group="Output")
