"""What the commands share: the terminal, a refusal, and what FILE.py:NAME and a shape on a command line mean."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from pellucid.nn.recurrence.cell import Cell

DRAWN = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)

SHAPE = re.compile(r"(^|=)\s*\d+([x×]\d+)+\s*$")


class Refusal(click.ClickException):
    """What cannot be used: one line, exit code 2 as for a wrong option."""

    exit_code = 2


def told(error: BaseException, inputs: Sequence[str] = ()) -> str:
    """What an exception says, with what was added to it on its way; or the cure, where ``--input`` must be another."""
    if cure := looked_up(error, inputs):
        return cure
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return "\n".join([str(said), *getattr(error, "__notes__", ())])


def looked_up(error: BaseException, inputs: Sequence[str]) -> str | None:
    """What to write instead where ``--input`` drew real numbers, and the model looks rows of a table up by them."""
    wrong = next((text for text in inputs if ":" not in text and SHAPE.search(text)), None)
    if wrong is None or "Expected tensor for argument #1 'indices'" not in str(error):
        return None
    return (
        f"--input {wrong} draws real numbers, but the model looks rows of a table up (torch.nn.Embedding), by whole "
        f"numbers below their number; with 1000 rows write --input {wrong}:1000"
    )


def console(plain_width: int = 100) -> Console:
    """The terminal, or as wide a page where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=plain_width)


def drawn(text: str, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a tensor: ``1x3x224x224``, of another type ``4x60:bool``, of integers below a number ``4x60:5000``.

    An integer type may stand before that number, ``4x60:int32:5000``; without the number integers are below 2.
    """
    shape, *further = (part.strip() for part in text.lower().replace("×", "x").split(":"))
    below = further.pop() if further and further[-1].isdecimal() else ""
    kind = further.pop() if further else "int64" if below else "float32"
    dtype = getattr(torch, kind, None)
    sizes = shape.split("x")
    if further or dtype not in DRAWN or not all(size.isdecimal() for size in sizes):
        raise click.UsageError(
            f"--input {text!r}: write a shape, 1x3x224x224, and where it is not of float32 the type, 4x60:bool, or, of "
            "integers, the number that all are below, 4x60:5000 or 4x60:int32:5000"
        )
    if below and int(below) < 1:
        raise click.UsageError(f"--input {text!r}: integers are drawn below a number from 1, not {below!r}")
    size = [int(part) for part in sizes]
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(size, dtype=dtype, generator=generator)
    return torch.randint(int(below or 2), size, generator=generator).to(dtype)


def parse_inputs(texts: Sequence[str], read: Callable[[str, int], Any]) -> tuple[list[Any], dict[str, Any]]:
    """Read what ``--input`` says, ``1x3x8x8`` or ``name=1x3x8x8``: those without a name, in order, and those with one.

    ``read`` makes a tensor of a text and its number in the order.
    """
    parts = [text.partition("=") for text in texts]
    named = {name.strip(): read(text, index) for index, (name, equals, text) in enumerate(parts) if equals}
    if not named:
        return [read(text, index) for index, text in enumerate(texts)], {}
    if len(named) < len(texts):
        raise click.UsageError("--input: give a name of its own to all of the inputs, name=1x3x8x8, or to none")
    return [], named


def load(name: str) -> Any:
    """Return what ``path/file.py:cell`` or ``path/file.py:Model`` names; any other name as it is.

    Raises:
        ValueError: there is no such file, nothing of that name in it, or no name.
    """
    path, attribute = (name, "") if name.endswith(".py") else name.rpartition(":")[::2]
    if not path.endswith(".py"):
        return name
    file = Path(path)
    if not file.is_file():
        if not attribute:
            raise ValueError(f"{path}: which cell of it? Write {path}:cell; and there is no such file")
        raise ValueError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    if not attribute or not hasattr(module, attribute):
        cells = [key for key, value in vars(module).items() if isinstance(value, Cell)]
        kinds = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == file.stem]
        models = [kind.__name__ for kind in kinds if issubclass(kind, torch.nn.Module)]
        known = f"its cells are {', '.join(cells) or 'none'}" + (f", its models {', '.join(models)}" if models else "")
        if attribute:
            raise ValueError(f"{path} has no {attribute!r}; {known}")
        what = "cell or model" if models else "cell"
        raise ValueError(f"{path}: which {what} of it? Write {path}:{next(iter(cells + models), 'cell')}; {known}")
    return getattr(module, attribute)
