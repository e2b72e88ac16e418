"""Layers that read through windows, by kernel and by torch, and drawn inputs for them."""

from __future__ import annotations

import os
import random

import torch
import torch.nn.functional as F
from hypothesis import settings

import pellucid
from pellucid import nn
from pellucid.kernel import memory

few = settings(max_examples=int(os.environ.get("WINDOW_EXAMPLES", "60")), deadline=None)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
STAGES = {1: nn.ConvPool1d, 2: nn.ConvPool2d, 3: nn.ConvPool3d}
AVERAGES = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def by_kernel(layer, *inputs, **options):
    """The result of a layer, which the kernel must have computed, in memory that is full of NaN before."""
    with pellucid.backend("c"), memory.poison():
        y = layer(*inputs, **options)
    assert layer.backend == "c"
    return y


def by_torch(layer, *inputs, **options):
    """The same by torch."""
    with pellucid.backend("stepwise"):
        y = layer(*inputs, **options)
    assert layer.backend == "torch"
    return y


def check(layer, x, dtype=torch.float64, **options):
    """Values and all gradients of the kernel in a type, against torch's in float64."""
    tolerances = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
    x, layer, results = x.detach().to(dtype), layer.to(dtype), []  # both read the same numbers
    for run, kind in ((by_torch, torch.float64), (by_kernel, dtype)):
        layer, given = layer.to(kind), x.to(kind).requires_grad_()
        y = run(layer, given, **options)
        assert y.dtype == kind
        dy = torch.cos(torch.arange(y.numel())).view(y.shape).to(dtype).to(kind)
        with memory.poison():
            gradients = torch.autograd.grad(y, [given, *layer.parameters()], dy)
        results.append([y, *gradients])
    for theirs, ours in zip(*results, strict=True):
        most = theirs.abs().max().item() if theirs.numel() else 0
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerances[dtype] * (1 + most))


def twice_differentiable(function, *inputs):
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def draw_input(seed, *shape, layout="contiguous"):
    """Normal numbers in float64, laid out in memory as is said."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if layout == "gaps":  # rows of a larger tensor
        return F.pad(x, (2, 3))[..., 2:-3]
    if layout == "swapped":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "turned":
        return x.mT.contiguous().mT
    return x


def of_every_axis(draw, axes):
    """What draws a number for each axis."""
    return lambda numbers: tuple(draw(numbers) for _ in range(axes))


def sweep(count=40):
    """Many shapes of all kernels, for a process in which every access is watched over."""
    draws = random.Random(0)
    for _ in range(count):
        axes = draws.randint(1, 3)
        kernel, stride, padding = ([draws.randint(low, 3) for _ in range(axes)] for low in (1, 1, 0))
        size, groups = [draws.randint(6, 18) for _ in range(axes)], draws.choice((1, 2))
        x = torch.randn(draws.choice((3, 19)), 2 * groups, *size, requires_grad=True)
        layers = [CONVOLUTIONS[axes](2 * groups, 3 * groups, kernel, stride, padding, groups=groups)]
        layers.append(STAGES[axes](2 * groups, 3 * groups, kernel, 1, padding, groups=groups, pool_stride=1))
        layers += [kind[axes](kernel, stride, [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)])
                   for kind in (MAXIMA, AVERAGES)]  # fmt: skip
        for layer in layers:
            with pellucid.backend("c"):
                layer(x).sum().backward()
            assert layer.backend == "c"
    for mode in ("mean", "max"):
        with pellucid.backend("c"):
            nn.LengthPool(mode)(torch.randn(5, 3, 37, requires_grad=True), [5, 1, 0]).sum().backward()
    layer = nn.TextConv(5, 19, (1, 2, 7))
    for batch, time in ((1, 1), (3, 6), (4, 9)):
        with pellucid.backend("c"):
            layer(torch.randn(batch, time, 5, requires_grad=True)).sum().backward()
        assert layer.backend == "c"
