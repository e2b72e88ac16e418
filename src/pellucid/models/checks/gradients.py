"""Parameters that receive no gradient, and why: unused, cut off, frozen, zero; and gradients that are not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import in_one_line
from pellucid.models.checks.comparison import changed, zip_shaped
from pellucid.models.checks.mistakes import Found, Given
from pellucid.models.checks.trial import Run, Trial, floating
from pellucid.models.structures import tensors

Loss = Callable[[Any], Tensor]
Taken = tuple[Tensor | None, ...]
DRAWS = 4  # further runs in training to see whether a layer is left out by chance
STEP = 1e-3  # by which the weights that start at 0 are changed at most
PROBED = 8  # groups of parameters that are changed to see whether results depend on them


def sum_of_squares(result: Any) -> Tensor | None:
    """The loss by default: over all outputs of floating point; None if none of them has a gradient."""
    parts = [y for y in floating(list(tensors(result))) if y.requires_grad]
    return torch.stack([y.abs().float().square().sum() for y in parts]).sum() if parts else None


class Gradients:
    """What a backward pass gave: the gradients by name, and whether there was a loss."""

    def __init__(self, trial: Trial, loss: Loss | None) -> None:
        self.loss = loss
        self.parameters = {name: p for name, p in trial.model.named_parameters() if p.requires_grad and p.numel()}
        self.error: RuntimeError | None = None
        self.found: dict[str, Tensor | None] | None = None

    def take(self, run: Run) -> None:
        """Take them; called while the model is still as it ran."""
        total = sum_of_squares(run.result) if self.loss is None else self.loss(run.result)
        if not isinstance(total, Tensor) and total is not None:
            raise TypeError(f"check: loss= gives {total!r}; it is given what the model returns, and returns a tensor")
        if total is None or not total.requires_grad or not self.parameters:
            self.found = dict.fromkeys(self.parameters)
            return
        try:
            weights = list(self.parameters.values())
            given: Taken = torch.autograd.grad(total.sum(), weights, allow_unused=True, retain_graph=True)
            if any(gradient is None for gradient in given):
                given = self._by_backward(total.sum()) or given
        except RuntimeError as error:
            self.error = error
        else:
            self.found = dict(zip(self.parameters, given, strict=True))

    def _by_backward(self, total: Tensor) -> Taken | None:
        """The gradients of backward(), which alone reaches what checkpoints of the old kind (use_reentrant) compute.

        None where a hook, an optimizer's say, would act on them.
        """
        if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in self.parameters.values()):
            return None
        before = {p: p.grad for p in self.parameters.values()}
        try:
            for p in before:
                p.grad = None
            total.backward()
            return tuple(p.grad for p in before)
        finally:
            for p, gradient in before.items():
                p.grad = gradient


def mistakes(trial: Trial, gradients: Gradients, train: Run, base: Run, given: Given) -> Iterator[Found]:
    """Tell of them, a group of parameters at the highest layer of which all are concerned."""
    frozen = [name for name, p in trial.model.named_parameters() if not p.requires_grad]
    for path, names in _groups(trial, frozen):
        yield _found(trial, "frozen", path, "note", names)
    if gradients.found is None:
        assert gradients.error is not None
        given.miss("gradient-fails", error=in_one_line(gradients.error, trial.model))
        return
    if not any(y.is_floating_point() for y in base.outputs) and gradients.loss is None:
        given.miss("no-loss")
        return
    none = [name for name, value in gradients.found.items() if value is None]
    trained, evaluated = ({call.layer for call in run.begun} for run in (train, base))
    for index, (path, names) in enumerate(_groups(trial, none)):
        inside = set(trial.model.get_submodule(path).modules())
        if inside & evaluated and not inside & trained:
            if not _trains_at_times(trial, inside):
                yield _found(trial, "skipped-in-training", path, "suspect", names)
        elif index < PROBED and _influences(trial, base, names):
            yield _found(trial, "no-gradient", path, "wrong", names, variant=_where_cut(inside, train))
        elif not inside & trained:
            yield _found(trial, "never-called", path, "suspect", names)
        else:
            yield _found(trial, "unused-parameter", path, "suspect", names)
    for path, names in _groups(trial, _without_slope(trial, gradients)):
        yield _found(trial, "zero-gradient", path, "suspect", names)
    infinite = [name for name, value in gradients.found.items() if value is not None and not value.isfinite().all()]
    if infinite and all(bool(y.isfinite().all()) for y in train.outputs):
        path, _, name = infinite[-1].rpartition(".")
        layer = trial.model.get_submodule(path)
        numbers = {"parameters": len(infinite), "of": len(gradients.found)}
        yield Found("gradient-not-finite", layer, path, "wrong", numbers, name=name)


def _found(trial: Trial, kind: str, path: str, severity: Any, names: Sequence[str], variant: str = "") -> Found:
    own = dict(trial.model.named_parameters())
    numbers = {"parameters": len(names), "entries": sum(own[name].numel() for name in names)}
    inner = [name.removeprefix(f"{path}.") if path else name for name in names]
    shown = ", ".join(inner[:3]) + (", …" if len(inner) > 3 else "")
    return Found(kind, trial.model.get_submodule(path), path, severity, numbers, variant=variant, names=shown)


def _groups(trial: Trial, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group parameters by the outermost layer, within the model, all of whose parameters are among them."""
    every = Counter(path for name, _ in trial.model.named_parameters() for path in _around(name))
    held = Counter(path for name in names for path in _around(name))
    groups: dict[str, list[str]] = {}
    for name in names:
        paths = _around(name)
        whole = next((path for path in paths if held[path] == every[path]), paths[-1] if paths else "")
        groups.setdefault(whole, []).append(name)
    return list(groups.items())


