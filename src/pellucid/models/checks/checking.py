"""All parts of a check, one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import in_one_line
from pellucid.explanation.texts import Texts
from pellucid.keeping import refuse_lazy
from pellucid.models.checks import draws, finite, gradients, norms, padding, samples, sequences, units
from pellucid.models.checks.findings import SEVERITIES, Check
from pellucid.models.checks.mistakes import Found, Given
from pellucid.models.checks.trial import Run, Trial
from pellucid.nn.lengths import whole


def checked(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    *,
    lengths: Tensor | Sequence[int] | None,
    mask: Tensor | None,
    batch_axis: int | None,
    loss: Callable[[Any], Tensor] | None,
    lang: str,
) -> Check:
    """Check a model; see `pellucid.check`."""
    texts = Texts(lang)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"check: a model is a torch.nn.Module, not {model!r}; of a class make an object: Model()")
    if lengths is not None and mask is not None:
        raise ValueError("check: lengths and mask both say which steps are real; pass one of them")
    bound = _bound(model, args, options)
    for name, value in (("lengths", lengths), ("mask", mask)):
        if value is not None and name not in bound and name in _names(model):
            options = {**options, name: value}
    refuse_lazy(model, "check")
    explicit = lengths is not None or mask is not None
    given = Given(batch_axis, _lengths(model, lengths, mask, bound), explicit)
    trial = Trial(model, args, options)
    found = sorted(_mistakes(trial, given, loss), key=lambda mistake: SEVERITIES.index(mistake.severity))
    unchecked = tuple(texts(f"mistake.missed.{what}", **facts) for what, facts in given.unchecked)
    return Check(model._get_name(), tuple(mistake.told(texts) for mistake in found), unchecked, lang)


def _mistakes(trial: Trial, given: Given, loss: Callable[[Any], Tensor] | None) -> Iterator[Found]:
    base = _first_run(trial)
    taken = gradients.Gradients(trial, loss)
    train = trial.run(
        "train", record=True, values=False, grad=True, functions=draws.OWN, then=taken.take, suppress=True
    )
    infinite = list(finite.mistakes(trial, base, "eval"))
    yield from infinite
    if any(mistake.severity == "wrong" for mistake in infinite):  # nothing else can be compared
        given.miss("not-finite")
        return
    few = list(norms.mistakes(train))
    yield from few
    if train.error is not None:
        given.miss("training-fails", error=in_one_line(train.error, trial.model))
    else:
        for mistake in gradients.mistakes(trial, taken, train, base, given):
            if mistake.kind != "zero-gradient" or not few:  # a norm over two values has no slope
                yield mistake
        if not infinite and not _all_finite(train):
            yield from finite.mistakes(trial, trial.run("train", record=True), "train")
    yield from draws.in_training(trial, train, base)
    random = list(draws.in_eval(trial, base))
    yield from random
    yield from units.mistakes(base)
    yield from sequences.mistakes(base)
    found = samples.samples_of(trial, base, given)
    yield from samples.mistakes(trial, found, given, base)
    if given.lengths is None and any(map(samples.is_recurrent, trial.paths)):
        given.lengths = padding.guessed(trial.inputs, found)
        given.guessed = given.lengths is not None
    if random:
        given.miss("random")
    else:
        yield from padding.mistakes(trial, found, given, base)


def _first_run(trial: Trial) -> Run:
    """Run without gradients; with them where the model takes gradients itself."""
    functions = units.ACTIVATIONS | draws.OWN
    base = trial.run(record=True, functions=functions, suppress=True)
    if isinstance(base.error, RuntimeError) and "does not require grad" in str(base.error):
        trial.grad = True
        return trial.run(record=True, functions=functions)
    if base.error is not None:
        raise base.error
    return base


def _all_finite(run: Run) -> bool:
    return all(bool(y.isfinite().all()) for y in run.outputs)


# -- what is given -----------------------------------------------------------------------------------------------------


def _names(model: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}


def _bound(model: torch.nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Name what the model is called with as its forward does."""
    try:
        return dict(inspect.signature(model.forward).bind_partial(*args, **options).arguments)
    except (TypeError, ValueError):
        return dict(options)


def _lengths(model: torch.nn.Module, lengths: Any, mask: Tensor | None, bound: Mapping[str, Any]) -> list[int] | None:
    """Return the lengths that were given, themselves, as a mask, or among the arguments of the model."""
    if lengths is None and mask is None:
        lengths = bound.get("lengths") if _are_whole(bound.get("lengths")) else None
        seen = bound.get("attention_mask") if lengths is None else None
        mask = seen.bool() if isinstance(seen, Tensor) and seen.ndim == 2 and _ends_in_padding(seen.bool()) else None
    if mask is not None:
        if mask.ndim != 2 or mask.dtype != torch.bool or not _ends_in_padding(mask):
            raise ValueError(
                f"check: mask is of {mask.dtype} and shape {tuple(mask.shape)}; it is bool, (batch, time), True at "
                f"real steps, and these stand before padding. Turn it around, ~mask, if it is True at padding."
            )
        return mask.sum(1).tolist()
    return None if lengths is None else whole(lengths, model).reshape(-1).tolist()


def _are_whole(lengths: Any) -> bool:
    if isinstance(lengths, Tensor):
        return lengths.ndim == 1 and not lengths.is_floating_point() and lengths.dtype != torch.bool
    return isinstance(lengths, (list, tuple)) and all(type(length) is int for length in lengths)


def _ends_in_padding(real: Tensor) -> bool:
    return not bool((real[:, 1:] & ~real[:, :-1]).any())
