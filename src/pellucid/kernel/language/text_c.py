"""What all C text is made of: headers, names, numbers and lines."""

from __future__ import annotations

import functools
import importlib.resources
import math
import re
from collections.abc import Iterable, Iterator

import torch

from pellucid.errors import Unsupported

HEADERS = ("vector.h", "math.h", "philox.h", "columns.h", "call.h", "product.h", "nest.h")
MOST_COLUMNS = 120


def preamble(real: str) -> str:
    """What every kernel begins with, for arithmetic in "float32" or "float64"."""
    defines = f"#define DOUBLE {int(real == 'float64')}\n#include <math.h>\n#include <stdint.h>\n#include <string.h>\n"
    return f"{defines}\n{headers()}"


@functools.cache
def headers() -> str:
    """The headers of every kernel, one text."""
    return "\n".join(header(name) for name in HEADERS)


def header(name: str) -> str:
    """The text of one header."""
    return (importlib.resources.files("pellucid.kernel") / "c" / name).read_text(encoding="utf-8")


def indented(lines: Iterable[str], depth: int = 1) -> list[str]:
    """Lines further in."""
    return ["  " * depth + line for line in lines]


def broken(text: str) -> str:
    """A text in lines of at most 120 characters, as far as they can be broken behind a comma or an operator."""
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line))


def _pieces(line: str) -> Iterator[str]:
    indent = len(line) - len(line.lstrip()) + 4
    while len(line) > MOST_COLUMNS and "//" not in line:
        ends = (line.rfind(mark, indent, MOST_COLUMNS) + len(mark) for mark in (", ", " = ", " + ", " ? "))
        cut = next((end for end in ends if end > indent), 0)
        if not cut:
            break
        yield line[:cut].rstrip()
        line = " " * indent + line[cut:]
    yield line


def number_text(number: float | bool, real: str) -> str:
    """A vector of one number.

    Raises:
        Unsupported: it would count as 0, see c/call.h.
    """
    number = float(number)
    if 0 < abs(number) < torch.finfo(getattr(torch, real)).smallest_normal:
        raise Unsupported(f"the number {number!r}, which C takes for 0 in {real},")
    if math.isnan(number):
        return "splat(NAN)"
    return f"splat({number!r})" if math.isfinite(number) else f"splat({'-' if number < 0 else ''}INFINITY)"


_WORDS = (
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "asm typeof restrict return short signed sizeof static struct switch typedef union unsigned void volatile while "
    "linux unix row rows first step t r j n at call scratch output ahead left steps chunk block team parts uncounted "
    "counted sizes strides part units end unit columns from rest context worker past"
)


@functools.cache
def _reserved() -> frozenset[str]:
    """Names that mean something else in the headers, and words of C and of every loop."""
    code = re.sub(r"//[^\n]*", "", headers())
    called = re.findall(r"([A-Za-z_]\w*)\s*\(", code)
    defined = re.findall(r"#define\s+(\w+)", code)
    types = [word for line in re.findall(r"typedef[^\n]*", code) for word in re.findall(r"[A-Za-z_]\w*", line)]
    return frozenset((*called, *defined, *types, *_WORDS.split()))


def identifier(name: str) -> str:
    """A name as a C identifier; a macro of a header of C is in capitals."""
    macro = name.isupper() and len(name) > 1
    return f"{name}_" if macro or name in _reserved() or not name.isascii() else name
