"""Installs click's completion for a shell, so that the Tab key knows commands and options."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from virnucpro.errors import OutputError, UsageError

# Through it, the shell asks the program; click makes the name from the program's.
_VARIABLE = "_VIRNUCPRO_COMPLETE"


def install_completion(program: click.Command, shell: str) -> list[Path]:
    """Write the script that asks `program`, let `shell` read it, and return what was written.

    Args:
        program: What is completed.
        shell: `bash`, `zsh` or `fish`.

    Raises:
        OutputError: A file cannot be written.
        UsageError: The user has no home directory, or the shell is too old.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these three"
    try:
        text = kind(program, {}, "virnucpro", _VARIABLE).source()
        home = Path.home()
    # click raises it as well, for a bash before 4.4.
    except RuntimeError as error:
        raise UsageError(f"completion for {shell}: {error}") from error
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    try:
        # fish reads this directory by itself.
        if shell == "fish":
            return [_write(config / "fish/completions/virnucpro.fish", text)]
        script = _write(data / f"virnucpro/completion.{shell}", text)
        settings = home / f".{shell}rc"
        # zsh has no completion of its own before compinit.
        start = "autoload -Uz compinit && compinit; " if shell == "zsh" else ""
        line = f'{start}source "{script}"  # completion of virnucpro\n'
        before = settings.read_text(encoding="utf-8") if settings.is_file() else ""
        # A second line would let each new shell run the script twice.
        if line in before:
            return [script]
        with settings.open("a", encoding="utf-8") as file:
            # The user's last line may lack its end, and ours must not continue it.
            file.write(line if before.endswith("\n") or not before else f"\n{line}")
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return [script, settings]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
