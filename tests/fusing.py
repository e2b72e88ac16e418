"""Models in which layers stand side by side, and what the tests of their fusions ask of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.models import verification

S, R = torch.nn.Sequential, torch.nn.ReLU


class Residual(torch.nn.Module):
    """A block of a residual network: the norm's result is added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(4)
        self.relu = torch.nn.ReLU(inplace=True)
        self.last = torch.nn.BatchNorm2d(4)
        self.shortcut = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        y = self.last(y)
        y += self.shortcut(x)
        return self.relu(y)


class Output(torch.nn.Module):
    """What a sublayer of a transformer ends with."""

    def __init__(self, norm: torch.nn.Module | None = None, p: float = 0.3) -> None:
        super().__init__()
        self.dense, self.dropout = torch.nn.Linear(6, 6), torch.nn.Dropout(p)
        self.norm = torch.nn.LayerNorm(6) if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dropout(self.dense(x)) + x)


class Functional(torch.nn.Module):
    """A norm and a function of the user's choice."""

    def __init__(self, norm: torch.nn.Module, function) -> None:
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(x))


class Body(torch.nn.Module):
    """A forward of one's own around a norm, a function, a dropout and a convolution."""

    body = staticmethod(lambda self, x: x)

    def __init__(self, body, **layers: torch.nn.Module) -> None:
        super().__init__()
        self.body = body
        self.norm, self.act, self.dropout = torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        self.layer = torch.nn.LayerNorm(5)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def twice(self, x):
    y = self.norm(x)
    return self.act(y) + y


def picture(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 6, 6), generator=torch.Generator().manual_seed(1))


def ready(model: torch.nn.Module, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model whose norms have parameters and statistics that say something."""
    generator = torch.Generator().manual_seed(2)
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.data.add_(torch.rand(tensor.shape, generator=generator) * 0.5)
    return model.to(dtype)


def results(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers."""
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    y = model(x)
    ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    gradients = torch.autograd.grad(y, [x, *model.parameters()], ramp)
    return [y.detach(), *gradients, *(b.detach().clone() for b in model.buffers() if b.is_floating_point())]


def far(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of all: some gradients are 0 but for rounding."""
    scale = max(map(verification.largest, theirs))
    return max(verification.difference(a, b, scale) for a, b in zip(ours, theirs, strict=True))


def follows(model: torch.nn.Module, training: bool) -> bool:
    """Whether a module has a plan for this mode, and runs by it."""
    plans = [
        plan for m in model.modules() if "_fused_plans" in vars(m) for plan in vars(m)["_fused_plans"].known.items()
    ]
    return any(key[0] is training and plan.run is not None for key, plan in plans)


def kinds(report, kind: str = "layers") -> list[str]:
    return [group.before for group in report.fused if group.kind == kind]
