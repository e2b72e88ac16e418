"""Exceptions, warnings, and the words for a layer, for a shape, and for tensors that do not go together."""

from __future__ import annotations

import contextlib
import sys
import traceback
import types
from collections.abc import Iterator, Sequence

import torch
from torch.fx import Proxy


class FormulaError(ValueError):
    """A formula cannot be read, traced or given shapes; the message points into the author's own line."""


class Unsupported(Exception):
    """An operation, or its use, that has no lowering into a kernel, or on a page; the text names it."""


class VerificationError(RuntimeError):
    """A model does not compute the same with pellucid's layers; the text says by how much, and it has torch's again."""


class CheckError(RuntimeError):
    """A check of a model found what is wrong; the text has every such finding and its cure."""


class PellucidWarning(UserWarning):
    """Something still works, but not in the way that was asked for (a fallback, say); the text names the cure."""


def shape_text(shape: Sequence[int], axes: Sequence[str] = ()) -> str:
    """Write a shape with the meaning of its axes: ``(batch 2, time 50, features 7)``.

    Without as many names as axes the plain sizes are written: ``(2, 50, 7)``.
    """
    if len(axes) != len(shape):
        return "(" + ", ".join(map(str, shape)) + ")"
    return "(" + ", ".join(f"{name} {size}" for name, size in zip(axes, shape, strict=True)) + ")"


def kind_text(value: object) -> str:
    """Name what a value is: an int, a list, a function."""
    kind = "function" if isinstance(value, (types.BuiltinFunctionType, types.MethodType)) else type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def unread(module: torch.nn.Module, reader: str) -> str:
    """What a layer says to those who read the lines of its forward: that it is a formula, and what to do."""
    return (
        f"{label(module)}: {reader} cannot read it, for it is written as a formula. Use torch.export or "
        "torch.jit.trace; where torch.nn has a layer of this name, pellucid.restore(model) puts that in its place."
    )


def refuse_proxies(module: torch.nn.Module, *given: object) -> None:
    """Raise where torch.fx traces a layer: its values have no shape, by which a layer decides what runs."""
    for value in given:
        if isinstance(value, Proxy):
            raise TypeError(unread(module, "torch.fx.symbolic_trace"))


def refuse_others(module: torch.nn.Module, x: object, what: str = "input") -> None:
    """Raise unless an input is a tensor."""
    if not isinstance(x, torch.Tensor):
        refuse_proxies(module, x)
        raise TypeError(f"{label(module)}: the {what} is {kind_text(x)}, but the layer reads a torch.Tensor.")


def mismatch(x: torch.Tensor, weight: torch.Tensor, what: str = "weights") -> str | None:
    """Say that input and weights, or ``what`` else, differ in device or dtype; None if they do not."""
    verb, moved, like = ("are", "x", weight) if what == "weights" else ("is", what, x)
    if x.device != weight.device:
        return f"on {x.device}, but the {what} {verb} on {weight.device}. Move one: {moved}.to({str(like.device)!r})."
    if x.dtype != weight.dtype:
        return f"of {x.dtype}, but the {what} {verb} of {weight.dtype}. Convert one: {moved}.to({like.dtype})."
    return None


def label(module: torch.nn.Module) -> str:
    """Name a layer as its user knows it: ``nn.GRU "encoder.rnn"``.

    The path is found in the models that are being called right now: the outermost one that holds the layer names
    it. A layer that is called by itself is named by its class alone. Only errors pay for this search.
    """
    kind = module._get_name()  # a layer of a cell has the cell's name
    if type(module).__module__.startswith("pellucid.nn") and kind == type(module).__name__:
        kind = f"nn.{kind}"
    path = ""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and owner is not module:
            path = next((name for name, child in owner.named_modules() if child is module), path)
        frame = frame.f_back  # type: ignore[assignment]
    return labelled(kind, path)


@contextlib.contextmanager
def naming_layer(model: torch.nn.Module, function: str) -> Iterator[None]:
    """Add to an exception that a run of a model raises which of its layers it was, unless the exception says so."""
    try:
        yield
    except Exception as error:
        if place := _raised_in(error, model):
            error.add_note(f"pellucid.{function}: this was raised in {place}")
        raise


def in_one_line(error: Exception, model: torch.nn.Module) -> str:
    """The first line of what a run of a model raised, with the layer that it was."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return ": ".join(filter(None, (_raised_in(error, model), said)))


def _raised_in(error: Exception, model: torch.nn.Module) -> str:
    """The innermost of a model's layers that an exception came through; "" where there is none, or its text says it."""
    paths = {module: path for path, module in model.named_modules()}
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [owner for owner in owners if isinstance(owner, torch.nn.Module) and owner in paths]
    if not layers:
        return ""
    kind, path = layers[-1]._get_name(), paths[layers[-1]]
    known = f'"{path}"' in str(error) if path else str(error).startswith(f"{kind}:")
    return "" if known else labelled(kind, path)


def labelled(kind: str, path: str) -> str:
    """Name a layer by its class and its path in the model, "" for the model itself: ``LSTM "encoder.rnn"``."""
    return f'{kind} "{path}"' if path else kind


def below(path: str, name: str) -> str:
    """The path of what the module at a path holds by a name."""
    return f"{path}.{name}" if path else name
