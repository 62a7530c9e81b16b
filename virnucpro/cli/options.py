"""Commands made from their classes of settings: their options, and the settings that users gave."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from virnucpro.config import COMMANDS, Config, Option, PredictConfig, command_options, options_of
from virnucpro.config.options import GROUPS, REQUIRED, option_name
from virnucpro.errors import UsageError

AnyConfig = TypeVar("AnyConfig", bound=Config)

# click looks at these paths while it reads the command line, so a typo shows at once.
_PATHS: Mapping[str, Mapping[str, bool]] = {
    "input": {"exists": True, "dir_okay": False, "allow_dash": True},
    "file": {"exists": True, "dir_okay": False},
    "directory": {"exists": True, "file_okay": False},
    # `directory/prefix` names a run, and is no path that exists.
    "run": {},
    "any": {"exists": True},
    "new file": {"dir_okay": False},
    "new directory": {"file_okay": False},
    "new": {},
}
SETTINGS_PATH = click.Path(exists=True, dir_okay=False, path_type=Path)
# Where a click context keeps the path of the settings file, and the fork's keys in it.
_FORK_SETTINGS = "virnucpro.fork_settings"


# Not `ParamType[Any]`, because the class takes no parameter before click 8.4.
class _Number(click.ParamType):  # type: ignore[type-arg]
    """A number; what is none stays text, and the settings then say what is wanted."""

    def __init__(self, kind: type) -> None:
        self.name = kind.__name__
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or the text."""
        try:
            return self._kind(value)
        except ValueError:
            return value


class _NotEmpty(click.Parameter):
    """A parameter that refuses an empty text, which Python would take for the working directory."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value in its type."""
        # An option that is empty by default can be told to be empty.
        if self.default != "" and "" in (value if isinstance(value, (tuple, list)) else [value]):
            message = "it is empty; if a script gave it, look whether its variable is set"
            raise click.BadParameter(message, ctx, self)
        return super().type_cast_value(ctx, value)


class ConfigOption(_NotEmpty, click.Option):
    """An option in a group of `--help`, which shows its own names alone."""

    def __init__(self, names: Sequence[str], *, group: str, num_shown: int = 2, **about: Any):
        super().__init__(names, **about)
        self.group = group
        self._num_shown = num_shown

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the names and the help, without the names that came later."""
        # A copy, because the option itself must still accept the other names.
        shown = copy.copy(self)
        shown.opts = self.opts[: self._num_shown]
        return click.Option.get_help_record(shown, ctx)


class ConfigFlag(ConfigOption):
    """A flag that stands for a value of another option."""

    def __init__(self, name: str, sets: tuple[str, Any], **about: Any) -> None:
        super().__init__([name], is_flag=True, **about)
        self.sets = sets


class ConfigArgument(_NotEmpty, click.Argument):
    """An argument that `--help` explains as well."""

    group = "Arguments"

    def __init__(self, name: str, *, help: str, **about: Any) -> None:
        super().__init__([name], **about)
        self._help = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the name and the help."""
        return self.human_readable_name, self._help


class ConfigCommand(click.Command):
    """A command whose `--help` lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group."""
        # All groups from the start, so that they come in this order whatever the options' order is.
        records: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                records[getattr(param, "group", "General")].append(record)
        for group, listed in records.items():
            if listed:
                with formatter.section(group):
                    formatter.write_dl(listed)


def config_command(
    path: str,
    *,
    short_help: str | None = None,
    cls: type[ConfigCommand] = ConfigCommand,
    extra: Sequence[click.Parameter] = (),
) -> Callable[[Callable[..., None]], ConfigCommand]:
    """Return a decorator that makes a command, called with its context and its settings.

    Args:
        path: The words that start the command; `COMMANDS` has the classes of its settings.
        short_help: What the list of commands says, if not the first line of the docstring.
        cls: The class of the command.
        extra: More parameters, which the settings do not have.
    """

    def decorate(function: Callable[..., None]) -> ConfigCommand:
        # The values are read from the context instead, which knows where each of them came from.
        def call(**_: Any) -> None:
            ctx = click.get_current_context()
            function(ctx, *(make_config(ctx, config) for config in COMMANDS[path]))

        # People also type -c behind the command. It is read first, because other options take their
        # values from it, and hidden, because the help of the program explains it.
        settings_option = click.Option(
            ["-c", "--config"],
            type=SETTINGS_PATH,
            is_eager=True,
            expose_value=False,
            hidden=True,
            callback=lambda ctx, _, file: None if file is None else use_settings(ctx, file, path),
        )
        options = command_options(path).values()
        return cls(
            name=path.rpartition(" ")[2],
            callback=call,
            params=[*map(_make_param, options), *_make_flags(options), *extra, settings_option],
            help=inspect.cleandoc(function.__doc__ or ""),
            short_help=short_help,
        )

    return decorate


