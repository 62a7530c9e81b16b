"""Run: a command's directory, its device, its clock, and the other processes of its launch."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from virnucpro import __version__
from virnucpro.checkpoints.run_directory import EmbedDirectory, RunDirectory
from virnucpro.checkpoints.whole_files import make_output_dir, open_to_append, open_whole
from virnucpro.config import STDIN, ComputeConfig, RunConfig
from virnucpro.errors import (
    BackendError,
    IdentityMismatchError,
    InputError,
    OutputError,
    OutputExistsError,
    UsageError,
    VirnucproError,
    WeightsError,
)
from virnucpro.kernels import flash
from virnucpro.runtime.claims import launch_store, make_counter
from virnucpro.runtime.devices import (
    choose_precision,
    describe_computing,
    device_name,
    dtype_between,
    gpu_uuid,
    make_accelerator,
)
from virnucpro.runtime.environment import is_launched, machine_name
from virnucpro.runtime.locks import locked
from virnucpro.runtime.logs import log_to_file
from virnucpro.runtime.monitoring import Monitor, Place, ProgressListener, RunState
from virnucpro.runtime.monitoring.gpu import open_gpu

_VISIBILITY_SECONDS = 15.0
# What is wrong with a command before it computes anything.
_REFUSALS = (UsageError, InputError, BackendError, WeightsError, IdentityMismatchError)

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class Run:
    """One run of a command, as one process of it sees it.

    Attributes:
        config: How to compute.
        device: The device of this process.
        precision: The precision that all processes compute in: `fp32`, `bf16`, `fp16` or `fp8`.
        monitor: Watches the passes.
        on_progress: Called after each batch of this process; None for nobody.
        started_at: When the run began.
        stages: The seconds that each finished stage took, by name.
    """

    def __init__(
        self,
        config: ComputeConfig,
        accelerator: Accelerator,
        monitor: Monitor | None = None,
        on_progress: ProgressListener | None = None,
    ) -> None:
        self.config = config
        self.device: torch.device = accelerator.device
        self.precision = choose_precision(config.precision, accelerator)
        if config.attention == "flash":
            flash.check(dtype_between(self.precision), self.device)
        self.monitor = monitor or Monitor()
        self.on_progress = on_progress
        self.started_at = datetime.now(UTC)
        self.stages: dict[str, float] = {}
        self._accelerator = accelerator
        # The clock of the system may be set while the run lasts; this one is not.
        self._began = time.monotonic()
        # In every process, because this runs the first kernel, which takes a second on a GPU. So
        # the models are opened and the frames are found beside it.
        if self.device.type == "cuda":
            gpu = torch.cuda.current_device()
            threading.Thread(target=self._describe, args=(gpu,), name="first kernel").start()
        else:
            self._describe(None)

    def _describe(self, gpu: int | None) -> None:
        """Log what computes, after the first kernel on this GPU."""
        # An error comes again, and is explained, where the first model is loaded.
        with suppress(RuntimeError):
            if gpu is not None:
                # Each thread has a current GPU of its own.
                torch.cuda.set_device(gpu)
            what = describe_computing(self.device, self.precision, self.config.attention)
            if self.is_main:
                logger.info("virnucpro %s, computing on %s", __version__, what)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes tables and finished files."""
        return bool(self._accelerator.is_main_process)

    @property
    def is_first_on_machine(self) -> bool:
        """Whether this is the process that downloads for all processes of its machine."""
        return bool(self._accelerator.is_local_main_process)

    @property
    def rank(self) -> int:
        """The number of this process in the launch, from 0."""
        return int(self._accelerator.process_index)

    @property
    def num_processes(self) -> int:
        """The number of processes in the launch."""
        return int(self._accelerator.num_processes)

    @property
    def seconds(self) -> float:
        """The seconds since the run began."""
        return time.monotonic() - self._began

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note how long the body takes, as a stage of the run."""
        began = time.monotonic()
        yield
        # Only after a body that ended well: run.json lists finished stages.
        self.stages[name] = time.monotonic() - began
        logger.info("%s: %.1f s", name, self.stages[name])

    def wait(self) -> None:
        """Return when every process of the launch has called this."""
        wait_for_others()

    def once(self, work: Callable[[], object]) -> None:
        """Let the main process alone do `work`, and return in every process when it is done."""
        if self.is_main:
            work()
        # All must wait: otherwise they would read what the main process has not written yet.
        self.wait()

    def gather(self, value: Value) -> list[Value]:
        """Return the `value` of every process, by rank."""
        values: list[Value] = gather_object([value])
        return values

    def share(self, value: Value | None) -> Value:
        """Return the main process's `value` in every process."""
        # The others send None, which is replaced.
        values: list[Value] = broadcast_object_list([value])
        return values[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of every process's `tensor`, which is on the run's device."""
        summed: torch.Tensor = self._accelerator.reduce(tensor, "sum")
        return summed

    def make_counter(self) -> Callable[[], int]:
        """Return a function that counts 0, 1, 2, ... over all processes of the launch.

        Every process must make its counters in the same order.
        """
        return make_counter(self._accelerator)


def wait_for_others() -> None:
    """Return when every process of the launch has called this."""
    # An exchange of nothing. Accelerate's own barrier names a GPU, of which gloo knows nothing.
    gather_object([])


@contextmanager
def open_run(
    config: ComputeConfig,
    directory: RunDirectory | EmbedDirectory | None = None,
    inputs: Sequence[str] = (),
    on_progress: ProgressListener | None = None,
) -> Iterator[Run]:
    """Start a run on its device and, if it has a directory, hold that for as long as it lasts.

    Every process of a launch opens the run. The main process locks the directory, clears it unless
    the run resumes, and logs into it.

    Args:
        config: How to compute. With a directory: a RunConfig.
        directory: Where the run writes; None for a run that writes nothing.
        inputs: The files that the run reads. The run may not write them.
        on_progress: Called after each batch of this process.

    Raises:
        OutputExistsError: The directory holds an earlier run, and the settings say neither to
            resume nor to overwrite.
        UsageError: The device or the precision is not available, another run uses the directory,
            an input is also a result, or a machine of the launch does not see the directory.
    """
    accelerator = make_accelerator(config)
    with _leaving_launch(accelerator):
        if directory is None:
            yield Run(config, accelerator, None, on_progress)
            return
        assert isinstance(config, RunConfig)
        # The main process alone holds the lock: flock would refuse a second one of the launch.
        hold = _hold(directory, config, inputs) if accelerator.is_main_process else nullcontext()
        with hold:
            wait_for_others()
            _check_shared_directory(accelerator, directory)
            with _open_monitor(accelerator, directory.metrics_path) as monitor:
                yield Run(config, accelerator, monitor, on_progress)


@contextmanager
def _hold(
    directory: RunDirectory | EmbedDirectory, config: RunConfig, inputs: Sequence[str]
) -> Iterator[None]:
    """Lock the directory, clear it unless the run resumes, and log into it."""
    # Before `clear`, which would remove the input.
    refuse_own_inputs(directory, inputs)
    if directory.is_used() and not (config.force or config.resume):
        raise OutputExistsError(
            f"{directory.output_path}: exists already, or its checkpoints do; continue that run "
            "with --resume, overwrite it with --force, or choose another output (-o)"
        )
    # After all refusals, so that a run that may not start leaves nothing behind.
    made = [path for path in (directory.path, *directory.path.parents) if not path.exists()]
    make_output_dir(directory.path)
    with ExitStack() as locks:
        locks.enter_context(locked(directory.lock_path))
        for path in directory.checkpoints_lock_paths:
            # Finished checkpoints may have become an archive, which only can be read.
            if os.access(path.parent, os.W_OK):
                # Not by a plain file: checkpoints lie elsewhere because machines vanish, and the
                # next must go on.
                locks.enter_context(locked(path, or_plain=False))
        if not config.resume:
            # Under the lock: another run may have started since `is_used` looked.
            directory.clear()
        with _forgetting_refusals(directory, made), log_to_file(directory.run_log):
            yield


def refuse_own_inputs(directory: RunDirectory | EmbedDirectory, inputs: Sequence[str]) -> None:
    """Refuse inputs that are also results of a run in this directory.

    Raises:
        UsageError: One is.
    """
    own = [name for name in inputs if name != STDIN and directory.owns(Path(name))]
    if own:
        raise UsageError(
            f"{own[0]}: is an input, and also a result that this run would replace; choose another "
            "output (-o)"
        )


@contextmanager
def _forgetting_refusals(
    directory: RunDirectory | EmbedDirectory, made: Sequence[Path]
) -> Iterator[None]:
    """Remove what a refused command has added to the log and the metrics of an earlier run.

    Otherwise a finished run would seem to have ended with the error of that command. A refused
    `embed` also removes the directories that it has `made`, of which the innermost comes first.
    """
    files = [path for path in (directory.run_log, directory.metrics_path) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    state = RunState(directory.metrics_path, since=time.time())
    try:
        yield
    except _REFUSALS:
        for _ in state.read():
            pass
        # If a pass or a training has begun, the command was not refused.
        if state.history.pass_name is None and state.training is None:
            for path, size in zip(files, sizes, strict=True):
                with suppress(OSError, OutputError), open_to_append(path) as file:
                    file.truncate(size)
            # Metrics that could not be written do not tell of a pass, but its parts do.
            has_parts = any(directory.path.glob("part-*.h5"))
            if made and isinstance(directory, EmbedDirectory) and not has_parts:
                # Still under the lock, or another run could have begun here.
                shutil.rmtree(directory.path, ignore_errors=True)
                for path in made[1:]:
                    with suppress(OSError):
                        path.rmdir()
        raise


@contextmanager
def _leaving_launch(accelerator: Accelerator) -> Iterator[None]:
    """Leave the process group in good order when the body has ended.

    Raises:
        VirnucproError: Another process has ended, so this one cannot go on.
    """
    if is_launched():
        # What the imports have made stays. `_leave` would look through it for a third of a second.
        gc.freeze()
    try:
        yield
    except RuntimeError as error:
        # Gloo has no error class of its own.
        if "gloo" not in str(error) and not isinstance(error, torch.distributed.DistError):
            raise
        raise VirnucproError(
            "another process of this launch has ended, and its own message says why"
        ) from error
    # If threads of a process group are alive when Python exits, one process in four aborts. We wait
    # until exit because another run may follow.
    if is_launched():
        atexit.register(_leave, accelerator)


def _leave(accelerator: Accelerator) -> None:
    accelerator.end_training()
    # A cycle of references may keep parts of the process group.
    gc.collect()


def _open_monitor(accelerator: Accelerator, metrics_path: Path) -> Monitor:
    """Return the monitor of this process; the main process's monitor writes `metrics_path`."""
    return Monitor(
        metrics_path,
        Place(rank=accelerator.process_index, device=device_name(accelerator.device)),
        num_processes=accelerator.num_processes,
        store=launch_store(accelerator),
        read_gpu=open_gpu(gpu_uuid(accelerator.device)),
    )


def _check_shared_directory(
    accelerator: Accelerator, directory: RunDirectory | EmbedDirectory
) -> None:
    """Make sure that every machine of a launch sees the directory that the main process made.

    Raises:
        UsageError: A machine does not see it.
    """
    if accelerator.num_processes == 1:
        return
    path = directory.launch_path
    # A fresh token, because a file of an earlier launch may still lie on another machine's disk.
    (token,) = broadcast_object_list([uuid.uuid4().hex])
    if accelerator.is_main_process:
        with open_whole(path) as file:
            file.write(token)
    wait_for_others()
    # Every process answers, so that all of them end with the same error.
    found = gather_object([(machine_name(), _appears(path, token))])
    blind = sorted({machine for machine, sees in found if not sees})
    if accelerator.is_main_process:
        path.unlink()
    if blind:
        raise UsageError(
            f"{directory.path.resolve()}: {', '.join(blind)} cannot see this directory; give an "
            "output directory on a file system that all machines of the launch share"
        )


def _appears(path: Path, content: str) -> bool:
    """Wait for a file: a network file system may remember for a while that it was missing."""
    deadline = time.monotonic() + _VISIBILITY_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if path.read_text() == content:
                return True
        time.sleep(0.1)
    return False
