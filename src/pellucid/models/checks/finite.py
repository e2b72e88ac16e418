"""Where numbers that are none, or infinite, appear first."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils import _pytree as pytree

from pellucid.models.checks.findings import Severity
from pellucid.models.checks.mistakes import Found
from pellucid.models.checks.trial import Run, Trial


def mistakes(trial: Trial, run: Run, mode: str) -> Iterator[Found]:
    """Tell where a run has left the finite numbers: in the inputs, the weights, or in a layer.

    Minus infinity may be meant, as that of a mask, so it is looked for only where there is nothing worse.
    """
    stray = _stray if any(_stray(y) for y in run.outputs) else _below_all
    bad = [y for y in run.outputs if stray(y)]
    if not bad:
        return
    severity: Severity = "wrong" if stray is _stray else "suspect"
    for leaf in pytree.tree_leaves(trial.inputs):
        if isinstance(leaf, Tensor) and _stray(leaf):
            yield Found("not-finite", trial.model, "", severity, _count(leaf), variant="input", mode=mode)
            return
    for name, weight in (*trial.model.named_parameters(), *trial.model.named_buffers()):
        if bool(weight.isnan().any()):
            path, _, own = name.rpartition(".")
            layer = trial.model.get_submodule(path)
            yield Found("not-finite", layer, path, severity, _count(weight), variant="weight", name=own, mode=mode)
            return
    for call in run.calls:
        if not any(map(stray, call.read)) and any(map(stray, call.given)):
            worst = next(t for t in call.given if stray(t))
            yield Found("not-finite", call.layer, call.path, severity, _count(worst), mode=mode)
            return
    yield Found("not-finite", trial.model, "", severity, _count(bad[0]), mode=mode)


def _stray(tensor: Tensor) -> bool:
    return bool((tensor.isnan() | (tensor == float("inf"))).any()) if tensor.is_floating_point() else False


def _below_all(tensor: Tensor) -> bool:
    return bool((tensor == -float("inf")).any()) if tensor.is_floating_point() else False


def _count(tensor: Tensor) -> dict[str, int]:
    return {
        "nan": int(tensor.isnan().sum()),
        "inf": int(tensor.isinf().sum()),
        "entries": tensor.numel(),
    }
