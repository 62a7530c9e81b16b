"""A stranger's first ten minutes: what the first screen of README says, done after an installation.

containers/install.sh installs the wheel into an environment of its own. Where this machine allows
it, the commands then run as in our containers: without privileges, with a root that is read-only
and 64 MB of /dev/shm.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, read_table, run

pytestmark = pytest.mark.slow

# Everything is read-only but the working directory. `exec "$@"` is the command.
CONTAINER = """
mount --bind "$0" "$0" && mount -o remount,ro,bind / && mount -t tmpfs -o size=64m tmpfs /dev/shm &&
cd "$0" && exec "$@"
"""
NO_PRIVILEGES = ("--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")


@pytest.fixture(scope="module")
def directory(wheel: Path) -> Iterator[Path]:
    """A directory that any user may enter, with the example and an installed wheel."""
    directory = Path(tempfile.mkdtemp(prefix="virnucpro_", dir="/var/tmp"))
    directory.chmod(0o755)
    programs, home = directory / "programs", directory / "home"
    # Without a network: what the wheel depends on is found where it is installed already.
    packages = programs / f"lib/python3.{sys.version_info.minor}/site-packages"
    packages.mkdir(parents=True)
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    home.mkdir()
    shutil.copytree(REPOSITORY / "examples", home / "examples")
    done = subprocess.run(
        [str(REPOSITORY / "containers/install.sh"), str(wheel), str(programs)],
        env={
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        },
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("virnucpro ")
    yield directory
    shutil.rmtree(directory)


def in_a_container(home: Path, python: Path) -> list[str]:
    """Return what goes before a command to run it as in a container, where this machine can."""
    # Another user cannot use a Python that lies in root's home; root without capabilities can.
    for user in (1000, 0) if os.geteuid() == 0 else ():
        command = ["unshare", "--mount", "sh", "-c", CONTAINER, str(home)]
        command += ["setpriv", f"--reuid={user}", f"--regid={user}", *NO_PRIVILEGES]
        # The shell is there because the first program still starts with setpriv's own rights.
        done = run(*command, "sh", "-c", f"exec {python} -c ''")
        if done.returncode == 0:
            for path in (home, *home.rglob("*")):
                os.chown(path, user, user)
            assert run(*command, "touch", "/var/tmp/no").returncode
            return command
    return []


def test_the_first_screen_of_readme_works(directory: Path) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("\n## How it works")[0]
    commands = [line.strip() for line in re.findall(r"^    (?:pip|virnucpro) .*$", text, re.M)]
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert commands.pop(0) == "pip install ."
    words = [command.split()[1] for command in commands]
    assert words == ["doctor", "predict", "predict", "report"]
    home = directory / "home"
    before = in_a_container(home, directory / "programs/bin/python")
    environment = {
        "PATH": f"{directory}/programs/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "CUDA_VISIBLE_DEVICES": "",
    }
    printed = ""
    for command in [
        ["bash", "-c", "\n".join(["set -ex", "virnucpro --citation", *commands])],
        ["python", "-c", program],
    ]:
        done = subprocess.run(
            [*before, *command],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        printed += done.stdout
        assert done.returncode == 0, printed
    assert "10.1093/bib/bbaf224" in printed
    # What the doctor finds out, who starts two processes for it.
    assert "launch of two processes: the example is called as it should be" in printed
    assert "computing on cpu" in printed
    # The small model is the installed one.
    assert f"{directory}/programs/" in (home / "example_predictions/run.json").read_text()
    # What the first screen shows of the table.
    shown = re.findall(r"^    ([A-Z]+_?\S+) +(\d+) +(virus|others) +(0\.\d\d)$", text, re.M)
    assert len(shown) == 3
    rows = {row["record_id"]: row for row in read_table(home / "example_predictions/records.tsv")}
    for record_id, length, call, probability in shown:
        row = rows[record_id]
        assert (row["length"], row["call"]) == (length, call)
        assert abs(float(row["probability"]) - float(probability)) < 0.006
    assert (home / "example.html").read_text().startswith("<!doctype html>")
