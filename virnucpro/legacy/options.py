"""The options of the fork that other options replace, or that nothing depends on any more."""

from __future__ import annotations

from typing import Any, NamedTuple


class ForkOption(NamedTuple):
    """An option that is accepted for the fork's users, and hidden from `--help`.

    Attributes:
        names: Its names; a flag with a negative has both in one, with a slash.
        why: Why nothing depends on it; a run says so if the option is given. Empty if `meaning`
            tells all.
        meaning: What the documentation says of it, if not that it has no effect.
        takes_number: Whether a number follows it.
        sets: The setting that it stands for, and the value.
    """

    names: tuple[str, ...]
    why: str = ""
    meaning: str = ""
    takes_number: bool = False
    sets: tuple[str, Any] | None = None


# Accepted, because scripts and workflow engines give them: docs/command-line.md lists them all.
FORK_OPTIONS = (
    ForkOption(
        ("-b", "--batch-size"),
        why="the classifier always computes in blocks of one size, so that a score never depends "
        "on it",
        takes_number=True,
    ),
    ForkOption(
        ("-w", "--num-workers"),
        why="scoring needs no workers (--dataloader-workers is for the embedding passes)",
        takes_number=True,
    ),
    ForkOption(
        ("-t", "--threads", "--merge-threads"),
        why="translating is one fast pass, and nothing is merged; the variable OMP_NUM_THREADS "
        "limits the threads on a CPU",
        takes_number=True,
    ),
    ForkOption(("--cuda-streams/--no-cuda-streams",), why="copying always overlaps with computing"),
    ForkOption(
        ("--persistent-models/--no-persistent-models",), why="each model is loaded once in a run"
    ),
    ForkOption(("--v1-fallback",), why="there is one way of computing"),
    ForkOption(("--parallel",), meaning="No effect: all visible GPUs are used anyway."),
    ForkOption(
        ("--force-resume",),
        meaning="The same as --resume, which computes damaged parts again.",
        sets=("resume", True),
    ),
    ForkOption(
        ("--v1-attention",), meaning="The same as --attention eager.", sets=("attention", "eager")
    ),
    ForkOption(("--verbose/--quiet",), meaning="The same as the global options."),
)
