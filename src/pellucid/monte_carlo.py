"""Monte-Carlo dropout: the predictions of the crowd of networks that one network trained with dropout stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from pellucid.errors import kind_text
from pellucid.nn.dropout.drawing import Drawing
from pellucid.nn.recurrence.sequence import SequenceLayer
from pellucid.nn.rows.row_wise import RowWise


class Prediction(NamedTuple):
    """What a crowd of networks predicts; each field has the structure of the model's output.

    Attributes:
        mean: the average prediction.
        spread: the standard deviation of the predictions around it (divided by their number, so 0 for a single one).
        samples: the predictions themselves, stacked along a new first axis.
    """

    mean: Any
    spread: Any
    samples: Any


def monte_carlo(
    model: torch.nn.Module,
    x: Any,
    samples: int = 100,
    *,
    seed: int | None = None,
    also: tuple[type[torch.nn.Module], ...] = (),
    **options: Any,
) -> Prediction:
    """Predict with dropout on, many times, and return mean and spread of the predictions.

    Every pass drops other units, and so is another network; trained with dropout, they are samples of an approximate
    posterior (Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016). Dropout layers, those of
    torch.nn too, recurrent layers with dropout between their levels or inside their cell, layers that draw in their
    formula, attention with dropout and torch's transformer layers run as in training; all else, BatchNorm above all, as
    in eval. No gradient is recorded. Every module's mode is the same afterwards.

    Args:
        model: a network with dropout.
        x: its input; a tuple stands for several positional arguments.
        samples: how many networks to ask.
        seed: makes the answer repeatable; torch's generators are left as they were. Without it they decide, and
            advance.
        also: further types of modules that draw in training, such as a block of your own that calls
            ``torch.nn.functional.dropout(x, p, self.training)``.
        **options: passed on to the model (``lengths=...``).

    Returns:
        mean, spread and samples; trees (tuples, lists, dictionaries) where the model returns one. Whole numbers and
        truth values are averaged as float32.

    Raises:
        ValueError: the model holds no dropout, or ``samples`` is less than 1.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(
            f"monte_carlo: samples is the number of networks to ask, a whole number from 1, not {samples!r}"
        )
    drawing = {module for module in model.modules() if isinstance(module, also) or _draws(module)}
    if not any(_drops(module) or isinstance(module, also) for module in drawing):
        raise ValueError(
            f"monte_carlo: {type(model).__name__} holds no layer that drops anything, so every prediction would be the "
            f"same. Add nn.Dropout with p > 0; if a module of yours calls functional.dropout, name its type in also=."
        )
    inputs = x if isinstance(x, tuple) and not isinstance(x, PackedSequence) else (x,)
    with torch.no_grad(), _modes(model, drawing), _seeded(model, seed):
        outputs = [model(*inputs, **options) for _ in range(samples)]
    leaves = [pytree.tree_leaves(output) for output in outputs]
    structure = pytree.tree_structure(outputs[0])
    fields = zip(*(_moments(values) for values in zip(*leaves, strict=True)), strict=True)
    return Prediction(*(pytree.tree_unflatten(list(field), structure) for field in fields))


def _drops(module: torch.nn.Module) -> bool:
    """Whether a layer drops something in training."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, SequenceLayer | RowWise) and module.solution().sites:
        return True
    if isinstance(module, SequenceLayer | torch.nn.RNNBase):  # what they drop lies between their levels
        return module.dropout > 0 and module.num_layers > 1
    return isinstance(module, torch.nn.MultiheadAttention) and module.dropout > 0


def _draws(module: torch.nn.Module) -> bool:
    # In eval torch's transformer layer takes a path of its own, past the dropout layers that it holds.
    return _drops(module) or isinstance(module, torch.nn.TransformerEncoderLayer)


def _moments(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Mean, spread and stack of one part of the model's output."""
    if values[0] is None:
        return None, None, None
    if not isinstance(values[0], torch.Tensor | float | int):
        raise TypeError(
            f"monte_carlo: the model returns {kind_text(values[0])}, which has no mean. Let it return tensors, "
            f"numbers, or tuples, lists and dictionaries of them."
        )
    stacked = torch.stack([torch.as_tensor(value) for value in values])
    exact = stacked.is_floating_point() or stacked.is_complex()
    spread, mean = torch.std_mean(stacked if exact else stacked.float(), dim=0, correction=0)
    return mean, spread, stacked


@contextlib.contextmanager
def _modes(model: torch.nn.Module, drawing: set[torch.nn.Module]) -> Iterator[None]:
    """Put the layers that draw in training, all others in eval; afterwards all as they were."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = module in drawing
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextlib.contextmanager
def _seeded(model: torch.nn.Module, seed: int | None) -> Iterator[None]:
    """Let a seed decide all draws, those of layers with a seed or generator of their own too."""
    if seed is None:
        yield
        return
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    own = {module: (module.seed, module.generator) for module in model.modules() if isinstance(module, Drawing)}
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        torch.manual_seed(seed)
        try:
            for module in own:
                module.seed = module.generator = None
            yield
        finally:
            for module, source in own.items():
                module.seed, module.generator = source
