"""`virnucpro doctor`: whether this machine is ready, and what to do if it is not."""

from __future__ import annotations

import dataclasses
import json

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo, echo_wrapped
from virnucpro.config import DoctorConfig


@config_command("doctor", short_help="Check this installation and this machine.")
def doctor_command(ctx: click.Context, config: DoctorConfig) -> None:
    """Check this installation and this machine, and say what to do about each problem.

    The last check runs the example with the small model in two processes, and compares its calls
    with known ones. Please add the output to a bug report. Exit code 1: something failed.

    \b
    Examples:
      virnucpro doctor
      virnucpro doctor --json > doctor.json
    """
    from virnucpro.workflows.doctor import examine

    checks = []
    # Each is shown as soon as it is known, because the runs at the end take most of the time.
    for check in examine(quick=config.quick):
        checks.append(check)
        if not config.json:
            echo_wrapped(f"{check.state:10}", f"{check.name}: {check.found}")
            if check.remedy:
                echo_wrapped("      do  ", check.remedy)
    if config.json:
        echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    ctx.exit(1 if any(check.state == "failure" for check in checks) else 0)
