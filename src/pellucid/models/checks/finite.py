"""Where numbers that are none, or infinite, appear first."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils import _pytree as pytree

from pellucid.models.checks.findings import Severity
from pellucid.models.checks.mistakes import Found
from pellucid.models.checks.trial import Run, Trial


def mistakes(trial: Trial, run: Run, mode: str) -> Iterator[Found]:
    """Tell where a run has left the finite numbers: in the inputs, the weights, or in a layer."""
    for leaf in pytree.tree_leaves(trial.inputs):
        if isinstance(leaf, Tensor) and not _finite(leaf):
            yield Found("not-finite", trial.model, "", "wrong", _count(leaf), variant="input", mode=mode)
            return
    for name, weight in (*trial.model.named_parameters(), *trial.model.named_buffers()):
        if bool(weight.isnan().any()):
            path, _, own = name.rpartition(".")
            layer = trial.model.get_submodule(path)
            yield Found("not-finite", layer, path, "wrong", _count(weight), variant="weight", name=own, mode=mode)
            return
    bad = [t for t in run.outputs if not _finite(t)]
    if not bad:
        return
    severity: Severity = (
        "wrong" if any(bool(t.isnan().any()) or bool((t == float("inf")).any()) for t in bad) else "suspect"
    )
    for call in run.calls:
        if all(map(_finite, call.read)) and not all(map(_finite, call.given)):
            worst = next(t for t in call.given if not _finite(t))
            yield Found("not-finite", call.layer, call.path, severity, _count(worst), mode=mode)
            return
    yield Found("not-finite", trial.model, "", severity, _count(bad[0]), mode=mode)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _count(tensor: Tensor) -> dict[str, int]:
    return {
        "nan": int(tensor.isnan().sum()),
        "inf": int(tensor.isinf().sum()),
        "entries": tensor.numel(),
    }