def _around(name: str) -> list[str]:
    """The paths of the layers around a parameter, the outermost first, without the model itself."""
    owner, computed, _ = name.partition(".parametrizations.")
    parts = owner.split(".") if computed else owner.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _influences(trial: Trial, base: Run, names: Sequence[str]) -> bool:
    """Whether results change with other values of parameters."""
    own: Mapping[str, Tensor] = dict(trial.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name in names:
        value = own[name].detach()
        noise = torch.randn(value.shape, generator=generator).to(value)
        spread = float(value.double().std()) if value.numel() > 1 else 0.0
        weights[name] = (spread or 1.0) * noise - value
    run = trial.run(weights=weights, suppress=True)
    pairs = zip_shaped(base.outputs, run.outputs)
    return run.error is None and any(a.shape != b.shape or bool(changed(a, b).any()) for a, b in pairs)


def _without_slope(trial: Trial, gradients: Gradients) -> list[str]:
    """The parameters whose gradient is 0, also when weights that start at 0 have learnt a little.

    Such weights, the scale of a residual branch or half of an adapter, hold up the gradient for one step alone.
    """
    assert gradients.found is not None
    slopes = {name: value for name, value in gradients.found.items() if value is not None}
    zero = [name for name, value in slopes.items() if not value.any()]
    starting = {
        name: value / value.abs().max() * -STEP
        for name, value in slopes.items()
        if value.any() and value.isfinite().all() and not gradients.parameters[name].any()
    }
    if not zero or not starting:
        return zero
    later = Gradients(trial, gradients.loss)
    trial.run("train", weights=starting, grad=True, then=later.take, suppress=True)
    learns = {name for name, value in (later.found or {}).items() if value is not None and value.any()}
    return [name for name in zero if name not in learns]


def _trains_at_times(trial: Trial, inside: set[nn.Module]) -> bool:
    """Whether other draws let one of these layers be called in training: some models leave layers out by chance."""
    runs = (trial.run("train", seed=seed, record=True, values=False, suppress=True) for seed in range(1, 1 + DRAWS))
    return any(call.layer in inside for run in runs for call in run.begun)


def _where_cut(inside: set[nn.Module], train: Run) -> str:
    """Whether what a layer, of these modules, returns could still pass a gradient: then it is cut off later."""
    ended = [call for call in train.calls if call.layer in inside]
    return "after" if ended and any(ended[-1].gives) else "inside"
