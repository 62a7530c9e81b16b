"""Finds the installed backends and loads exactly one.

A backend is any object under the entry-point group `virnucpro.backends`. Python's `entry_points`
counts a distribution once, even if it is on `sys.path` twice (editable and installed).
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast, get_args

from virnucpro.backend.interface import (
    INTERFACE_VERSION,
    Alphabet,
    Backend,
    BackendInfo,
    Requirement,
)
from virnucpro.errors import BackendError

GROUP = "virnucpro.backends"
METHODS: dict[str, tuple[str, ...]] = {
    "token_cost": (),
    "open_weights": (),
    "load_collator": (),
    "load_encoder": ("dtype", "device", "attention"),
}
"""What a run calls with one argument, and the keywords that it adds."""
TRAINING_KEYWORDS = ("dtype", "device", "gradient_checkpointing")


@dataclass(frozen=True, slots=True)
class BackendListing:
    """One line of `virnucpro backends`.

    Attributes:
        name: What users type.
        distribution: The installed package that registers it.
        version: That package's version.
        info: What the backend says about itself; None if it is broken.
        reason: Why it is broken; None if it works.
    """

    name: str
    distribution: str
    version: str
    info: BackendInfo | None
    reason: str | None

    @property
    def missing(self) -> str | None:
        """Which packages the backend lacks, and how to install them; None if it has all."""
        needs = self.info.needs if self.info else ()
        missing = [need.explain() for need in needs if not need.is_installed()]
        return "; ".join(missing) or None


@dataclass(frozen=True, slots=True)
class LoadedBackend:
    """A backend and its package, whose version is part of a checkpoint's identity."""

    backend: Backend
    name: str
    distribution: str
    version: str

    def compute_precision(self, precision: str) -> str:
        """Return what the backend computes in, in a run in `precision`: without fp8, in bf16."""
        if precision == "fp8" and not self.backend.info.supports_fp8:
            return "bf16"
        return precision


def describe_backends() -> list[BackendListing]:
    """Return every installed backend, sorted by name; a broken one says why it is broken."""
    listings = []
    for entries in _find_entry_points().values():
        for entry in entries:
            info = reason = None
            # Which of two packages is imported would depend on the order of sys.path.
            if len(entries) > 1:
                reason = _explain_duplicates(entries)
            else:
                try:
                    # A broken package must not hide the others from the list.
                    info = _load(entry).info
                except BackendError as error:
                    reason = str(error)
            listings.append(BackendListing(entry.name, *_origin(entry), info, reason))
    return listings


def load_backend(name: str) -> LoadedBackend:
    """Import and return the backend called `name`, and no other.

    Raises:
        BackendError: It is not installed, broken, or registered twice.
    """
    return _load_backend(name, tuple(sys.path))


# A run asks often, and each search reads the metadata of all packages on the path. An error is not
# kept, so a package may be installed after it.
@functools.cache
def _load_backend(name: str, path: tuple[str, ...]) -> LoadedBackend:
    found = _find_entry_points()
    if name not in found:
        raise BackendError(_explain_unknown(name, list(found)))
    # Only this one is imported. Another package may be broken, or slow to import.
    entry, *others = found[name]
    distribution, version = _origin(entry)
    if others:
        raise BackendError(
            f"The backend {name!r} is {_explain_duplicates(found[name])}: uninstall all but one "
            "of these packages."
        )
    try:
        backend = _load(entry)
    except BackendError as error:
        raise BackendError(
            f"The backend {name!r} of the package {distribution} {version} is broken: {error}. "
            f"Upgrade the package, report this to its authors, or remove it with "
            f"`pip uninstall {distribution}`."
        ) from error
    return LoadedBackend(backend, name, distribution, version)


def find_culprit(error: BaseException) -> str | None:
    """Return the backend of another package whose code an error has passed through, if any."""
    modules = set()
    step = error.__traceback__
    while step is not None:
        modules.add(str(step.tb_frame.f_globals.get("__name__")).partition(".")[0])
        step = step.tb_next
    for entries in _find_entry_points().values():
        for entry in entries:
            distribution, version = _origin(entry)
            module = entry.module.partition(".")[0]
            if distribution == "virnucpro":
                continue
            # An error of a loader's worker has the worker's traceback in its text.
            if module in modules or f'File "{_place_of(module)}' in str(error):
                return f"backend {entry.name} (package {distribution} {version})"
    return None


def _place_of(module: str) -> Path | None:
    """Return the file or the directory of a module; None if it was not imported."""
    imported = sys.modules.get(module)
    path = getattr(imported, "__file__", None)
    return path and (Path(path).parent if hasattr(imported, "__path__") else Path(path))


