"""Every operation in C, values and gradients: at kinks, limits and ties, in rows of any width and both types."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import pellucid
from pellucid.kernel import memory

# {0} is of the input, {1} of the state; each has columns of its own, which no other piece reads.
COLUMNS = [
    *(
        "F.elu({0})",
        "F.elu({0}, 0.7)",
        "F.selu({0})",
        "F.celu({0}, 0.5)",
        "F.leaky_relu({0})",
        "F.leaky_relu({0}, -0.2)",
    ),
    *("F.hardtanh({0})", "F.hardtanh({0}, -0.5, 6.0)", "F.relu6({0})", "F.hardsigmoid({0})", "F.hardswish({0})"),
    *("F.silu({0})", "F.mish({0})", "F.gelu({0})", "F.gelu({0}, approximate='tanh')", "F.softplus({0}, 2.0, 1.0)"),
    *("F.threshold({0}, 0.1, 0.5)", "F.hardshrink({0}, 0.5)", "F.softshrink({0}, 0.5)", "F.logsigmoid({0})"),
    *("{0} % 0.3", "{0} % -1.5", "torch.remainder({0}, {1})", "torch.fmod({0}, {1})", "torch.div({0}, {1})"),
    *("torch.div({0}, 0.1, rounding_mode='floor') + {1}", "torch.div({0}, {1}, rounding_mode='floor') + {1}"),
    *("torch.div({0}, {1}, rounding_mode='trunc') + {1}", "torch.hypot({0}, {1})", "torch.copysign({0}, {1})"),
    *("torch.logaddexp({0}, {1})", "torch.logaddexp2({0}, {1})", "torch.nan_to_num({0}, 0.1, 5.0, -5.0)"),
    *("torch.maximum({0}, {1})", "torch.minimum({0}, {1})", "torch.fmax({0}, {1})", "torch.fmin({0}, {1})"),
    *("torch.lerp({0}, {1}, 0.3)", "torch.lerp({0}, {1}, {0})", "torch.addcmul({0}, {1}, {0}, value=0.5)"),
    *("torch.addcdiv({0}, {1}, {0}, value=0.5)", "torch.sgn({0}) * {1}", "torch.sigmoid({0})", "torch.tanh({0})"),
    *("torch.clamp({0}, -0.5, 6.0)", "torch.clamp({0}, min={1})", "torch.clamp({0}, {1} - 0.1, {1} + 1)"),
    *("torch.clamp_min({0}, {1})", "torch.clamp_max({0}, 0.1)", "torch.clamp({0}, 1.0, -1.0)"),
    *("torch.where(torch.isnan({0}) | torch.isinf({1}), 2.0, {0})", "torch.where(torch.isfinite({0}), {0}, {1})"),
    *("torch.where({0} > 0, {0}, torch.log(-{0}) * {1})", "torch.where(({0} > 0) ^ ({1} > 0), {0}, {1})"),
    *("torch.where(torch.logical_xor({0}, {1} > 0), {0}, {1})", "torch.where(~({0} >= {1}), {0}, {1})"),
    *("torch.where(({0} > 0) * ({1} > 0), {0}, {1})", "torch.where(({0} > 0) + ({1} > 0), {0}, {1})"),
]
ROWS = [
    *("{0}.amax(-1, keepdim=True) * {1}", "{0}.amin(-1, keepdim=True) + {1}", "{0}.prod(-1, keepdim=True) + {1}"),
    *("torch.logsumexp({0}, -1, keepdim=True) + {1}", "torch.softmax({0}, -1)", "torch.log_softmax({0}, -1)"),
    *("torch.linalg.vector_norm({0}, 1, -1, keepdim=True) + {1}", "F.normalize({0}, math.inf, -1)"),
    *("torch.linalg.vector_norm({0}, -math.inf, -1, keepdim=True) + {1}", "F.normalize({0}, 1.0, -1)"),
    *("torch.where(({0} > 1).any(-1, keepdim=True), {0}, {1})", "torch.where({0}.all(-1, keepdim=True), {0}, {1})"),
    *("{1} + ({0} > 0).sum(-1, keepdim=True)", "torch.where({0} == {0}.amax(-1, keepdim=True), {0}, {1})"),
]
SPECIAL = [0.0, -0.0, 0.1, 0.5, -0.5, 1, -1, 1.5, 3, -3, 6, 20, -20, 1e-30, 7.25, math.inf, -math.inf, math.nan]
GROUP = 9  # pieces in a cell


def cell_of(pieces):
    names = [f"({name}{i})" for i in range(len(pieces)) for name in "xh"]
    results = (piece.format(*names[2 * i : 2 * i + 2]) for i, piece in enumerate(pieces))
    lines = [
        "def pieces(x, h):",
        *(f"    {name}0, *{name} = {name}.chunk({len(pieces)}, -1)" for name in "xh" if len(pieces) > 1),
        *(f"    {name}{i} = {name}[{i - 1}]" for i in range(1, len(pieces)) for name in "xh"),
        *(f"    {name}0 = {name}" for name in "xh" if len(pieces) == 1),
        f"    return torch.cat([{', '.join(results)}], -1)",
    ]
    space = {"torch": torch, "F": F, "math": math}
    exec("\n".join(lines), space)
    return pellucid.cell(space["pieces"])


def numbers(width, whole_rows):
    """Rows of the two operands: drawn ones, ties and zeros, special numbers among others and alone, and in pairs.

    Not in pairs where whole rows are taken: what a product of great and small ones comes to is a matter of the order.
    """
    torch.manual_seed(0)
    few = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    drawn = 2 * torch.randn(2, 6, width), few[torch.randint(0, 4, (2, 12, width))], torch.ones(2, 1, width)
    one = torch.randn(2, len(SPECIAL), width)
    one[:, range(len(SPECIAL)), [i % width for i in range(len(SPECIAL))]] = torch.tensor(SPECIAL)
    pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL))).T
    pairs = torch.cat([pairs, pairs[:, : -pairs.shape[1] % width]], 1).reshape(2, -1, width)
    alike = torch.tensor(SPECIAL).expand(2, width, len(SPECIAL)).mT
    return torch.cat([*drawn, one, alike, *([] if whole_rows else [pairs])], 1)


def results(layer, x, h, backend):
    """Value and gradients of one step."""
    x, h = x.clone().requires_grad_(), h.clone().requires_grad_()
    with pellucid.backend(backend):
        output, _ = layer(x[None], h[None])
    assert layer.backend == backend
    torch.manual_seed(1)
    weights = torch.rand_like(output) + 0.5
    of_x, of_h = torch.autograd.grad(output, (x, h), weights, allow_unused=True, materialize_grads=True)
    return {"value": output[0].detach(), "of x": of_x, "of h": of_h}


def compare(pieces, width, dtype, x, h):
    """C and stepwise against the author's function; every piece has the same numbers in its columns.

    What the slope at NaN is, NaN, 0 or 1, torch's own kernels do not agree on from one number of columns to the next.
    """
    layer = cell_of(pieces)(len(pieces) * width, len(pieces) * width, dtype=dtype)
    x, h = (t.to(dtype).repeat(1, len(pieces)) for t in (x, h))
    expected = results(layer, x, h, "naive")
    for backend in ("stepwise", "c"):
        with memory.poison():
            found = results(layer, x, h, backend)
        for name, value in found.items():
            if name != "value":
                value, expected[name] = (g.masked_fill(x.isnan() | h.isnan(), 0) for g in (value, expected[name]))
            parts = value.split(width, -1), expected[name].split(width, -1)
            for piece, one, other in zip(pieces, *parts, strict=True):
                where = f"{piece}, {backend}, {name}: "
                torch.testing.assert_close(one, other, equal_nan=True, msg=lambda text, where=where: where + text)


def groups(pieces):
    return [pytest.param(pieces[i : i + GROUP], id=str(i)) for i in range(0, len(pieces), GROUP)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 7, 63])
@pytest.mark.parametrize("pieces", groups(COLUMNS) + groups(ROWS))
def test_operation(pieces, width, dtype):
    compare(pieces, width, dtype, *numbers(width, pieces[0] in ROWS))


COMPARED = [
    "({m} + b).amax(-1, keepdim=True) * m",
    "({m} + b)[:, 1:].amin(-1, keepdim=True) * m",
    "F.normalize({m} + b, math.inf, -1) * m",
    "torch.where((z := {m} + b) == z.amax(-1, keepdim=True), m, h)",
    "torch.where((z := ({m} + b).abs()) == z.amax(-1, keepdim=True), m.sigmoid(), h)",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("piece", COMPARED)
def test_a_maximum_is_found_again(monkeypatch, piece, dtype):
    """Also where a compiler rounds a product in one sweep, adds to it unrounded in another, or 16 bits are stored."""
    monkeypatch.setenv("PELLUCID_CFLAGS", "-O2")
    space = {"torch": torch, "F": F, "math": math}
    exec(f"def compared(x, h, *, g: 'hidden', b: 'hidden'):\n    return x + {piece.format(m='(m := h * g)')}", space)
    layer = pellucid.cell(space["compared"])(47, 47, dtype=dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(47))
    x, h = torch.randn(2, 30, 47).to(dtype)
    expected, found = (results(layer, x, h, backend) for backend in ("naive", "c"))
    for name, value in found.items():
        assert value.isfinite().all()
        if dtype != torch.bfloat16:  # where torch itself rounds what it takes the maximum of
            torch.testing.assert_close(value, expected[name])
