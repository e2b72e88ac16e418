"""The layers of a whole model exchanged: for pellucid's, and back for torch.nn's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pellucid.keeping import copied
from pellucid.models.formats import Formats, Wish, check_wish, unformat
from pellucid.models.forward import at
from pellucid.models.fusions import Observed, Plans, candidates, everywhere, follow, observed, unfuse
from pellucid.models.report import Fused, Left, Replaced, Report
from pellucid.models.selection import Only, Selection, places
from pellucid.models.structures import arguments
from pellucid.models.verification import verified
from pellucid.nn.swapped.exchange import base_of, exchange, kind_of, name_of, obstacle, ours_of, runs_as


def swap(
    model: torch.nn.Module,
    only: Only | None = None,
    verify: Any = None,
    *,
    fuse: bool = False,
    memory_format: Wish = None,
) -> Report:
    """Let every layer of torch.nn that pellucid has a layer of its own for become that one, in place.

    ::

        report = pellucid.swap(model, verify=example)
        print(report)
        pellucid.restore(model)

    A layer changes its class and stays the same object: parameters, buffers, hooks, parametrizations, device, dtype,
    mode, the names of state_dict and whatever has been set on it are untouched. So optimizers go on, shared and tied
    layers stay shared and tied, and a model that is itself such a layer becomes pellucid's too.

    A layer of a subclass that only builds itself otherwise than torch.nn's, as by an ``__init__`` of its own, becomes
    pellucid's in the same way, by a class of the same name that inherits from both. A subclass with other code of its
    own (a forward, a property, any further method) is left alone.

    What differs afterwards: dropout draws other masks from the same generator, results differ by rounding, and
    ``isinstance(layer, torch.nn.LSTM)`` no longer holds, nor for GRU and RNN, but for layers of subclasses of these;
    the other classes are torch.nn's too.

    Args:
        model: any model; it is changed.
        only: which layers: a class (torch.nn's or pellucid's), a module or its path, which mean all inside it too, a
            pattern of paths ("encoder.*.norm"), a function of (path, layer), or several of these.
        verify: an example of the model's input: a tensor, a tuple of positional or a dict of keyword arguments. With it
            the model is run before and after, in eval and in train mode without its dropouts; outputs and gradients are
            compared, and its time is taken: that of forward and backward in train mode, of forward in eval mode.
            Parameters, gradients, buffers, mode and random generators are left as they were.
        fuse: let what follows each other in the forward of one module be computed as one: a residual connection and its
            dropout with the norm behind them; a norm with the residual connection and the activation behind it; in eval
            mode a convolution with its BatchNorm, as one convolution whose weight is computed at every call; and the
            module's own arithmetic, entry by entry or along the last axis, of which kernel and gradient are derived. In
            training the functions of torch.nn.functional that drop, ``scaled_dot_product_attention`` on the CPU,
            ``multi_head_attention_forward`` and ``dropout``, are pellucid's, which draw other masks; ``torch.addmm`` is
            so in eval mode too. No parameter changes, nor its name. The module whose forward it is gets a class of the
            same name, whose forward is its own but for these calls. A hook on one of the layers lets them run one by
            one, as does whatever one pass cannot do or is not faster at; so do torch.compile and torch.export, which
            fuse by themselves. To be looked into, forwards are run once on placeholders. What a forward reads of its
            module is watched; what it reads elsewhere (a global variable) is taken to stay. With ``verify`` the model
            is run once more before: forwards that depend on the shape of their input, or of whose arguments not all are
            tensors, are understood then too, and functions are found that other code calls for a module.
        memory_format: ``torch.channels_last`` lets every Conv2d of pellucid's that ``only`` admits work on pictures
            whose channels stand last in memory, ``torch.channels_last_3d`` every Conv3d; those too that have been
            pellucid's before. Only the strides of what they return differ. The layers behind them answer in the same
            format, so a whole network works in it, and many train faster: networks of depthwise and grouped
            convolutions above all. "fastest" measures that with ``verify``, and keeps the format where the model is at
            least 1.05 times as fast with it as without, and can do with it: code that calls ``.view`` on a
            convolution's result cannot, ``.reshape`` can. None leaves every layer in the format that it works in.

    Returns:
        What was replaced, what was left and why, what was fused and what not, the format that convolutions work in, and
        with ``verify`` the differences and times. It prints itself.

    Raises:
        VerificationError: outputs or gradients differ by more than rounding, or the model fails with pellucid's
            layers, or in a memory format that is not "fastest"; it is as it was.
        TypeError: no model, or an ``only`` that says nothing.
        ValueError: a path in ``only`` that the model lacks, an unknown ``memory_format``, "fastest" without ``verify``.
    """
    check_wish(memory_format, verify)
    found = places(_model(model, "swap"))
    selection = Selection(only)
    selection.check(found)
    chosen, left = [], []
    for layer, paths in found.items():
        reason = _reason(layer)
        if reason is None and ours_of(kind_of(layer)) is None:
            continue
        if not reason and not selection.admits(layer, paths):
            reason = "only= leaves it out"
        if reason:
            left.append(Left(tuple(paths), name_of(kind_of(layer)), reason))
        else:
            chosen.append(layer)
    admitted = [layer for layer, paths in found.items() if memory_format is not None and selection.admits(layer, paths)]
    replaced = _exchange(chosen, found)
    formats = Formats(admitted, memory_format)
    fused, unfused, plans = _fuse(model, found, selection, verify) if fuse else ((), (), {})
    verification = None
    if verify is None:
        formats.turn(True)
    else:
        verification = verified(model, chosen, verify, plans, formats)
    formatted = None if memory_format is None else formats.told(found)
    return Report("swap", replaced, tuple(left), verification, fused, unfused, formatted)


def restore(model: torch.nn.Module) -> Report:
    """Let every layer of pellucid's that torch.nn has under the same name become torch.nn's, in place.

    The weights are those of now, and everything else stays, as in `pellucid.swap`: for an export, or for somebody
    without pellucid. Layers of a subclass of torch.nn's are that again, modules that computed some of their layers as
    one have their own class and forward again, and convolutions work in the memory format of their input. It does not
    matter how the model came to have pellucid's layers. Layers and options that torch.nn does not have are left, and
    reported. A model whose own code calls layers with what torch.nn's do not take, such as ``lengths=``, fails
    afterwards.

    Returns:
        What was replaced, and what was left and why.
    """
    found = places(_model(model, "restore"))
    fused, formatted = _unfuse(found), unformat(found)
    chosen, left = [], []
    for layer, paths in found.items():
        kind = kind_of(layer)
        if not any(base.__module__.startswith("pellucid.") for base in kind.__mro__):
            continue
        reason = obstacle(layer)
        if reason:
            left.append(Left(tuple(paths), name_of(kind), reason))
        else:
            chosen.append(layer)
    return Report("restore", _exchange(chosen, found), tuple(left), fused=fused, formatted=formatted)


def _model(model: Any, function: str) -> torch.nn.Module:
    if isinstance(model, torch.nn.Module):
        return model
    raise TypeError(f"{function}: a model is a torch.nn.Module, not {model!r}; of a class make an object: Model()")


def _reason(layer: torch.nn.Module) -> str | None:
    """Say why a layer is left alone; None for one that is not, and for a module that only holds others."""
    kind = kind_of(layer)
    if kind.__module__.startswith(("torch.nn.utils.", "pellucid.nn.parametrizations")):
        return None  # what computes a weight is no layer
    if runs_as(kind).__module__.startswith("pellucid."):
        return "pellucid's already"
    holds = any(name != "parametrizations" for name, _ in layer.named_children())
    return obstacle(layer) if base_of(kind) is not None or not holds else None


def _exchange(layers: list[torch.nn.Module], found: dict[torch.nn.Module, list[str]]) -> tuple[Replaced, ...]:
    replaced = []
    for layer in layers:
        before = name_of(kind_of(layer))
        exchange(layer)
        replaced.append(Replaced(tuple(found[layer]), before, name_of(kind_of(layer))))
    return tuple(replaced)


def _fuse(
    model: torch.nn.Module, found: dict[torch.nn.Module, list[str]], selection: Selection, example: Any
) -> tuple[tuple[Fused, ...], tuple[Left, ...], dict[torch.nn.Module, Plans]]:
    """Let modules compute layers as one; return what is, what is not, and the plans of these modules."""
    unfused: list[Left] = []
    plans = {}
    looked_at = list(candidates(found, selection.admits, _observed(model, example)))
    within = {at(c.module, path) for c in looked_at for path in c.found.layers}
    for candidate in looked_at:
        if candidate.obstacle:
            unfused.append(Left(candidate.paths, name_of(kind_of(candidate.module)), candidate.obstacle))
        for norm, names, reason in candidate.found.refused:
            unfused.append(Left(everywhere(candidate.paths, [str(norm.target)]), names, reason))
        arithmetic = candidate.found.pieces and candidate.module not in within
        if candidate.found.groups or candidate.functions or arithmetic:
            plans[candidate.module] = candidate.plans()
    for module, followed in plans.items():
        unfuse(module)
        follow(module, followed)
    return _placed(plans, found), tuple(unfused), plans


def _observed(model: torch.nn.Module, example: Any) -> Observed:
    """What modules do when the model reads the example, if there is one."""
    if example is None:
        return Observed({}, {})
    return observed(model, copied(arguments(example)))


def _placed(plans: Mapping[torch.nn.Module, Plans], found: Mapping[torch.nn.Module, list[str]]) -> tuple[Fused, ...]:
    """What modules compute as one, by its places in the model."""
    return tuple(
        replace(group, paths=everywhere(found[module], group.paths))
        for module, followed in plans.items()
        for group in followed.fused
    )


def _unfuse(found: Mapping[torch.nn.Module, list[str]]) -> tuple[Fused, ...]:
    """Give modules their own forward back; return what was computed as one."""
    followed = {module: unfuse(module) for module in found}
    return _placed({module: plans for module, plans in followed.items() if plans is not None}, found)