def _find_entry_points() -> dict[str, list[EntryPoint]]:
    """Return the entry points of each name, sorted by name and distribution."""
    found: dict[str, list[EntryPoint]] = {}
    # Sorted, because they come in the order in which the system lists files.
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _origin(entry))):
        found.setdefault(entry.name, []).append(entry)
    return found


def _origin(entry: EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that registers `entry`."""
    # It is set on every entry point that `entry_points` returns.
    assert entry.dist is not None
    return entry.dist.name, entry.dist.version


def _load(entry: EntryPoint) -> Backend:
    """Import `entry` and check it; the message of a BackendError is only the reason."""
    try:
        backend = entry.load()
        reason = _find_fault(backend, entry)
    # Other people's code may raise anything.
    except (Exception, SystemExit) as error:
        raise BackendError(
            f"importing {entry.value} failed with {type(error).__name__}: {error}"
        ) from error
    if reason is not None:
        raise BackendError(f"{entry.value} is not a backend: {reason}")
    return cast("Backend", backend)


def _find_fault(backend: object, entry: EntryPoint) -> str | None:
    """Return why an imported object is not a backend, or None if it is one."""
    # The easiest mistake to make: the class has all methods, and `info` too.
    if isinstance(backend, type):
        return f"it is the class {backend.__name__}, an instance of it was expected"
    info = getattr(backend, "info", None)
    if not isinstance(info, BackendInfo):
        return f"its `info` is of type {type(info).__name__}, a BackendInfo was expected"
    # Before the methods, because another version may have others.
    if info.interface_version != INTERFACE_VERSION:
        return (
            f"it was written for version {info.interface_version} of the interface, "
            f"this virnucpro has version {INTERFACE_VERSION}"
        )
    missing = [name for name in METHODS if not callable(getattr(backend, name, None))]
    if missing:
        return f"it lacks {', '.join(missing)}"
    # Users type the one name, and it stands in the identity of every part.
    if info.name != entry.name:
        return f"it calls itself {info.name!r}, but is registered as {entry.name!r}"
    if info.alphabet not in get_args(Alphabet):
        return f"its alphabet is {info.alphabet!r}, not one of {', '.join(get_args(Alphabet))}"
    for field in ("embedding_dim", "max_tokens", "max_letters"):
        value = getattr(info, field)
        if value is not None and (not isinstance(value, int) or value < 1):
            return f"its {field} is {value!r}, a positive number or None was expected"
    if not isinstance(info.pooling, str) or not info.pooling:
        return "its `pooling` does not say how token vectors become one vector"
    if not isinstance(info.needs, tuple) or not all(map(_is_requirement, info.needs)):
        return f"its needs are {info.needs!r}, a tuple of Requirement was expected"
    for name, keywords in METHODS.items():
        if reason := _find_fault_in_call(backend, name, keywords):
            return reason
    return _find_fault_in_training(backend, info.linear_layers)


def _is_requirement(need: object) -> bool:
    return isinstance(need, Requirement) and all(isinstance(part, str) and part for part in need)


def _find_fault_in_training(backend: object, linear_layers: object) -> str | None:
    """Return why a backend cannot be fine-tuned although it says so, or None."""
    if not isinstance(linear_layers, tuple) or not all(
        isinstance(kind, str) and kind.isidentifier() for kind in linear_layers
    ):
        return f"its linear_layers are {linear_layers!r}, a tuple of names was expected"
    if not linear_layers:
        return None
    if not callable(getattr(backend, "load_trainable", None)):
        return "it states linear_layers, and lacks load_trainable"
    # A classifier with adapters is used in later runs, which should not be the first to notice.
    parameters = inspect.signature(getattr(backend, "load_encoder")).parameters.values()  # noqa: B009
    if not any(one.name == "changes" or one.kind is one.VAR_KEYWORD for one in parameters):
        return "it states linear_layers, and its load_encoder does not take `changes`"
    return _find_fault_in_call(backend, "load_trainable", TRAINING_KEYWORDS)


def _find_fault_in_call(backend: object, name: str, keywords: tuple[str, ...]) -> str | None:
    """Return why a method cannot be called as virnucpro calls it, or None."""
    try:
        inspect.signature(getattr(backend, name)).bind(None, **dict.fromkeys(keywords))
    except TypeError as error:
        return f"its {name} cannot be called as it should be: {error}"
    # A function in C may not say what it takes.
    except ValueError:
        pass
    return None


def _explain_duplicates(entries: list[EntryPoint]) -> str:
    return f"registered twice, by {' and '.join(' '.join(_origin(entry)) for entry in entries)}"


def _explain_unknown(name: str, installed: list[str]) -> str:
    # Names are in lower case, and people type the names of models as papers write them.
    nearest = difflib.get_close_matches(name.lower(), installed, n=1)
    guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return (
        f"No backend is called {name!r}; installed are: {', '.join(installed) or 'none'}.{guess} "
        "Install the package that contains it; `virnucpro backends` lists the installed ones."
    )
