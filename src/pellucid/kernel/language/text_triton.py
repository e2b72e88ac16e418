"""What all Triton text is made of: headers, operations, names and numbers."""

from __future__ import annotations

import keyword
import math
import re

HEADER = '''"""{title}"""

import triton
import triton.language as tl

from pellucid.kernel.language import triton_functions as functions

REAL = tl.constexpr(tl.{real})
'''
_OWN = "expm1 log1p tanh sigmoid softplus gelu gelu_slope relu sign trunc sinh cosh asinh acosh atanh"
# How each operation on columns is written; what is missing here goes stepwise.
ARITHMETIC: dict[str, str] = {
    **{name: f"tl.{name}({{0}})" for name in "exp log exp2 log2 sqrt rsqrt sin cos abs floor ceil erf".split()},
    **{name: f"functions.{name}({{0}})" for name in _OWN.split()},
    **{name: f"functions.{name}({{0}}, {{1}})" for name in "hypot maximum minimum copysign".split()},
    **{"log10": "tl.log({0}) * 0.4342944819032518", "reciprocal": "1.0 / {0}", "tan": "tl.sin({0}) / tl.cos({0})"},
    **{"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}"},
    **{"square": "{0} * {0}", "round": "functions.nearest({0})", "constant": "{0}"},
    **{"eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}"},
    **{"le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}"},
    **{"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "{0} == 0"},
    **{"where": "tl.where({0}, {1}, {2})", "from_mask": "{0}.to(REAL)"},
}
# The neutral number of each reduction, and how it is written for a tile and an axis of it.
REDUCTIONS = {
    "sum": (0.0, "tl.sum({}, {}, keep_dims=True)"),
    "product": (1.0, "tl.reduce({}, {}, functions.multiplied, keep_dims=True)"),
    "largest": (-math.inf, "tl.reduce({}, {}, functions.maximum, keep_dims=True)"),  # tl.max passes over NaN
    "smallest": (math.inf, "tl.reduce({}, {}, functions.minimum, keep_dims=True)"),
}
# How two results of it are taken together.
JOINED = {
    "sum": "{} + {}",
    "product": "{} * {}",
    "largest": "functions.maximum({}, {})",
    "smallest": "functions.minimum({}, {})",
}
# Parameters of every kernel, behind its pointers.
GIVEN = ("scratch", "exchange", "meetings", "lengths", "seed", "time", "batch", "begin", "first_block", "first_split")
# What is known when they are compiled.
OPTIONS = ("BACKWARDS", "LENGTHS", "OUTPUT", "WIDE", "ROWS", "EXCHANGED", "INTERPRETED", "TF32")
_OTHERS = "tl triton functions range float forward backward REAL origin block split rows inside ends key meeting"
_OF_A_STEP = "step turn t at ahead counted"
RESERVED = {*keyword.kwlist, *keyword.softkwlist, *GIVEN, *OPTIONS, *_OTHERS.split(), *_OF_A_STEP.split()}
LEAST = 16  # columns of a tile that a product takes


def identifier(name: str) -> str:
    """A name as one of Python in ASCII."""
    name = re.sub(r"[^0-9A-Za-z_]", "_", name)
    return f"{name}_" if name in RESERVED or not name or name[0].isdigit() else name


def number_text(number: float | bool) -> str:
    """A number."""
    number = float(number)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def power(number: int) -> int:
    """The least power of two that is not below a number: tiles have no other sizes."""
    return 1 << (number - 1).bit_length()


def padded(length: int) -> int:
    """Columns of the tile of so many columns, which a product may take."""
    return 1 if length == 1 else max(LEAST, power(length))
