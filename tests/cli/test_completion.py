from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from virnucpro.cli.main import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_script_is_installed_where_the_shell_reads_it(home, shell):
    for _ in range(2):
        assert CliRunner().invoke(main, ["--install-completion", shell]).exit_code == 0
    if shell == "fish":
        assert (
            "_VIRNUCPRO_COMPLETE" in (home / ".config/fish/completions/virnucpro.fish").read_text()
        )
    else:
        (line,) = (home / ".zshrc").read_text().splitlines()
        script = home / ".local/share/virnucpro/completion.zsh"
        assert f'source "{script}"' in line
        assert "#compdef virnucpro" in script.read_text()


def test_another_shell_is_refused(home):
    assert CliRunner().invoke(main, ["--install-completion", "csh"]).exit_code == 2
    assert not list(home.iterdir())


def test_a_home_that_cannot_be_written_is_explained(home):
    (home / ".local").write_text("a file")
    result = CliRunner().invoke(main, ["--install-completion", "zsh"])
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_names(home):
    (home / ".bashrc").write_text("true")
    program = home / "bin/virnucpro"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nfrom virnucpro.cli.main import main\nmain(prog_name='virnucpro')\n"
    )
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    def bash(*arguments: str) -> str:
        done = subprocess.run(
            ["bash", "--norc", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    bash("-c", "virnucpro --install-completion bash")

    def complete(line: str) -> set[str]:
        words = line.split(" ")
        ask = (
            f". ~/.bashrc; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            '_virnucpro_completion virnucpro; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        return set(bash("-c", ask).split())

    assert complete("virnucpro mo") == {"models", "monitor"}
    assert "--dry-run" in complete("virnucpro predict --dr")
    assert complete("virnucpro models download dna") == {"dnabert-s"}
