"""What `predict` and `embed` do alike: hold a directory, open models, run a pass, keep time."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from virnucpro.checkpoints.parts import Identity, collect_parts
from virnucpro.config import ComputeConfig
from virnucpro.embedding import EmbeddingJob, EmbeddingSummary, ProgressListener, run_embedding
from virnucpro.errors import UsageError, VirnucproError, WeightsError
from virnucpro.interface import Alphabet, Weights
from virnucpro.registry import LoadedBackend, load_backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A backend and its weights: all that is known of an encoder before the input is read."""

    loaded: LoadedBackend
    weights: Weights

    @property
    def alphabet(self) -> Alphabet:
        """What the backend reads."""
        return self.loaded.backend.info.alphabet

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of the model."""
        info = self.loaded.backend.info
        return {
            "name": self.loaded.name,
            "distribution": self.loaded.distribution,
            "version": self.loaded.version,
            "alphabet": info.alphabet,
            "pooling": info.pooling,
            "weights": self.weights.location,
            "weights_identity": self.weights.identity,
            "embedding_dim": self.weights.embedding_dim,
        }

    def make_identity(self, input_digest: str, precision: str, chunk_length_bp: int) -> Identity:
        """Return the identity of the parts that this model makes of an input."""
        return Identity(
            input_digest=input_digest,
            backend=self.loaded.name,
            backend_version=self.loaded.version,
            weights_identity=self.weights.identity,
            precision=precision,
            chunk_length_bp=chunk_length_bp,
            pooling=self.loaded.backend.info.pooling,
            embedding_dim=self.weights.embedding_dim,
        )


class Clock:
    """Wall time of the stages, and what each process did in the embedding passes."""

    def __init__(self) -> None:
        self.started_at = datetime.now(UTC)
        self.began = time.monotonic()
        self.stages: dict[str, float] = {}
        self.passes: dict[str, list[EmbeddingSummary]] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Note how long the body takes, as a stage of the run."""
        began = time.monotonic()
        yield
        self.stages[stage] = time.monotonic() - began
        logger.info("%s: %.1f s", stage, self.stages[stage])

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.began


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs away as long as the body lasts.

    Raises:
        UsageError: Another run is there already.
    """
    # The lock is the operating system's: it goes with the process, however that ends.
    try:
        held = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{path.parent}: another run is going on here; wait for it, or choose another output"
        ) from None
    with held:
        yield


@contextmanager
def ending_together(accelerator: Accelerator) -> Iterator[None]:
    """Part from the other processes of a launch in good order.

    Raises:
        VirnucproError: Another process has ended, so that this one cannot go on.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo has no class of errors of its own; NCCL waits for the launcher to end the process.
        if "gloo" not in str(error):
            raise
        raise VirnucproError(
            "another process of this launch has ended, and its own message says why"
        ) from error
    # Threads of a process group that still lives as Python ends abort one process in four. Not
    # destroyed at once: another run may follow. Not after an error: NCCL would wait for the others.
    atexit.register(accelerator.end_training)


def open_model(accelerator: Accelerator, backend_name: str, location: str) -> Model:
    """Return a backend with its weights, which each machine downloads once.

    Raises:
        BackendError: There is no such backend, or it is broken.
        WeightsError: The weights cannot be used, or differ between machines.
    """
    loaded = load_backend(backend_name)
    with accelerator.local_main_process_first():
        weights = loaded.backend.open_weights(location)
    identities = {found.identity for found in gather_object([weights])}
    if len(identities) > 1:
        raise WeightsError(
            f"{location}: differs between the machines of this launch ({', '.join(identities)}); "
            "give all of them the same weights"
        )
    return Model(loaded, weights)


def run_job(
    job: EmbeddingJob,
    compute: ComputeConfig,
    accelerator: Accelerator,
    on_progress: ProgressListener | None,
    *,
    trust_parts: bool = False,
) -> list[EmbeddingSummary]:
    """Check what is finished, embed the rest, and return what each process did.

    Raises:
        IdentityMismatchError: There are parts of another run.
        MemoryExhaustedError: A batch does not fit the device.
        NonFiniteEmbeddingError: The encoder returned NaN or infinity.
    """
    if accelerator.is_main_process:
        collect_parts(job.parts_dir, job.identity, full=not trust_parts)
    accelerator.wait_for_everyone()
    summary = run_embedding(accelerator, job, compute, on_progress)
    summaries: list[EmbeddingSummary] = gather_object([summary])
    return summaries
