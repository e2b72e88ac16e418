"""Running cells: layers and inputs without symmetries, all results and gradients, and how exact they have to be."""

from __future__ import annotations

import torch

import pellucid
from pellucid.kernel import memory
from pellucid.nn import cells

CELLS = {value.source.name: value for value in vars(cells).values() if isinstance(value, pellucid.Cell)}
DTYPES = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)
TIME = 3  # cells of normalized sums amplify rounding at every step


SIZES = {"proj": 2, "key": 3}


def sizes_of(cell):
    """The sizes that a ready cell wants beside those of input and state."""
    return {name: SIZES[name] for name in cell.size_names}


def make(cell, input_size, hidden_size, dtype=torch.float64, **options):
    torch.manual_seed(0)
    sizes = {"proj": max(1, hidden_size // 2)} if cell is cells.lstm_projected else {}
    layer = cell(input_size, hidden_size, dtype=dtype, **{**sizes_of(cell), **sizes, **options})
    with torch.no_grad():  # initialisers of zeros and ones would hide mistakes
        for parameter in layer.parameters():
            scale = parameter.shape[0] ** -0.5 if parameter.dim() > 1 else 0.2  # sums of about 1: no unit is saturated
            parameter.add_(scale * torch.randn_like(parameter))
    return layer


def inputs(layer, time, batch):
    """Arguments of a layer by name: its inputs and its state, drawn in its type."""
    torch.manual_seed(1)
    source, solution = layer.cell.source, layer.solution()
    dtype = next(layer.parameters()).dtype
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    made = {"x": torch.randn(time, batch, layer.input_size)}
    for symbol, size in zip(source.inputs[1:], solution.input_sizes(source)[1:], strict=True):
        made[symbol.name] = torch.rand(time, batch, size)
    for symbol, size in zip(source.states, solution.state_sizes(source), strict=True):
        made[f"state {symbol.name}"] = torch.rand(rows, batch, size)
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def run(layer, given, lengths, backend, dtype, noise=0.0, seed=0, device="cpu"):
    """Output, last state and the gradients of everything, in float64, computed in a type from the same numbers.

    With ``noise``, from numbers that are each changed by up to this part of them.
    """
    generator = torch.Generator().manual_seed(seed)

    def prepared(tensor):
        shaken = 1 + noise * (2 * torch.rand(tensor.shape, generator=generator) - 1) if noise else 1
        return (tensor.detach().to(dtype) * shaken).to(device).requires_grad_()

    given = {name: prepared(tensor) for name, tensor in given.items()}
    parameters = {name: prepared(tensor) for name, tensor in layer.named_parameters()}
    state = tuple(tensor for name, tensor in given.items() if name.startswith("state"))
    others = {symbol.name: given[symbol.name] for symbol in layer.cell.source.inputs[1:]}
    arguments = (given["x"], state[0] if len(state) == 1 else state, lengths)
    torch.manual_seed(2)
    with pellucid.backend(backend):
        output, last = torch.func.functional_call(layer, parameters, arguments, others)
    assert layer.backend == backend
    results = {"output": output}
    results |= {
        f"last {s.name}": r for s, r in zip(layer.cell.source.states, last if len(state) > 1 else [last], strict=True)
    }
    torch.manual_seed(4)
    weights = [prepared(torch.rand(result.shape)) for result in results.values()]
    leaves = {**given, **parameters}
    gradients = torch.autograd.grad(
        list(results.values()), list(leaves.values()), weights, allow_unused=True, materialize_grads=True
    )
    results |= {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: result.detach().double().cpu() for name, result in results.items()}


def amplified(layer, given, lengths, expected, dtype, draws=4):
    """What rounding to a type does to each result, whoever computes it.

    That is the largest of three: how far torch's own operations are off in that type; how far the results move when
    every number that goes in is changed by up to a unit, the farthest of so many draws; a unit of the largest number.
    """
    unit = torch.finfo(dtype).eps
    others = [run(layer, given, lengths, "stepwise", torch.float64, unit, seed) for seed in range(draws)]
    others.append(run(layer, given, lengths, "stepwise", dtype))
    return {n: max(unit * e.abs().max(), *((o[n] - e).abs().max() for o in others)) for n, e in expected.items()}


def compare(layer, lengths, batch, dtype, backend="c", device="cpu"):
    """Compare a backend with the reference: it may be off by eight times what rounding does.

    Its functions are right to 2 units where torch's are to 1, and it sums one product after another where torch sums in
    16 lanes, whose errors are a fourth of that (√16).
    """
    given = inputs(layer, TIME, batch)
    expected = run(layer, given, lengths, "stepwise", torch.float64)
    unit, single, double = (torch.finfo(d).eps for d in (dtype, torch.float32, torch.float64))
    # Over one unit, or of x @ U of one feature, a norm has no slope: the reference has rounding there, 1/√ε times.
    flat = "layernorm" in layer.cell.source.name and 1 in (layer.hidden_size, layer.input_size)
    own = flat * 1e-5**-0.5 * double * max(e.abs().max() for e in expected.values())
    moved = amplified(layer, given, lengths, expected, torch.float32)
    check(layer, given, lengths, expected, {n: own + 8 * unit / single * m for n, m in moved.items()}, backend, device)


def check(layer, given, lengths, expected, allowed, backend="c", device="cpu"):
    """Compare a backend, on buffers full of NaN, with the reference in float64."""
    with memory.poison():
        found = run(layer, given, lengths, backend, next(layer.parameters()).dtype, device=device)
    for name, limit in allowed.items():
        error = (found[name] - expected[name]).abs().max()
        assert error <= limit, f"{name}: off by {error:.3g}, allowed {limit:.3g}"  # false for NaN too
