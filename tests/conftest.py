"""Settings and helpers that all tests share."""

from __future__ import annotations

import multiprocessing.util
import os
import runpy
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

# Before anything imports torch: results must not depend on how many cores a machine has, and
# several test processes share them. A hub must never be asked.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# And they must not depend on what `virnucpro profile` has found on this machine, nor on the models
# in its cache of the hub.
os.environ["VIRNUCPRO_BUDGETS"] = "/nonexistent/budgets.json"
os.environ["HF_HOME"] = "/nonexistent/huggingface"

# Images of containers often set it, and then each process compiles our modules anew.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
# They also set this one, and users do not: what a program prints then waits in a buffer.
os.environ["PYTHONUNBUFFERED"] = ""

import pytest

# Tests in the background (`make test &`) ignore Ctrl-C. So would all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything looks for plug-ins, here and in the processes that tests start: who follows the
# guide has a backend `toy` installed, and tests make their own.
OWN_PLUGINS = Path(__file__).with_name("own_plugins")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(OWN_PLUGINS), os.environ.get("PYTHONPATH")])
)
sys.dont_write_bytecode = False
runpy.run_path(str(OWN_PLUGINS / "sitecustomize.py"))


_CONTRACTS = {
    "test_collator_works_in_a_spawned_worker": "slow",
    "test_module_is_imported_without_torch": "slow",
    "test_gpu_is_near_float32_on_the_cpu": "gpu",
    "test_gradients_on_a_gpu": "gpu",
}
"""The markers of tests of `BackendContract`; plug-ins of others do not know our markers."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # A test with parameters has them in its other name.
        contract = _CONTRACTS.get(getattr(item, "originalname", item.name))
        if contract is not None:
            item.add_marker(contract)
        # The fixture `published` lets another process write a classifier.
        if "published" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    # The longest files first: one that began last would leave all processes but its own idle.
    for name in ("slow", "launch"):
        files = {item.path for item in items if item.get_closest_marker(name)}
        items.sort(key=lambda item: item.path not in files)
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_configure(config: pytest.Config) -> None:
    """Forbid processes where the slow tests are left out, so that `make test-fast` stays fast."""
    if "not slow" in config.option.markexpr:
        sys.addaudithook(_refuse_processes)
        # The one way to start a process that is not audited.
        multiprocessing.util.spawnv_passfds = lambda *_: _refuse_processes("os.fork", ())


_is_testing = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    global _is_testing
    _is_testing = True
    try:
        return (yield)
    finally:
        _is_testing = False


def _refuse_processes(event: str, _: object) -> None:
    if _is_testing and event in {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"}:
        pytest.fail("this test starts a process: mark it with pytest.mark.slow")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material for tests that lies beside some checkouts and is not part of the project."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("no shared test material beside this checkout")
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built without a network."""
    from tests.runs import run

    why = "is missing, which builds wheels here: pip install '.[dev]'"
    for name in ("hatchling", "pip"):
        pytest.importorskip(name, reason=f"{name} {why}")
    directory = tmp_path_factory.mktemp("wheel")
    # What pip downloads for a build of its own is installed here.
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "-w", directory)
    done = run(sys.executable, "-m", "pip", "wheel", *options, REPOSITORY)
    assert done.returncode == 0, done.stderr
    (path,) = directory.iterdir()
    return path


@pytest.fixture(scope="session")
def demo_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of `PredictConfig` for small seeded models, which the golden tables come from."""
    from tools.make_demo_weights import make_demo_weights

    return make_demo_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def example_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of the example with the small model, which no test changes."""
    from virnucpro import PredictConfig, predict

    output_dir = tmp_path_factory.mktemp("example") / "run"
    example = REPOSITORY / "examples" / "example.fasta"
    predict(PredictConfig(inputs=example, output_dir=output_dir, model_type="mini", device="cpu"))
    return output_dir


@pytest.fixture
def without_figures(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw no figures, here and in processes that a test starts: they take longer than the rest."""
    directory = tmp_path_factory.mktemp("without_matplotlib")
    (directory / "matplotlib.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(directory), os.environ["PYTHONPATH"]]))
    monkeypatch.setattr("virnucpro.reports.figures.can_draw", lambda: False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let reports travel between processes: bytes of files that are no text stay in some logs."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
