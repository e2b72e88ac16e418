"""A layer's own arguments on a command line, read by what its constructor takes: ``--kernel-size 3 --bias=false``."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

from pellucid.commandline import Refusal

MAY_BE_ZERO = ("padding", "output_padding", "proj_size")  # whole numbers of a ready layer; all others are from 1
ANY_NUMBER = ("seed",)
SEVERAL = {"tuple", "list", "Sequence", "Size"}
KNOWN = {"int", "float", "bool", "str", "None", "NoneType", "Union", "Optional", "torch", "typing"} | SEVERAL
NONE_KNOWN: Mapping[str, inspect.Parameter] = MappingProxyType({})


def parse_arguments(
    rest: Sequence[str], parameters: Mapping[str, inspect.Parameter] = NONE_KNOWN, ready: bool = False
) -> dict[str, Any]:
    """Read ``--kernel-size 3 --bias=false --bidirectional`` as arguments of a layer that has these parameters.

    ``ready`` says that it is one of pellucid's own, whose sizes are from 1.

    Raises:
        Refusal: an option without a value whose argument is not true or false, or with a value of another kind.
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
        if name in parameters:
            least = None if not ready or name in ANY_NUMBER else int(name not in MAY_BE_ZERO)
            expected = _expected(parameters[name], found[name], least)
            if expected:
                raise Refusal(f"--{key}: expected {expected}, but received {text!r}")
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


def _expected(parameter: inspect.Parameter, value: Any, least: int | None) -> str | None:
    """Say what an argument is to be, where a value is of another kind; None where it fits or nothing is known of it."""
    kinds = _kinds(parameter)
    if not kinds & {"int", "float", "bool"} or kinds - KNOWN or value is parameter.default:
        return None

    def fits(one: Any) -> bool:
        if isinstance(one, (bool, str)) or one is None:
            return bool(kinds & {"None", "NoneType"}) if one is None else type(one).__name__ in kinds
        if isinstance(one, float):
            return "float" in kinds and math.isfinite(one)
        counts = "int" in kinds and (least is None or one >= least)
        return isinstance(one, int) and ("float" in kinds or counts or ("bool" in kinds and one in (0, 1)))

    several = kinds & SEVERAL
    if all(map(fits, value)) if several and isinstance(value, (tuple, list)) and value else fits(value):
        return None
    if not kinds & {"int", "float"}:
        return "true or false"
    if "float" in kinds:
        return "numbers, 0.5 or 0.5,0.1" if several else "a number, 0.5 say"
    whole = "whole numbers" if several else "a whole number"
    return ("3 or 3,5, " if several else "") + whole + ("" if least is None else f" from {least}")