def _make_param(option: Option) -> click.Parameter:
    about: dict[str, Any] = {"type": _make_type(option), "metavar": option.metavar}
    is_required = option.default is REQUIRED
    if option.is_argument:
        about |= {"nargs": -1} if option.is_many else {}
        return ConfigArgument(option.name, required=is_required, help=option.help, **about)
    if option.kind is bool:
        about = {"is_flag": True}
    # Even a default of None would let click take a required option for given.
    if option.default not in (None, (), REQUIRED):
        about["default"] = option.default
    text = f"default: {option.default_text}" if option.default_text else ""
    short = [name for name in option.aliases if not name.startswith("--")]
    long = [name for name in option.aliases if name.startswith("--")]
    # click writes a flag and its negative with a slash.
    main = "/".join(filter(None, [option.long_name, option.negative_name]))
    return ConfigOption(
        [option.name, *short, main, *long],
        group=option.group,
        num_shown=len(short) + 1,
        help=f"{option.help}  [{text}]" if text else option.help,
        required=is_required,
        multiple=option.is_many,
        **about,
    )


def _make_type(option: Option) -> click.ParamType[Any]:
    if option.choices:
        return click.Choice(option.choices)
    if option.path is not None:
        # Inputs stay text, because `-` among them is no path.
        path_type = Path if option.kind is Path else None
        return click.Path(**_PATHS[option.path], path_type=path_type)
    return _Number(option.kind) if option.kind in (int, float) else click.STRING


def _make_flags(options: Iterable[Option]) -> list[ConfigFlag]:
    """Return the flags that stand for values of options."""
    return [
        ConfigFlag(
            flag,
            (option.name, value),
            group=option.group,
            help=f"The same as {option.long_name} {value}.",
        )
        for option in options
        for flag, value in option.shorthands.items()
    ]


def use_settings(ctx: click.Context, path: Path, command: str | None = None) -> None:
    """Let a settings file give the values that the command line does not give.

    Args:
        ctx: Of the program, or of one command.
        path: The settings file.
        command: The words that start the command, if it is one.

    Raises:
        UsageError: The file cannot be read, or has an unknown key or a wrong value.
    """
    from virnucpro.config.settings_file import command_keys, read_settings
    from virnucpro.legacy.settings import FORK_KEYS

    # Read together, so that a settings file of the fork may also have keys of ours.
    found = read_settings(path, {**command_keys(), **FORK_KEYS})
    # Kept for `make_config`: which of the fork's classifiers counts depends on the model type.
    ctx.meta[_FORK_SETTINGS] = path, {name: found[name] for name in found if name in FORK_KEYS}
    sections: dict[str, Any] = {}
    for name, value in found.items():
        *words, field = name.split(".")
        section = sections
        for word in words:
            section = section.setdefault(word, {})
        section[field] = value
    for word in command.split() if command is not None else ():
        sections = sections.get(word, {})
    # click asks this map for what the command line lacks, and hands its sections to subcommands.
    ctx.default_map = sections


def make_config(ctx: click.Context, config: type[AnyConfig]) -> AnyConfig:
    """Return settings: of the command line, else of a settings file, else the defaults.

    Raises:
        UsageError: A setting has an invalid value, or two options contradict each other.
    """
    # Only what was given: some defaults depend on other settings, and the class knows them.
    given = _resolve_flags(ctx, given_options(ctx))
    options = options_of(config)
    fields = {name: value for name, value in given.items() if name in options}
    for name, value in fields.items():
        # The class would name the field; who typed an option knows it by its own name.
        if not options[name].is_argument:
            options[name].check(value, options[name].long_name)
    if issubclass(config, PredictConfig) and _FORK_SETTINGS in ctx.meta:
        from virnucpro.legacy.settings import read_fork_fields

        path, found = ctx.meta[_FORK_SETTINGS]
        # Our own names win over the fork's, and the command line over both.
        fields = read_fork_fields(path, found, fields.get("model_type")) | fields
    return config(**fields)


def given_options(ctx: click.Context) -> dict[str, Any]:
    """Return the parameters that the user gave, without those that are at their defaults."""
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def _resolve_flags(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the values that flags stand for.

    Raises:
        UsageError: The command line gives a setting two values.
    """
    resolved = dict(given)
    by_flag: dict[str, str] = {}
    for param in ctx.command.params:
        if isinstance(param, ConfigFlag) and param.name in given:
            name, value = param.sets
            # A flag overrides a settings file, but no other word of the command line.
            is_typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
            other = by_flag.get(name, option_name(name) if is_typed else None)
            if other is not None and resolved[name] != value:
                raise UsageError(
                    f"{other} and {param.opts[0]} contradict each other; give one of the two"
                )
            resolved[name] = value
            by_flag[name] = param.opts[0]
    return resolved
