"""Dropout that acts in eval, that does not act in training, and other draws of a model in eval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pellucid.models.checks.comparison import changed, origins, relative, zip_shaped
from pellucid.models.checks.mistakes import Found
from pellucid.models.checks.samples import is_recurrent
from pellucid.models.checks.trial import Operation, Run, Trial

DROPOUTS = _DropoutNd  # pellucid's are, too
DROPS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
OWN = frozenset({*DROPS, F.scaled_dot_product_attention, torch.dropout, torch.alpha_dropout, torch.feature_dropout})


def rate_in(operation: Operation) -> float:
    """Return the probability with which a function drops in this call."""
    if operation.function not in OWN:
        return 0.0
    values = dict(zip(_names(operation.function), operation.args, strict=False)) | operation.options
    if operation.function is F.scaled_dot_product_attention:
        return float(values.get("dropout_p", 0.0))
    training = values.get(
        "training", values.get("train", operation.function not in (F.alpha_dropout, F.feature_alpha_dropout))
    )
    return float(values.get("p", 0.5)) if training else 0.0


def _names(function: Any) -> tuple[str, ...]:
    if function is F.scaled_dot_product_attention:
        return "query", "key", "value", "attn_mask", "dropout_p"
    if function in DROPS:
        return "input", "p", "training", "inplace"
    return "input", "p", "train"


def in_eval(trial: Trial, base: Run) -> Iterator[Found]:
    """Tell of results that differ between two runs in eval, and of the layers that draw there."""
    again = trial.run(seed=1, record=True)
    pairs = [(a, b) for a, b in zip_shaped(base.outputs, again.outputs) if a.shape == b.shape]
    differing = [pair for pair in pairs if changed(*pair).any()]
    if not differing:
        return
    numbers = {"difference": max(relative(*pair) for pair in differing)}
    dropping = {op.path: (op, rate) for op in base.operations if (rate := rate_in(op)) > 0}
    for path, (operation, rate) in dropping.items():
        own = isinstance(operation.layer, (DROPOUTS, nn.MultiheadAttention))
        attention = operation.function is F.scaled_dot_product_attention
        variant = "layer" if own else "attention" if attention else "function"
        yield Found("dropout-in-eval", operation.layer, path, "wrong", {**numbers, "p": rate}, variant=variant)
    if dropping:
        return

    def fine(one: Tensor, other: Tensor) -> bool | None:
        return None if one.shape != other.shape else not changed(one, other).any()

    call, _ = next(origins(base, again, fine), (base.calls[-1], again.calls[-1]))
    if isinstance(call.layer, DROPOUTS):
        rate = float(getattr(call.layer, "p", 0.5))
        yield Found("dropout-in-eval", call.layer, call.path, "wrong", {**numbers, "p": rate}, variant="layer")
    else:
        yield Found("random-in-eval", call.layer, call.path, "suspect", numbers)


def in_training(trial: Trial, train: Run, base: Run) -> Iterator[Found]:
    """Tell of dropout that is off while the model trains, or that was never called."""
    called = {call.layer: call for call in (*base.begun, *train.begun)}
    trained = {call.layer: call for call in train.begun}
    for layer, path in trial.paths.items():
        rate = _rate(layer)
        if not rate:
            continue
        if is_recurrent(layer) and getattr(layer, "num_layers", 1) == 1:
            yield Found("dropout-of-one-level", layer, path, "wrong", {"p": rate})
        elif layer not in called:
            if isinstance(layer, DROPOUTS) and _is_forgotten(trial, path, called, train):
                yield Found("dropout-unused", layer, path, "suspect", {"p": rate})
        elif layer in trained and not trained[layer].training:
            top = _top_in_eval(trial, path)
            trains = any(p.requires_grad for p in trial.model.get_submodule(top).parameters())
            severity: Any = "wrong" if trains else "note"
            yield Found("dropout-off", layer, path, severity, {"p": rate}, top=top or trial.model._get_name())


def _rate(layer: Any) -> float:
    if isinstance(layer, DROPOUTS):
        return float(getattr(layer, "p", 0.0))
    return float(layer.dropout) if is_recurrent(layer) or isinstance(layer, nn.MultiheadAttention) else 0.0


def _is_forgotten(trial: Trial, path: str, called: Any, train: Run) -> bool:
    """Whether the code around a dropout runs without it, and without a function that drops instead."""
    around = path.rpartition(".")[0]
    parent = trial.model.get_submodule(around)
    instead = any(op.path == around and rate_in(op) > 0 for op in train.operations)
    return not instead and (parent in called or isinstance(parent, (nn.ModuleList, nn.ModuleDict)))


def _top_in_eval(trial: Trial, path: str) -> str:
    """The path of the outermost module around a layer that is in eval."""
    parts = path.split(".")
    places = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next((place for place in places if not trial.model.get_submodule(place).training), path)
