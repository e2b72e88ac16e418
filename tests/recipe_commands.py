"""Running the commands as a user does, with a file of the user's own."""

from __future__ import annotations

from click.testing import CliRunner

from pellucid.cli import main

CELL = """
import torch
import pellucid

@pellucid.cell
def mine(x, h, *, U, W, b=pellucid.zeros):
    return torch.tanh(x @ U + h @ W + b)
"""


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """Run what must end with exit code 2 and no traceback, and return what it says."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output
