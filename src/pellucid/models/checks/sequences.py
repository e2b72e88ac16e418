"""States that explode or vanish along the sequence, and gradients on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pellucid.keeping import left_alone
from pellucid.models.checks.mistakes import Found
from pellucid.models.checks.samples import is_recurrent
from pellucid.models.checks.trial import Call, Run
from pellucid.models.structures import mapped

STEPS = 4  # a sequence from which on it is judged
GROWN, GROWING = 1e4, 1e2  # times as large as at the start: wrong, suspect
SHRUNK = 1e-8  # of what it was: suspect
FELT = 0.01  # of the gradient of the last step: so far back the last output reaches


def mistakes(base: Run) -> Iterator[Found]:
    """Tell of recurrent layers whose state or gradient grows or shrinks by orders of magnitude."""
    seen = set()
    for call in base.calls:
        x = call.read[0] if call.read else None
        packed = bool(call.args) and isinstance(call.args[0], PackedSequence)
        if call.layer in seen or x is None or packed or not is_recurrent(call.layer) or x.ndim not in (2, 3):
            continue
        seen.add(call.layer)
        time = 1 if call.layer.batch_first and x.ndim == 3 else 0
        if x.shape[time] >= STEPS and x.isfinite().all():
            yield from _of_state(call, time)
            yield from _of_gradient(call, time)


def _of_state(call: Call, time: int) -> Iterator[Found]:
    norms = _along(call.given[0], time)
    first, last, most = norms[0], norms[-1], max(norms)
    if not first or most != most:
        return
    numbers = {"steps": len(norms), "first": first, "last": last, "norms": tuple(norms)}
    if last / first > GROWING:
        yield Found("state-explodes", call.layer, call.path, "wrong" if last / first > GROWN else "suspect", numbers)
    elif last / most < SHRUNK and bool(call.read[0].movedim(time, 0)[-1].any()):
        yield Found("state-vanishes", call.layer, call.path, "suspect", {**numbers, "most": most})


def _of_gradient(call: Call, time: int) -> Iterator[Found]:
    """The gradient of the last output with respect to what each step reads."""
    norms = _gradients(call, time)
    if norms is None or not norms[-1]:
        return
    ratio = norms[0] / norms[-1]
    reach = next((back for back, norm in enumerate(reversed(norms)) if norm < FELT * norms[-1]), len(norms))
    numbers = {"steps": len(norms), "ratio": ratio, "reach": reach, "norms": tuple(norms)}
    if not ratio < GROWING:
        severity: Any = "suspect" if ratio < GROWN else "wrong"
        yield Found("gradient-explodes", call.layer, call.path, severity, numbers)
    elif ratio < SHRUNK:
        yield Found("gradient-vanishes", call.layer, call.path, "suspect", numbers)


def _gradients(call: Call, time: int) -> list[float] | None:
    layer: Any = call.layer
    both = bool(layer.bidirectional)
    x = call.read[0].detach().clone().requires_grad_()
    args = tuple(mapped(lambda t: t.detach(), call.args[1:]))
    try:
        with left_alone(layer), torch.enable_grad():
            layer.eval()
            y = layer(x, *args, **mapped(lambda t: t.detach(), call.options))[0]
            last = y.movedim(time, 0)[-1]
            last = last[..., : last.shape[-1] // 2] if both else last  # the direction that has read all of it
            torch.manual_seed(0)
            (gradient,) = torch.autograd.grad((last * torch.randn_like(last)).sum(), x)
    except (RuntimeError, TypeError):  # a layer called in a way of its own
        return None
    return _along(gradient, time)


def _along(y: Tensor, time: int) -> list[float]:
    """The norm of each step."""
    return y.detach().double().movedim(time, 0).flatten(1).norm(dim=1).tolist()
