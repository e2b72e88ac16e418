"""Layers of any formula of `formulas`, with all that they return and all gradients, by a backend."""

from __future__ import annotations

import torch

import formulas
import pellucid


def make(cell, sizes, input_size=None, hidden_size=4, **options):
    torch.manual_seed(0)
    input_size = input_size or (hidden_size if cell is formulas.unparameterised else 3)
    layer = cell(input_size, hidden_size, dtype=torch.float64, **sizes, **options)
    with torch.no_grad():  # initialisers of zeros and ones would hide mistakes
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def further(layer, *lead):
    """The inputs after the first, drawn, by name."""
    source, sizes = layer.cell.source, layer.solution().input_sizes(layer.cell.source)
    drawn = zip(source.inputs[1:], sizes[1:], strict=True)
    return {symbol.name: torch.rand(*lead, size, dtype=torch.float64) for symbol, size in drawn}


def results(layer, x, others, state, lengths, backend):
    """Output, last state, and the gradients of inputs, initial state and parameters, by name."""
    inputs = {"x": x, **others, **{f"state {i}": s for i, s in enumerate(state)}, **dict(layer.named_parameters())}
    for tensor in inputs.values():
        tensor.requires_grad_()
    torch.manual_seed(5)
    with pellucid.backend(backend):
        output, last = layer(x, state if len(state) > 1 else state[0], lengths, **others)
    no_kernel = layer.cell in formulas.WITHOUT_KERNEL or layer.cell.source.name == "no_kernel"
    assert layer.backend == ("stepwise" if no_kernel and backend == "c" else backend)
    last = last if isinstance(last, tuple) else (last,)
    generator = torch.Generator().manual_seed(6)
    loss = sum((t * torch.rand(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (output, *last))
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    named = {f"gradient of {name}": g for name, g in zip(inputs, grads, strict=True)}
    return {"output": output, **{f"last state {i}": s for i, s in enumerate(last)}, **named}
