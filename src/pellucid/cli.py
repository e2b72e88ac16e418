"""The command ``pellucid``: its commands are small functions over the library."""

from __future__ import annotations

import json
from typing import Any

import click

import pellucid
from pellucid.benchmark import bench
from pellucid.commandline import Refusal, console
from pellucid.doctor import findings, table
from pellucid.explanation.command import command as explain
from pellucid.explanation.command import gallery
from pellucid.models.checks.command import command as check
from pellucid.models.command import command as swap
from pellucid.recipes.command import predict, train
from pellucid.recipes.errors import RecipeError, Stopped


class Commands(click.Group):
    """A group whose commands end with a line, not with a traceback, when something cannot be used."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit code 2 for what cannot be used, 130 for what the user stopped."""
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            raise Refusal(str(error)) from error
        except UnicodeEncodeError as error:
            raise Refusal(
                f"this terminal is written to in {error.encoding}, which lacks {error.object[error.start]!a}. "
                "With PYTHONUTF8=1 in the environment Python writes UTF-8."
            ) from error
        except Stopped as stopped:
            click.echo(f"stopped: {stopped}", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pellucid.__version__, prog_name="pellucid")
def main() -> None:
    """Neural-network components written once, as formulas: explained, trained, measured.

    \b
    Start here:
      pellucid explain gru --sentence "你个扑该!"
      pellucid explain lstm --open
      pellucid train sentiment
      pellucid predict runs/sentiment/best.ckpt "房间很干净，下次还来"
      pellucid train digits
      pellucid doctor
    """


for _command in (explain, gallery, swap, check, bench, train, predict):
    main.add_command(_command)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Show what pellucid finds on this machine, and how to get what is missing.

    \b
    Examples:
      pellucid doctor
      pellucid doctor --json
    """
    found = findings()
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console().print(table(found))
