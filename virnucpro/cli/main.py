"""The program's global options, and the only place where errors become exit codes."""

from __future__ import annotations

import atexit
import difflib
import gc
import importlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from virnucpro import __version__
from virnucpro.cli import ARGUMENTS, SHELLS
from virnucpro.cli.options import SETTINGS_PATH, use_settings
from virnucpro.cli.terminal import drop_unwritten, echo, open_missing_streams
from virnucpro.config import COMMANDS, command_options
from virnucpro.errors import (
    INTERRUPTED,
    MemoryExhaustedError,
    Terminated,
    UsageError,
    VirnucproError,
    brief,
    keeps_work,
    on_one_line,
    printable,
)
from virnucpro.runtime.environment import (
    is_main_process,
    num_processes,
    off_the_working_directory,
    read_torch_build,
    require_working_directory,
)
from virnucpro.runtime.logs import set_up_logging
from virnucpro.runtime.orphans import end_with_launcher

logger = logging.getLogger(__name__)

# Long enough for the launcher to end this process when the main one has failed.
_SECONDS_BEFORE_OTHERS_SPEAK = 3

# By name only, because importing the commands would slow down each start.
_COMMANDS = tuple(dict.fromkeys(path.partition(" ")[0] for path in COMMANDS))


class _Program(click.Group):
    """A group that imports a command when it is needed, and explains how it ended."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A copy, because click's parser takes the words out of the list.
        given = list(args)
        try:
            with _printable_complaints():
                rest = super().parse_args(ctx, args)
        except BrokenPipeError:
            raise
        # Help and version are printed here already.
        except (OSError, VirnucproError) as error:
            raise click.exceptions.Exit(_explain(error, None)) from error
        # For a command that starts itself again in several processes.
        ctx.meta[ARGUMENTS] = (given[: len(given) - len(rest)], rest)
        return rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        # Only now: importing all commands would take longer than most of them need.
        module = importlib.import_module(f"virnucpro.cli.{name}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # Of an option in this place, click's own message says enough.
        if name in _COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        # People remember `verify`, and not which group it is in.
        within = [path for path in COMMANDS if path.partition(" ")[2] == name]
        guess = f" Did you mean {' or '.join(map(repr, within or near))}?" if within or near else ""
        # A common slip: the input is there, and the word `predict` is missing.
        if Path(name).exists():
            guess = f" Did you mean 'virnucpro predict {name}'?"
        text = f"No such command {brief(name)}.{guess} virnucpro --help lists the commands."
        raise click.UsageError(text, ctx)

    def invoke(self, ctx: click.Context) -> object:
        # Before anything that may take long, because the launcher may be killed meanwhile.
        end_with_launcher()
        open_missing_streams()
        _collect_rarely()
        try:
            with _signals_raise(ctx), off_the_working_directory(), _printable_complaints():
                return super().invoke(ctx)
        except click.NoSuchOption as error:
            name, command = error.option_name, ctx.invoked_subcommand
            if any(name in param.opts for param in self.params):
                # Older versions of click end the message without a full stop.
                message = error.message.removesuffix(".")
                raise click.NoSuchOption(
                    name,
                    f"{message}. Put it before the command: virnucpro {name} {command}",
                    error.possibilities,
                    error.ctx,
                ) from error
            raise
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            # click ends by these itself, and a reader such as `head` has seen enough.
            raise
        # Also Ctrl-C and Terminated, which are no Exceptions and have exit codes of their own.
        except BaseException as error:
            raise click.exceptions.Exit(_explain(error, ctx.invoked_subcommand)) from error


def _collect_rarely() -> None:
    """Let Python look for unused objects less often, and not at all when it ends.

    torch and the rest make 200,000 objects that stay. To look through them takes a tenth of their
    import, and 0.4 seconds at the end.
    """
    gc.set_threshold(10_000)
    # What is registered first runs last, when hardly anything is left to do.
    atexit.register(gc.freeze)


def _how_to_go_on(command: str | None) -> str:
    # Groups of commands, which have no settings of their own, begin no runs.
    if not command or command not in COMMANDS or "resume" not in command_options(command):
        return ""
    return "; finished work is kept: run the same command with --resume to continue"


def _explain(error: BaseException, command: str | None) -> int:
    """Say on standard error what `error` means for `command`, and return the exit code."""
    drop_unwritten()
    if isinstance(error, Exception) and not is_main_process():
        # The main process usually reports the same error, and then the launcher ends this one.
        time.sleep(_SECONDS_BEFORE_OTHERS_SPEAK)
    with_traceback = logger.isEnabledFor(logging.DEBUG)
    # A launcher passes signals on to its processes, and reports them once.
    ending = logging.DEBUG if num_processes() > 1 else logging.ERROR
    more = _how_to_go_on(command) if keeps_work(error) else ""
    match error:
        case VirnucproError():
            logger.error("%s%s", error, more, exc_info=with_traceback)
            return error.exit_code
        case Terminated():
            logger.log(ending, "terminated%s", more)
            return error.exit_code
        case KeyboardInterrupt():
            logger.log(ending, "interrupted%s", more)
            return INTERRUPTED
        # In place of the answer to a question.
        case click.Abort():
            logger.error("interrupted; nothing was changed")
            return INTERRUPTED
        case MemoryError():
            # Python's own error has no text.
            logger.error(
                "this machine's memory is used up; close other programs, or use a larger machine%s",
                more,
                exc_info=with_traceback,
            )
            return MemoryExhaustedError.exit_code
        case OSError():
            # A full disk or a missing permission is no bug of the program.
            place = f"{error.filename}: " if error.filename else ""
            logger.error("%s%s%s", place, on_one_line(error), more, exc_info=with_traceback)
            return 1
        case Exception():
            from virnucpro.backend.registry import find_culprit

            culprit = find_culprit(error)
            logger.error(
                "%s: %s\nThis is a bug in %s; please report it%s with what follows, and with the "
                "output of `virnucpro doctor`.",
                type(error).__name__,
                error,
                culprit or "virnucpro",
                " to its authors" if culprit else "",
                exc_info=True,
            )
            return 1
        # SystemExit and the like are not ours to explain.
        case _:
            raise error


@contextmanager
def _printable_complaints() -> Iterator[None]:
    """Keep words of the command line that click repeats from controlling the terminal."""
    try:
        yield
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]
        raise


@contextmanager
def _signals_raise(ctx: click.Context) -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Terminated, and end at once where one meets an import.

    A terminal that closes sends SIGHUP. Ctrl-C raises KeyboardInterrupt, as it does without us.

    Modules in C turn an exception into errors of their own, or lose it.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _end_if_importing(frame, ctx, "interrupted", INTERRUPTED)
        signal.default_int_handler(signum, frame)

    def terminate(signum: int, frame: FrameType | None) -> None:
        _end_if_importing(frame, ctx, "terminated", Terminated.exit_code)
        # A second signal must not interrupt the cleaning up that follows.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # torch raises when a loader's worker dies, and the same signal often reached that as well.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Terminated

    handlers = {signal.SIGTERM: terminate}
    # A shell lets programs in the background ignore Ctrl-C, and nohup lets them ignore that the
    # terminal closes. So it stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = interrupt
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        handlers[signal.SIGHUP] = terminate
    # Put back at the end, because tests and programs call commands in their own process.
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_if_importing(
    frame: FrameType | None, ctx: click.Context, message: str, exit_code: int
) -> None:
    while frame is not None:
        # Every import runs through this file, whatever it imports.
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            if num_processes() == 1:
                # Some modules are imported late, when a run has work to keep.
                logger.error("%s%s", message, _how_to_go_on(ctx.invoked_subcommand))
            # All that a run keeps is safe against a kill at any time.
            os._exit(exit_code)
        frame = frame.f_back


def _print_citation(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    # While a shell completes a line, click reads the options too, and nothing may be printed.
    if not wanted or ctx.resilient_parsing:
        return
    from virnucpro.reports.citation import format_bibtex, format_citation, read_citation

    message, works = read_citation()
    echo(message)
    for text in (*map(format_citation, works), *map(format_bibtex, works)):
        echo(f"\n{text}")
    ctx.exit()


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    echo(f"virnucpro {__version__}, {_describe_torch()}")
    ctx.exit()


def _describe_torch() -> str:
    """Return torch's version and what it is built for."""
    about = read_torch_build()
    if not about:
        return "torch is not installed"
    built = f"CUDA {about['cuda']}" if about.get("cuda") else "CPU"
    if about.get("hip"):
        built = f"ROCm {about['hip']}"
    return f"torch {about['__version__']} for {built}"


