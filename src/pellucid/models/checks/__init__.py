"""The silent mistakes of a model, told with the layer, the numbers that show them, and the cure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pellucid.models.checks.findings import Check

__all__ = ["check"]


def check(
    model: torch.nn.Module,
    *inputs: Any,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    batch_axis: int | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    lang: str = "en",
    **options: Any,
) -> Check:
    """Look for the mistakes of a model that raise no error, by running it.

    ::

        found = pellucid.check(model, x, lengths=lengths)
        print(found)
        found.raise_if_wrong()

    What can be shown by an experiment is: a sample is changed, and others must stay as they are; a padded sample is
    run alone without its padding, and must give the same; two runs in eval must agree; parameters without a gradient
    are changed, to see whether results depend on them. Where two mistakes follow one another only the first shows:
    check again after the cure.

    Found are: batch and time swapped, a batch read as one sequence, samples that influence one another, padding in a
    norm, in a backward recurrence, in the last state and in what is pooled over time, dropout that acts in eval or not
    in training, other draws in eval, norms over one value, dead and saturated units, states and gradients that explode
    or vanish along the sequence, parameters without a gradient, numbers that are not finite.

    The model is left as it was: parameters, gradients, buffers, modes, hooks, random generators.

    Args:
        model: any model, with layers of torch.nn, pellucid's or its own.
        inputs: what its forward takes: tensors, or structures of tensors. Several samples, one of them shorter, show
            most.
        lengths: how many steps of each sample are real. Without them, what the forward takes as ``lengths`` or
            ``attention_mask`` is used, else they are guessed from equal steps at the ends of samples, and what rests on
            that is called suspect. Where the forward has an argument of this name it is given them too.
        mask: the same as a bool tensor, (batch, time), True at real steps, which stand before padding.
        batch_axis: the axis of the first input that counts the samples; by default it is found out.
        loss: a function of what the model returns; by default the sum of squares of all outputs of floating point.
        lang: the language of the texts, "en" or "zh".
        options: keyword arguments of the forward.

    Returns:
        The findings; true where nothing is wrong. It prints itself.

    Raises:
        TypeError: no model, or lengths that are no whole numbers. ValueError: lengths, mask or batch axis do not belong
            to the input. What the model itself raises for its input is passed on.
    """
    from pellucid.models.checks.checking import checked

    return checked(model, inputs, options, lengths=lengths, mask=mask, batch_axis=batch_axis, loss=loss, lang=lang)
