"""A layer's own arguments on a command line, read by what its constructor takes: ``--kernel-size 3 --bias=false``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

from pellucid.commandline import Refusal

NONE_KNOWN: Mapping[str, inspect.Parameter] = MappingProxyType({})


def parse_arguments(rest: Sequence[str], parameters: Mapping[str, inspect.Parameter] = NONE_KNOWN) -> dict[str, Any]:
    """Read ``--kernel-size 3 --bias=false --bidirectional`` as arguments of a layer that has these parameters.

    Raises:
        Refusal: an option without a value whose argument is not true or false.
    """
    found: dict[str, Any] = {}
    waiting = list(rest)
    while waiting:
        option = waiting.pop(0)
        if not option.startswith("--"):
            raise click.UsageError(f"{option!r} belongs to no option; arguments of the layer are --name value")
        key, equals, text = option[2:].partition("=")
        name = key.replace("-", "_")
        if not equals and waiting and not waiting[0].startswith("--"):
            text = waiting.pop(0)
        if not text and (equals or not _may_be_bare(parameters.get(name))):
            raise Refusal(f"--{key} needs a value")
        found[name] = parse_value(text or "true")
    return found


def parse_value(text: str) -> Any:
    """Read a number, a tuple of numbers, true, false or none; anything else is a word."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _may_be_bare(parameter: inspect.Parameter | None) -> bool:
    """Whether an argument is true or false, or nothing is known of it."""
    if parameter is None or (parameter.annotation is parameter.default is inspect.Parameter.empty):
        return True
    return "bool" in _kinds(parameter)


def _kinds(parameter: inspect.Parameter) -> set[str]:
    """The words of an annotation, ``{"int", "tuple"}``; of an argument without one, the type of its default."""
    if parameter.annotation is inspect.Parameter.empty:
        return set() if parameter.default is inspect.Parameter.empty else {type(parameter.default).__name__}
    return set(re.findall(r"[A-Za-z_]\w*", inspect.formatannotation(parameter.annotation)))