def _install_completion(ctx: click.Context, param: click.Parameter, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    from virnucpro.cli.completion import install_completion

    try:
        written = install_completion(main, shell)
    # While options are read, nobody else explains it.
    except VirnucproError as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        echo(f"Written: {path}")
    echo("Start a new shell to use it.")
    ctx.exit()


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="docs/command-line.md explains all options, settings files and exit codes.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show more messages, and tracebacks of errors.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors only, and no progress.")
@click.option(
    "-l",
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also append messages to this file.",
)
@click.option(
    "-c",
    "--config",
    type=SETTINGS_PATH,
    metavar="FILE",
    help="Read settings of the commands from this YAML file; virnucpro utils generate-config "
    "writes one.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of virnucpro and torch, and whether torch is built for CUDA.",
)
@click.option(
    "--install-completion",
    type=click.Choice(SHELLS),
    is_eager=True,
    expose_value=False,
    callback=_install_completion,
    help="Let the Tab key complete commands and options in this shell. Then start a new shell.",
)
@click.option(
    "--citation",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_citation,
    help="Show how to cite virnucpro and exit.",
)
@click.pass_context
def main(
    ctx: click.Context, verbose: bool, quiet: bool, log_file: Path | None, config: Path | None
) -> None:
    """Find viral contigs and reads.

    virnucpro cuts sequences into chunks of 300 to 1,000 bp and reads each chunk in six frames.
    DNABERT-S and ESM-2 embed the parts without a stop codon, and a classifier scores them.

    \b
    Examples:
      virnucpro predict contigs.fasta -m mini
      virnucpro predict contigs.fasta -m 500
      virnucpro predict reads.fastq.gz -m 300 -o results
      virnucpro -c settings.yaml predict contigs.fasta
      virnucpro predict contigs.fasta -m 500 --gpus 0,1
    """
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    try:
        set_up_logging(level, log_file)
    except OSError as error:
        # Told here, because logging itself would fail at the first message, far from the option.
        raise UsageError(
            f"{log_file}: cannot be written ({error.strerror}); name another file (-l)"
        ) from error
    require_working_directory()
    if config is not None:
        use_settings(ctx, config)
