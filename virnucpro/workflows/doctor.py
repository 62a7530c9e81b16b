"""`virnucpro doctor`: what this installation and this machine can do, tried out.

A failure means that a run would fail or give other results. A warning means that something is
slower, or is missing for some runs only.
"""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from virnucpro import __version__
from virnucpro.backend.places import find_packaged, models_dir, user_cache_dir
from virnucpro.backend.registry import describe_backends
from virnucpro.config import PUBLISHED, ComputeConfig
from virnucpro.errors import VirnucproError, WeightsError
from virnucpro.workflows.models import find_published

State = Literal["ok", "warning", "failure"]

_PACKAGES = (
    "torch",
    "accelerate",
    "triton",
    "flash-attn",
    "numpy",
    "h5py",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
)
_LARGE_MODELS = ("500", "dnabert-s", "esm2-3b")
_GIB = 2**30
# To load ESM-2 3B from the hub's files, which are float32.
_MIN_HOST_GIB = 16
_MIN_GPU_GIB = 8
_MIN_DISK_GIB = 1

# bf16 moves a probability of the example by up to 0.02.
_PROBABILITY_BOUND = 0.05
_LAUNCH_SECONDS = 600


@dataclass(frozen=True)
class Check:
    """What was found in one place.

    Attributes:
        name: What was looked at.
        state: How it is.
        found: What was found.
        remedy: What to do about it; empty if it is well.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(*, quick: bool = False) -> Iterator[Check]:
    """Yield each check when it is done.

    Args:
        quick: Whether to leave out the runs.
    """
    checks: list[Callable[[], Iterator[Check]]] = [
        _check_versions,
        _check_backends,
        _check_gpus,
        _check_computing,
        _check_memory,
        _check_disks,
        _check_models,
    ]
    for check in [*checks, *([] if quick else [_check_runs])]:
        yield from check()


def _check_versions() -> Iterator[Check]:
    found = [f"virnucpro {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for name in _PACKAGES:
        try:
            # From the metadata: importing all of them would take seconds.
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    yield Check("versions", "ok", ", ".join(found))


def _check_backends() -> Iterator[Check]:
    listings = describe_backends()
    for one in listings:
        if one.reason is not None:
            remedy = f"upgrade {one.distribution}, or `pip uninstall {one.distribution}`"
            yield Check("backends", "failure", f"{one.name}: {one.reason}", remedy)
    working = [one for one in listings if one.reason is None]
    # They come with this package, so without them the installation is broken.
    missing = {"esm2", "dnabert-s"} - {one.name for one in working}
    if missing:
        remedy = "install virnucpro again: `pip install --force-reinstall --no-deps virnucpro`"
        yield Check("backends", "failure", f"missing: {', '.join(sorted(missing))}", remedy)
    yield Check("backends", "ok", ", ".join(one.name for one in working if not one.missing))
    for one in working:
        if one.missing:
            # Nothing is wrong: few people want these backends.
            yield Check("backends", "ok", f"{one.name} is optional, and {one.missing}")


def _check_gpus() -> Iterator[Check]:
    import torch

    build = f"torch is built for CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        build = "torch is built without CUDA"
    if not torch.cuda.is_available():
        # A driver without a usable GPU is a failure: runs would use the CPU, and nobody meant that.
        driver = Path("/proc/driver/nvidia/version")
        if driver.exists() or shutil.which("nvidia-smi"):
            remedy = (
                "install the torch for the CUDA version that nvidia-smi shows "
                "(https://pytorch.org/get-started), or a newer driver; look at CUDA_VISIBLE_DEVICES"
            )
            yield Check("GPU", "failure", f"an NVIDIA driver is here, but {build}", remedy)
            return
        remedy = "-m mini needs none. The large models need an NVIDIA GPU (docker run --gpus all)"
        yield Check("GPU", "warning", f"no NVIDIA GPU; {build}", remedy)
        return
    archs = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        free, total = torch.cuda.mem_get_info(index)
        found = (
            f"cuda:{index}, {torch.cuda.get_device_name(index)}, compute capability "
            f"{capability[0]}.{capability[1]}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free; "
            f"{build} and {' '.join(archs)}"
        )
        if not is_supported(capability, archs):
            remedy = "install a torch whose list has this compute capability, or hide the GPU"
            yield Check("GPU", "failure", found, remedy)
        elif free < _MIN_GPU_GIB * _GIB:
            remedy = "see with nvidia-smi what else uses it; ESM-2 3B needs 8 GiB"
            yield Check("GPU", "warning", found, remedy)
        else:
            yield Check("GPU", "ok", found)


def is_supported(capability: tuple[int, int], archs: list[str]) -> bool:
    """Tell whether a torch with these architectures computes on a GPU of that capability.

    A binary (`sm_80`) runs on the same major version from its own minor version on. Code for the
    driver's compiler (`compute_80`) runs on all later GPUs.
    """
    number = 10 * capability[0] + capability[1]
    for arch in archs:
        kind, _, digits = arch.partition("_")
        built = int("".join(filter(str.isdigit, digits)))
        same_major = built // 10 == capability[0]
        if built <= number and (same_major or kind == "compute"):
            return True
    return False


def _check_computing() -> Iterator[Check]:
    from virnucpro.runtime.devices import describe_computing
    from virnucpro.runtime.run import open_run

    try:
        with open_run(ComputeConfig()) as run:
            found = describe_computing(run.device, run.precision, "auto")
            # Our kernels need Ampere or later. Nothing is wrong with GPUs that have no bf16.
            on_old_gpu = run.precision == "fp16"
            has_kernels = "our kernels" in found
    except VirnucproError as error:
        yield Check("computing", "failure", str(error), "choose another --device")
        return
    if run.device.type != "cuda" or has_kernels or on_old_gpu:
        yield Check("computing", "ok", found)
        return
    remedy = (
        "Triton does not compile here: install a C compiler, and let TRITON_CACHE_DIR name a "
        "writable directory. Until then, torch's slower kernels are used"
    )
    yield Check("computing", "warning", found, remedy)


def _check_memory() -> Iterator[Check]:
    from virnucpro.kernels.host_memory import measure_free

    free = measure_free()
    found = f"{free / _GIB:.1f} GiB of memory free"
    if Path("/dev/shm").is_dir():
        found += f", {shutil.disk_usage('/dev/shm').free / _GIB:.2f} GiB in /dev/shm"
    if free < _MIN_HOST_GIB * _GIB:
        remedy = f"-m mini needs no more; ESM-2 3B needs {_MIN_HOST_GIB} GiB while it is loaded"
        yield Check("memory", "warning", found, remedy)
    else:
        yield Check("memory", "ok", found)


def _check_disks() -> Iterator[Check]:
    remedies = {
        "TMPDIR": "let TMPDIR name a writable directory",
        "the working directory": "work in another directory, or give each command an output (-o)",
        "the cache": "let XDG_CACHE_HOME name a writable directory; otherwise nothing is kept "
        "between runs",
    }
    try:
        places = {"TMPDIR": Path(tempfile.gettempdir())}
    except FileNotFoundError as error:
        yield Check("disk", "failure", str(error), remedies["TMPDIR"])
        places = {}
    places["the working directory"] = Path()
    try:
        places["the cache"] = user_cache_dir()
    except RuntimeError:
        remedy = "set HOME or XDG_CACHE_HOME; otherwise nothing is kept between runs"
        yield Check("disk", "warning", "no home directory", remedy)
    for name, path in places.items():
        # A directory that is yet to be made will lie on the disk of its nearest parent.
        nearest = (path.resolve(), *path.resolve().parents)
        # Not `Path.exists`, which raises if a parent may not be read.
        there = next(one for one in nearest if os.path.exists(one))  # noqa: PTH110
        free = shutil.disk_usage(there).free
        found = f"{name}: {there}, {free / _GIB:.0f} GiB free"
        if not os.access(there, os.W_OK):
            # Without a cache, a run is only slower. Without a temporary directory, it fails.
            state: State = "failure" if name == "TMPDIR" else "warning"
            yield Check("disk", state, f"{found}, not writable", remedies[name])
        elif free < _MIN_DISK_GIB * _GIB:
            need = "a run needs 13 KB for each frame"
            if name == "the cache":
                need = "the large models need 12 GB, and mini needs no room there"
            yield Check("disk", "warning", found, f"make room; {need}")
        else:
            yield Check("disk", "ok", found)


def _check_models() -> Iterator[Check]:
    from huggingface_hub import constants

    try:
        here = [name for name, model in PUBLISHED.items() if find_published(model) is not None]
    except WeightsError as error:
        found, _, remedy = str(error).partition("; ")
        yield Check("models", "failure", found, remedy)
        return
    places = f"in the hub's cache {constants.HF_HUB_CACHE}; the hub is {constants.ENDPOINT}"
    if constants.HF_HUB_OFFLINE:
        places += "; HF_HUB_OFFLINE is set"
    # Without a home directory, there is no place of our own.
    with suppress(RuntimeError):
        places = f"in {models_dir()} and {places}"
    found = f"found {', '.join(here)}; looked {places}"
    missing = [name for name in _LARGE_MODELS if name not in here]
    if missing:
        remedy = f"for the large models: `virnucpro models download {' '.join(missing)}`"
        yield Check("models", "warning", found, remedy)
    else:
        yield Check("models", "ok", found)


def _check_runs() -> Iterator[Check]:
    """Run the example with the small model, in two processes and, with a GPU, on it."""
    import torch

    yield _run_example("launch of two processes", "--device=cpu", "--num-processes=2")
    if torch.cuda.is_available():
        yield _run_example("example on a GPU", "--device=cuda", "--num-processes=1")


def _run_example(name: str, *options: str) -> Check:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "out"
        # -P: a file of the working directory must not stand in for a module.
        command = [sys.executable, "-P", "-m", "virnucpro", "predict", str(_find("example.fasta"))]
        command += ["--model-type=mini", f"--output-dir={output}", "--no-progress", *options]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_LAUNCH_SECONDS
            )
        except subprocess.TimeoutExpired:
            remedy = "processes do not find each other: look for a firewall on the loopback device"
            return Check(name, "failure", f"no end within {_LAUNCH_SECONDS} s", remedy)
        if done.returncode != 0:
            # The reason comes last, and warnings may come before it.
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            remedy = f"see what it says: {' '.join(command[3:])}"
            return Check(name, "failure", f"exit code {done.returncode}: {last}", remedy)
        wrong = compare_calls(output / "records.tsv", _find("calls.tsv"))
    if wrong:
        remedy = "report it: results of this machine cannot be trusted"
        return Check(name, "failure", "; ".join(wrong), remedy)
    return Check(name, "ok", "the example is called as it should be")


def compare_calls(records_tsv: Path, wanted_tsv: Path) -> list[str]:
    """Return what differs between a table of records and the known calls."""
    rows, wanted_rows = (
        {row["record_id"]: row for row in csv.DictReader(path.open(newline=""), delimiter="\t")}
        for path in (records_tsv, wanted_tsv)
    )
    wrong = []
    for name, wanted in wanted_rows.items():
        found = rows.get(name)
        if found is None:
            wrong.append(f"{name} is missing")
            continue
        difference = abs(float(found["probability"]) - float(wanted["probability"]))
        # Not `>`: nothing is within a distance of NaN.
        if found["call"] != wanted["call"] or not difference <= _PROBABILITY_BOUND:
            wrong.append(
                f"{name} is {found['call']} with {found['probability']}, wanted {wanted['call']} "
                f"with {wanted['probability']}"
            )
    return wrong


def _find(name: str) -> Path:
    """Return a file of the example."""
    return find_packaged(f"data/example/{name}", f"examples/{name}")
