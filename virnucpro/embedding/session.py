"""What `predict`, `embed` and `train` do alike: hold a directory, open models, run a pass."""

from __future__ import annotations

import atexit
import gc
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from filelock import FileLock, Timeout

from virnucpro.backend.interface import Alphabet, Weights
from virnucpro.backend.registry import LoadedBackend, load_backend
from virnucpro.checkpoints.parts import Identity, collect_parts, finished_parts
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import STDIN, ComputeConfig, FramesConfig
from virnucpro.embedding.loop import EmbeddingJob, EmbeddingSummary, run_embedding
from virnucpro.errors import (
    MemoryExhaustedError,
    OutputExistsError,
    UsageError,
    VirnucproError,
    WeightsError,
)
from virnucpro.runtime.claims import launch_store
from virnucpro.runtime.devices import device_name, gpu_uuid
from virnucpro.runtime.environment import machine_name
from virnucpro.runtime.logs import log_to_file
from virnucpro.runtime.monitoring import Monitor, Place, ProgressListener
from virnucpro.runtime.monitoring.gpu import open_gpu

_VISIBILITY_SECONDS = 15.0

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
        if precision == "fp8" and not self.loaded.backend.info.supports_fp8:
            precision = "bf16"
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
def claim_run(
    layout: RunDirectory, inputs: Sequence[str], config: FramesConfig, accelerator: Accelerator
) -> Iterator[None]:
    """Hold the run directory, cleared unless the run resumes, and log into it.

    Args:
        layout: Of the directory.
        inputs: Files that the run reads, which must not be among those that it writes.
        config: Says whether to resume or to overwrite.
        accelerator: Of this process.

    Raises:
        OutputExistsError: Something is there, and neither was asked for.
        UsageError: Another run is there, an input is a result, or a machine does not see it.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        check_shared_directory(accelerator, layout.output_dir)
        yield
        return
    directory = layout.output_dir
    own = [name for name in inputs if name != STDIN and layout.owns(Path(name))]
    if own:
        raise UsageError(
            f"{own[0]}: is a result that this run would replace; choose another output directory "
            "(-o), or copy it"
        )
    if layout.is_used() and not (config.force or config.resume):
        raise OutputExistsError(
            f"{directory}: exists already; continue that run with --resume, overwrite it with "
            "--force, or choose another output directory (-o)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with locked(layout.lock_path):
        if not config.resume:
            layout.clear()
        with log_to_file(layout.run_log):
            accelerator.wait_for_everyone()
            check_shared_directory(accelerator, layout.output_dir)
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
    atexit.register(_part, accelerator)


def _part(accelerator: Accelerator) -> None:
    """Leave the process group, and let go of what a cycle of references may keep of it."""
    accelerator.end_training()
    gc.collect()


def open_model(accelerator: Accelerator, backend_name: str, location: str) -> Model:
    """Return a backend with its weights, which each machine downloads once.

    Raises:
        BackendError: There is no such backend, or it is broken.
        WeightsError: The weights cannot be used, or differ between machines.
    """
    loaded = load_backend(backend_name)
    # One process of each machine downloads and digests, and tells the others.
    weights = loaded.backend.open_weights(location) if accelerator.is_local_main_process else None
    found: list[tuple[str, Weights]] = gather_object([(machine_name(), weights)])
    of_machine = {machine: weights for machine, weights in found if weights is not None}
    identities = {machine: weights.identity for machine, weights in of_machine.items()}
    if len(set(identities.values())) > 1:
        listing = ", ".join(f"{machine} has {identity}" for machine, identity in identities.items())
        raise WeightsError(
            f"{location}: differs between the machines of this launch ({listing}); give all of "
            "them the same weights"
        )
    return Model(loaded, of_machine[machine_name()])


def check_shared_directory(accelerator: Accelerator, directory: Path) -> None:
    """Make sure that all machines of a launch see the directory which the main process made.

    Raises:
        UsageError: Some do not.
    """
    if accelerator.num_processes == 1:
        return
    path = directory / ".launch"
    (token,) = broadcast_object_list([uuid.uuid4().hex])
    if accelerator.is_main_process:
        path.write_text(token)
    accelerator.wait_for_everyone()
    found = gather_object([(machine_name(), _appears(path, token))])
    blind = sorted({machine for machine, sees in found if not sees})
    if accelerator.is_main_process:
        path.unlink()
    if blind:
        raise UsageError(
            f"{directory.resolve()}: not to be seen from {', '.join(blind)}; give an output "
            "directory on a file system that all machines of the launch share"
        )


def _appears(path: Path, content: str) -> bool:
    """Wait a moment for a file: network file systems may remember that it was not there."""
    deadline = time.monotonic() + _VISIBILITY_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if path.read_text() == content:
                return True
        time.sleep(0.1)
    return False


def open_monitor(accelerator: Accelerator, metrics_path: Path) -> Monitor:
    """Return the monitor of this process, which the main one lets write to `metrics_path`."""
    return Monitor(
        metrics_path,
        Place(rank=accelerator.process_index, device=device_name(accelerator.device)),
        num_processes=accelerator.num_processes,
        store=launch_store(accelerator),
        read_gpu=open_gpu(gpu_uuid(accelerator.device)),
    )


def run_job(
    job: EmbeddingJob,
    compute: ComputeConfig,
    accelerator: Accelerator,
    on_progress: ProgressListener | None,
    *,
    monitor: Monitor | None = None,
    trust_parts: bool = False,
) -> list[EmbeddingSummary]:
    """Check what is finished, embed the rest, and return what each process did.

    Raises:
        IdentityMismatchError: There are parts of another run.
        MemoryExhaustedError: Not one sequence fits the devices.
        NonFiniteEmbeddingError: The encoder returned NaN or infinity.
    """
    if accelerator.is_main_process:
        collect_parts(job.parts_dir, job.identity, full=not trust_parts)
    accelerator.wait_for_everyone()
    summary = run_embedding(accelerator, job, compute, on_progress, monitor)
    summaries: list[EmbeddingSummary] = gather_object([summary])
    num_failed = sum(len(summary.failed_rows) for summary in summaries)
    if num_failed and not finished_parts(job.parts_dir):
        raise MemoryExhaustedError(
            f"{job.name}: not one of {num_failed} sequences fits the memory of "
            f"{accelerator.device}; use a device with more, or smaller weights, and --resume"
        )
    return summaries
