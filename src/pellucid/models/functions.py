"""Functions of torch that drop or multiply, whatever code calls them, and pellucid's in their place around a module."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pellucid.kernel import linear
from pellucid.nn.dropout.attention_dropout import scaled_dot_product_attention
from pellucid.nn.dropout.dropout import Dropout

ATTENTION = "training: mask, softmax and dropout in one pass"
PRODUCT = "the product that is measured to be faster"


@functools.lru_cache(maxsize=64)
def _layer(p: float) -> Dropout:
    return Dropout(p)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Compute torch.nn.functional.dropout as `pellucid.nn.Dropout` does."""
    return _layer(p)(input) if training and not inplace and 0 < p < 1 else F.dropout(input, p, training, inplace)


def _calling(function: Any, **ours: Callable[..., Any]) -> Any:
    """A function of torch's, which calls other functions by these names."""
    names = {**function.__globals__, **ours, "has_torch_function": lambda _: False}  # which has been asked already
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


@dataclass(frozen=True)
class Instead:
    """A function as pellucid computes it.

    Args:
        function: pellucid's.
        becomes: what it is then, in words.
        p: the argument that is the probability with which it drops; None for one that drops nothing.
        always: whether it is of use in eval mode too, and where it drops nothing.
    """

    function: Callable[..., Any]
    becomes: str
    p: str | None = None
    always: bool = False

    def drops(self, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
        """Whether a call drops anything."""
        if self.p is None:
            return False
        given = inspect.signature(self.function).bind(*args, **named)
        given.apply_defaults()
        p = given.arguments[self.p]
        return bool(given.arguments.get("training", True)) and isinstance(p, (int, float)) and 0 < p < 1

    def without(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, which drops nothing."""
        if self.p is None:
            return tuple(args), dict(named)
        given = inspect.signature(self.function).bind(*args, **named)
        given.arguments[self.p] = 0.0
        return given.args, given.kwargs


_PROJECTIONS = {
    name: _calling(getattr(F, name), linear=linear.linear) for name in ("_in_projection", "_in_projection_packed")
}
_MULTI_HEAD = _calling(
    F.multi_head_attention_forward,
    scaled_dot_product_attention=scaled_dot_product_attention,
    dropout=dropout,
    linear=linear.linear,
    **_PROJECTIONS,
)
# By torch's functions.
INSTEAD: dict[Any, Instead] = {
    F.dropout: Instead(dropout, "training: one pass, in which all threads draw", "p"),
    F.scaled_dot_product_attention: Instead(scaled_dot_product_attention, ATTENTION, "dropout_p"),
    F.multi_head_attention_forward: Instead(_MULTI_HEAD, f"{ATTENTION}; {PRODUCT}", "dropout_p"),
    torch.addmm: Instead(linear.addmm, PRODUCT, always=True),
}
# Those that a forward names as nothing else is named.
NAMED = {function.__name__: function for function in INSTEAD if function is not F.dropout}


class Exchanged(TorchFunctionMode):
    """Within it pellucid's functions run in the place of torch's, unless another such mode looks on."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        """Call a function, or the one in its place."""
        instead = None if torch._C._len_torch_function_stack() else INSTEAD.get(function)
        return (function if instead is None else instead.function)(*args, **(named or {}))


class WithoutDropout(TorchFunctionMode):
    """Within it these functions drop nothing."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        """Call a function, of these with a probability of 0."""
        if function in INSTEAD:
            args, named = INSTEAD[function].without(args, named or {})
        return function(*args, **(named or {}))


class Noting(TorchFunctionMode):
    """Within it calls that pellucid would compute are noted, by the module whose forward runs.

    ``found[module]`` are their functions. Whoever runs the modules puts them on ``running`` and takes them off again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: list[torch.nn.Module] = []
        self.found: dict[torch.nn.Module, set[Any]] = {}

    def __torch_function__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        """Call a function."""
        instead = INSTEAD.get(function) if self.running else None
        if instead is not None and (instead.always or instead.drops(args, named or {})):
            self.found.setdefault(self.running[-1], set()).add(function)
        return function(*args, **(named or {}))


def named_by(forward: Any) -> set[Any]:
    """The functions that the code of a forward names."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return set() if code is None else {NAMED[name] for name in code.co_names if name in NAMED}
