"""One statement of each setting, from which option, settings file, page and docstring are made."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from virnucpro.errors import UsageError, brief

AnyConfig = TypeVar("AnyConfig", bound="Config")

REQUIRED = MISSING
"""The default of a setting that has none."""

GROUPS = (
    "Arguments",
    "Input",
    "Output",
    "Classifier and calls",
    "Screening",
    "Training",
    "Fine-tuning",
    "Measuring",
    "Older files",
    "Embedding models",
    "Device and precision",
    "Speed and memory",
    "Processes",
    "General",
)
"""The sections of `--help`, in order."""

PathKind = Literal["input", "file", "directory", "run", "any", "new file", "new directory", "new"]
"""Which path a setting names: one that exists, or a new one, which may exist as well. A run is its
directory, or `directory/prefix`."""

_TYPES: Mapping[type, tuple[tuple[type, ...], str]] = {
    # YAML reads 500 as a number, also where a name such as a model type is meant.
    str: ((str, Path, int), "text"),
    Path: ((str, Path, int), "a path"),
    # The abstract types, because NumPy's numbers are of these, and not of Python's.
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    bool: ((bool,), "true or false"),
}
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "score": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    # Without the ends: log-odds would be infinite, and a split would be empty.
    "share": (lambda value: 0 < value < 1, "a share between 0 and 1, such as 0.05 for 5 %"),
    "positive": (lambda value: 0 < value < math.inf, "a number above 0"),
    # A model may take time and memory by the square of the length.
    "chunk": (lambda value: 1 <= value <= 100_000, "a length from 1 to 100,000 bp"),
}


@dataclass(frozen=True)
class Option:
    """A setting, as the command line, a settings file and the documentation know it.

    Attributes:
        help: What it means, in a sentence or two.
        group: The section of `--help` that lists it; by default the one that its class names.
        aliases: Its other names: `-e`, `--expected-length`.
        details: What the documentation says in addition.
        metavar: What stands for its value; by default N, FILE or DIR if its type tells that.
        unset: What happens where it has no value.
        choices: The values that it may have.
        minimum: The smallest whole number that it may be.
        within: The range that a number must be in.
        path: Which path it names, if it names one.
        is_argument: Whether it is given by its place, without a name.
        shorthands: Names of flags, and the value that each stands for.
        name: Of the field.
        kind: The type of its value, or of each of them.
        is_many: Whether it takes several values.
        default: Its default; REQUIRED if it has none.
    """

    help: str
    group: str = ""
    aliases: tuple[str, ...] = ()
    details: str = ""
    metavar: str | None = None
    unset: str = ""
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    within: Literal["score", "share", "positive", "chunk"] | None = None
    path: PathKind | None = None
    is_argument: bool = False
    shorthands: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    kind: type = str
    is_many: bool = False
    default: Any = None

    @property
    def long_name(self) -> str:
        """The name on the command line."""
        return option_name(self.name)

    @property
    def negative_name(self) -> str | None:
        """The name that turns off a flag that is on by default."""
        is_switch = self.kind is bool and self.default is not False
        return option_name(f"no_{self.name}") if is_switch else None

    @property
    def default_text(self) -> str:
        """The default for people; empty for a flag that is off, and without a value."""
        if self.unset:
            return self.unset
        if self.kind is bool:
            return "on" if self.default else ""
        return "" if self.default in (None, (), REQUIRED) else str(self.default)

    def convert(self, value: Any) -> Any:
        """Return `value` as the field's type.

        Raises:
            ValueError: The value is invalid; the message says what is wanted.
        """
        # Only where None is the default: elsewhere, a setting without a value is a mistake.
        if value is None and self.default is None:
            return None
        if not self.is_many:
            return self._convert_one(value)
        # From Python, one input need not be a list.
        values = (value,) if isinstance(value, str | Path) else value
        if not isinstance(values, list | tuple):
            raise ValueError("a list")  # noqa: TRY004 (the caller makes it a UsageError)
        return tuple(map(self._convert_one, values))

    def check(self, value: Any, name: str) -> Any:
        """Return `value` as the field's type.

        Args:
            value: What was given.
            name: What who gave it calls the setting.

        Raises:
            UsageError: The value is invalid.
        """
        try:
            return self.convert(value)
        except ValueError as error:
            raise UsageError(f"{name} {brief(value)}: wanted {error}") from error

    def _convert_one(self, value: Any) -> Any:
        # YAML reads the words on and off as truth values.
        if isinstance(value, bool) and "on" in self.choices:
            value = "on" if value else "off"
        types, wanted = _TYPES[self.kind]
        # bool is a kind of int in Python, but not here.
        is_right = isinstance(value, types) and isinstance(value, bool) == (self.kind is bool)
        if self.minimum is not None:
            wanted = f"{wanted}, at least {self.minimum}"
            is_right = is_right and value >= self.minimum
        if self.choices:
            wanted = f"one of {', '.join(self.choices)}"
            is_right = is_right and str(value) in self.choices
        if self.within is not None:
            is_inside, wanted = _RANGES[self.within]
            is_right = is_right and is_inside(value)
        # An empty path would be the working directory.
        if is_right and value == "" != self.default:
            is_right, wanted = False, f"{wanted} that is not empty"
        if not is_right:
            raise ValueError(wanted)
        # A path may have come as text, and a float as a whole number.
        return self.kind(value)


def option_name(field: str) -> str:
    """Return what the setting of a field is called on the command line: `--chunk-length-bp`."""
    return f"--{field.replace('_', '-')}"


def option(default: Any, *aliases: str, **about: Any) -> Any:
    """Return a dataclass field for a setting; `about` are attributes of `Option`."""
    described = Option(aliases=aliases, **about)
    return dataclasses.field(default=default, metadata={"option": described})


def argument(default: Any = REQUIRED, **about: Any) -> Any:
    """Return a dataclass field for a setting that the command line gives by its place."""
    return option(default, group="Arguments", is_argument=True, **about)


def accepting_former(**names: str) -> Callable[[type[AnyConfig]], type[AnyConfig]]:
    """Return a decorator that lets a class of settings take former names of its fields.

    Args:
        names: Each former name with the present one.
    """

    def decorate(config: type[AnyConfig]) -> type[AnyConfig]:
        make = config.__init__

        @functools.wraps(make)
        def make_from_either(self: AnyConfig, *args: Any, **given: Any) -> None:
            for former in names.keys() & given.keys():
                # `dataclasses.replace` also gives the present name, with the value to be replaced.
                given[names[former]] = given.pop(former)
            make(self, *args, **given)

        config.__init__ = make_from_either  # type: ignore[assignment, method-assign]
        return config

    return decorate


def options_of(config: type[Config]) -> Mapping[str, Option]:
    """Return the options of a class by field; its own come before those of its bases."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    names = dict.fromkeys([*inspect.get_annotations(config), *fields])
    # The annotations are text here, so their types must be looked up.
    hints = typing.get_type_hints(config)
    options = {}
    # Fields without `option()` are no settings of this command, although its base class has them.
    for name in names:
        if name in fields and "option" in fields[name].metadata:
            kind, is_many = _read_hint(hints[name])
            stated: Option = fields[name].metadata["option"]
            # The class that states an option decides its section, wherever the option is inherited.
            owner = next(
                one
                for one in config.__mro__
                if issubclass(one, Config) and name in inspect.get_annotations(one)
            )
            options[name] = dataclasses.replace(
                stated,
                name=name,
                group=stated.group or owner.option_group,
                metavar=stated.metavar or _choose_metavar(stated, kind),
                kind=kind,
                is_many=is_many,
                default=fields[name].default,
            )
    return options


