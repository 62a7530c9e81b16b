"""Every error of ours, and the exit code that each one ends the command with.

A message says what was found, what was wanted and what to do, with the path and the line or row.
"""

from __future__ import annotations


class VirnucproError(Exception):
    """Base of every error that is explained to the user instead of shown as a traceback."""

    exit_code = 1


class UsageError(VirnucproError):
    """Settings that are wrong or do not go together."""

    exit_code = 2


class OutputExistsError(UsageError):
    """The output directory exists and neither overwriting nor resuming was asked for."""


class OutputError(VirnucproError):
    """A file that cannot be written: the disk is full, or a directory or permission is missing."""


class InputError(VirnucproError):
    """An input file that cannot be read as nucleotide FASTA or FASTQ."""


class BackendError(VirnucproError):
    """A backend that is missing, broken, or registered twice."""


class WeightsError(VirnucproError):
    """Model weights that are missing, unreadable, unsafe to load, or of another architecture."""


class ClassifierError(WeightsError):
    """A classifier that cannot be read or does not fit the embeddings."""


class CheckpointError(VirnucproError):
    """A checkpoint that is damaged or of an unknown format."""


class IdentityMismatchError(CheckpointError):
    """A checkpoint of another run: other input, weights or settings."""


class NonFiniteEmbeddingError(VirnucproError):
    """An encoder returned NaN or infinity."""


class MemoryExhaustedError(VirnucproError):
    """The device ran out of memory."""

    exit_code = 4


class IncompleteError(VirnucproError):
    """Everything was written but what a device had not the memory for."""

    exit_code = 2


class Terminated(BaseException):
    """SIGTERM arrived: finished parts are kept, and the command ends with 143.

    Like KeyboardInterrupt no Exception, so that nothing catches it on the way.
    """

    exit_code = 143


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of others says, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
