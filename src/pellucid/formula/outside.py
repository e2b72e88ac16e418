"""What a formula reads from outside, beside its arguments: globals and variables of the functions around it.

A kernel holds such a value as it was when the formula was traced. So the values are compared at every call, and another
one is another formula, whose kernels are made anew.
"""

from __future__ import annotations

import builtins
import dis
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

FIXED = ("torch", "pellucid", "math", "numpy")  # modules of which nobody changes anything
MISSING = object()
# Of these types another value of the same numbers is the same; of any other only the object itself is.
METHODS = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
COMPARED = (bool, int, float, complex, str, bytes, tuple, type(None), torch.dtype, *METHODS)


class Outside:
    """One value: a variable, and the attributes or entries by which the formula goes on from it."""

    def __init__(self, name: str, root: Callable[[], Any], steps: tuple[tuple[str, Any], ...]) -> None:
        self.name = name + "".join(f".{key}" if kind == "attribute" else f"[{key!r}]" for kind, key in steps)
        self._root, self._steps = root, steps

    def value(self) -> Any:
        """What it is now."""
        found = self._root()
        for step in self._steps:
            found = _gone(found, step)
        return found


def _gone(value: Any, step: tuple[str, Any]) -> Any:
    kind, key = step
    try:
        return getattr(value, key) if kind == "attribute" else value[key]
    except (AttributeError, LookupError, TypeError):
        return MISSING


def same(a: Any, b: Any) -> bool:
    """Whether a value is what it was; of a tensor whether it is the same tensor."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (type(a) is type(b) and isinstance(a, COMPARED) and bool(a == b or (a != a and b != b)))


def read_by(function: Any) -> list[Outside]:
    """What a function reads, and the functions of Python that it calls by their names.

    Not what is made anew whenever it is read, as by a property: nobody could tell whether it has changed.
    """
    if _is_fixed(getattr(function, "__module__", None)):
        return []
    found: dict[tuple[str, int], Outside] = {}
    todo, known = [function], set()
    while todo:
        current = todo.pop()
        if current.__code__ in known:
            continue
        known.add(current.__code__)
        for outside in _reads(current.__code__, current):
            value = outside.value()
            todo += _functions_of(value)
            if not isinstance(value, types.ModuleType):
                found[outside.name, id(current.__globals__)] = outside
    return [outside for outside in found.values() if same(outside.value(), outside.value())]


def _is_fixed(module: str | None) -> bool:
    return (module or "").partition(".")[0] in FIXED


def _functions_of(value: Any) -> Iterator[Any]:
    """The functions of Python behind a name: itself, or forward and backward of a torch.autograd.Function."""
    if isinstance(value, type) and issubclass(value, torch.autograd.Function):
        parts = [vars(kind).get(name) for kind in value.__mro__ for name in ("forward", "backward", "setup_context")]
        value = [part.__func__ for part in parts if isinstance(part, staticmethod)]
    for function in value if isinstance(value, list) else [value]:
        if isinstance(function, types.FunctionType) and not _is_fixed(function.__module__):
            yield function


def _reads(code: types.CodeType, function: Any) -> Iterator[Outside]:
    """Of the code of a function, or of what is defined in it, every variable that is not its own."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL")]
    for place, instruction in enumerate(instructions):
        name = instruction.argval
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            scope = function.__globals__
            if name not in scope and hasattr(builtins, name):
                continue
            root: Callable[[], Any] = functools.partial(scope.get, name, MISSING)
        elif instruction.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
            root = functools.partial(_contents, cells[name])
        else:
            continue
        first = root()
        if isinstance(first, types.ModuleType) and _is_fixed(first.__name__):
            continue
        yield from _gone_on(name, root, instructions[place + 1 :])
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _reads(constant, function)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return MISSING


def _gone_on(name: str, root: Callable[[], Any], following: list[dis.Instruction]) -> Iterator[Outside]:
    """A variable with the attributes and constant entries that are read of it right away, and what calls itself."""
    steps: list[tuple[str, Any]] = []
    while following:
        instruction, *following = following
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            steps.append(("attribute", instruction.argval))
        elif instruction.opname == "LOAD_CONST" and following and _is_subscript(following[0]):
            steps.append(("entry", instruction.argval))
            following = following[1:]
        else:
            break
    value = root()
    for place, step in enumerate(steps):  # what a tensor, a number or a class has is a part of it
        if isinstance(value, (*COMPARED, torch.Tensor, type)):
            steps = steps[:place]
            break
        value = _gone(value, step)
    yield Outside(name, root, tuple(steps))


def _is_subscript(instruction: dis.Instruction) -> bool:
    return instruction.opname == "BINARY_SUBSCR" or (instruction.opname == "BINARY_OP" and instruction.argrepr == "[]")