def _choose_metavar(option: Option, kind: type) -> str | None:
    # click writes these by itself.
    if option.is_argument or option.choices or kind is bool:
        return None
    if option.path is not None:
        return "DIR" if option.path.endswith(("directory", "run")) else "FILE"
    return "N" if kind is int else None


def _read_hint(hint: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether there are several."""
    if typing.get_origin(hint) is Literal:
        return str, False
    # `int | None` is a number: None only says that the setting may have no value.
    kinds = [kind for kind in typing.get_args(hint) if kind not in (type(None), ...)]
    return (kinds[0] if kinds else hint), typing.get_origin(hint) is tuple


@dataclass(frozen=True)
class Config:
    """The settings of a command: frozen, and checked when they are made.

    Raises:
        UsageError: A setting has an invalid value.
    """

    option_group: ClassVar[str]

    def __init_subclass__(cls, group: str = "General") -> None:
        """Let the docstring list the settings, each with the help of its option.

        Args:
            group: The group of the options that name none.
        """
        cls.option_group = group
        fields: dict[str, Any] = {}
        # As `@dataclass` collects them. It runs after this, so our own are still class attributes.
        for base in cls.__mro__[-1:0:-1]:
            fields |= getattr(base, "__dataclass_fields__", {})
        fields |= {name: vars(cls).get(name) for name in inspect.get_annotations(cls)}
        stated = {name: getattr(field, "metadata", {}) for name, field in fields.items()}
        described = {name: about["option"] for name, about in stated.items() if "option" in about}
        lines = [
            f"    {name}: {one.help} {one.details}".rstrip() for name, one in described.items()
        ]
        cls.__doc__ = "\n".join([f"{cls.__doc__}\n", "Attributes:", *lines])

    def __post_init__(self) -> None:
        for name, one in options_of(type(self)).items():
            self._set(name, one.check(getattr(self, name), name))
        self._check_output()

    def _check_output(self) -> None:
        """Refuse an output that the command also reads, because --force would replace it."""
        read: set[str] = set()
        written = []
        for name, one in options_of(type(self)).items():
            value = getattr(self, name)
            if one.path is None or value is None:
                continue
            if one.group == "Output" and one.path.startswith("new"):
                written.append(value)
            else:
                read.update(map(os.path.realpath, value if one.is_many else [value]))
        for path in written:
            if os.path.realpath(path) in read:
                raise UsageError(
                    f"{path}: is read by this command and would be replaced; choose another "
                    "output (-o)"
                )

    @classmethod
    def require(cls, given: object) -> None:
        """Refuse what is no object of this class, such as the path of an input.

        Raises:
            UsageError: It is none.
        """
        if not isinstance(given, cls):
            first = next(iter(options_of(cls)))
            raise UsageError(
                f"found {brief(given)}; wanted settings, as in {cls.__name__}({first}=...)"
            )

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, for run.json."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def _set(self, name: str, value: Any) -> None:
        # The class is frozen, and this is the way to set a field while it is made.
        object.__setattr__(self, name, value)

    def _set_default(self, name: str, value: Any) -> None:
        """Set what has no value."""
        if getattr(self, name) is None:
            self._set(name, value)
