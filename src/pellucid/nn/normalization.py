"""Normalization: (x − μ)/√(σ² + ε)·γ + β. The members of the family differ in what is averaged and where γ, β vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import label, shape_text
from pellucid.nn import lengths as real_lengths
from pellucid.nn.averages import Average, Over
from pellucid.nn.component import Component, SymbolShape
from pellucid.nn.padding import real_entries
from pellucid.nn.windowed import AXES

__all__ = ["Normalization", "NormalizationFamily", "normalize"]


def normalize(
    x: Tensor, *, average: Callable[[Tensor], Tensor], gamma: Tensor | float, beta: Tensor | float, eps: float
) -> Tensor:
    """Bring ``x`` to mean 0 and variance 1 over what is averaged; then let γ and β take back what was good.

    Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 1.
    """
    mu = average(x)
    var = average((x - mu) ** 2)
    x_hat = (x - mu) / torch.sqrt(var + eps)
    return x_hat * gamma + beta


class NormalizationFamily(Component, torch.nn.Module):
    """What the members share.

    ``forward(x, lengths=None, mask=None)``: ``lengths`` counts the real steps of each sample along the time axis,
    ``mask`` (bool, True = real) broadcasts to the input without its feature axis. Padding does not enter the
    statistics nor the gradients, may hold anything, NaN too, and comes out as 0.

    Without padding torch's own operator runs. With padding that the statistics would see, the formula runs, in
    float32 for the half types; it first moves the input close to 0, which changes nothing but its rounding.
    """

    formula = staticmethod(normalize)
    weight: Any
    bias: Any
    eps: Any

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes of an input, and refuse a wrong one."""
        raise NotImplementedError

    def averaged_axes(self, x: Tensor) -> tuple[tuple[int, str], ...]:
        """Return the axes over which the layer averages, and what they mean: the direction of the average."""
        names = self.axes(x)
        return tuple((axis, names[axis]) for axis in self._average_over(x))

    def average(self, x: Tensor, real: Tensor | None = None) -> Average:
        """Return the average that the formula takes of an input."""
        return Over(self._average_over(x), real)

    def forward(self, input: Tensor, lengths: real_lengths.Lengths | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize; see the class for lengths and mask."""
        axes = self._check(input)
        real = self._real(input, axes, lengths, mask)
        if real is None:
            return self._plain(input)
        if all(real.shape[axis] == 1 for axis in self._mixed(input)):  # no statistic sees both real entries and others
            return self._plain(input.masked_fill(~real, 0)).masked_fill(~real, 0)
        return self._by_formula(input, real)

    def bind(
        self, input: Tensor, lengths: real_lengths.Lengths | None = None, mask: Tensor | None = None
    ) -> dict[str, Any]:
        """Return what the formula's symbols stand for. Under a mask γ and β are 0 at padding, and so is the result."""
        return self._bind(input, self._real(input, self._check(input), lengths, mask))

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the shapes of γ and β; given an input, its shape and those of its averages too."""
        shapes = []
        if inputs:
            (x,) = inputs
            axes, averaged, facts = self.axes(x), self._average_shape(x), self._facts(x)
            shapes = [SymbolShape("x", tuple(x.shape), axes, "norm.x", False)]
            shapes += [SymbolShape(name, averaged, axes, f"norm.{name}", False, facts) for name in self._averages()]
        for name, parameter, title in (("gamma", self.weight, "weight"), ("beta", self.bias, "bias")):
            if parameter is not None:
                shape, axes = tuple(parameter.shape), self._affine_axes()
                shapes.append(SymbolShape(name, shape, axes, f"norm.{name}", True, {"parameter": title}))
        return shapes

    # -- what a member says -------------------------------------------------------------------------------------

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        """Axes that are averaged."""
        raise NotImplementedError

    def _mixed(self, x: Tensor) -> tuple[int, ...]:
        """Axes along which the entries of this input change each other."""
        return self._average_over(x)

    def _average_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of an average."""
        over = self._average_over(x)
        return tuple(1 if axis in over else size for axis, size in enumerate(x.shape))

    def _facts(self, x: Tensor) -> dict[str, Any]:
        """What may be said of the averages."""
        return {"averaged": [name for _, name in self.averaged_axes(x)]}

    def _affine_axes(self) -> tuple[str, ...]:
        """Meaning of the axes of γ and β."""
        raise NotImplementedError

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        """Lay γ or β along the axes of the input that they vary along."""
        raise NotImplementedError

    def _feature_axis(self, x: Tensor) -> int:
        """Axis that a mask leaves out."""
        raise NotImplementedError

    def _time_axis(self, x: Tensor) -> int | None:
        """Axis along which lengths count."""
        raise NotImplementedError

    def _averages(self) -> tuple[str, ...]:
        """Names of what the formula averages."""
        return ("mu", "var")

    def _plain(self, input: Tensor) -> Tensor:
        """Run torch's operator."""
        return super().forward(input)

    # -- the formula --------------------------------------------------------------------------------------------

    def _bind(self, input: Tensor, real: Tensor | None) -> dict[str, Any]:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        x = x if real is None else x.masked_fill(~real, 0)
        gamma: Tensor | float = 1.0 if self.weight is None else self._spread(self.weight, x)
        beta: Tensor | float = 0.0 if self.bias is None else self._spread(self.bias, x)
        if real is not None:
            gamma, beta = gamma * real, beta * real
        return {"x": x, "average": self.average(x, real), "gamma": gamma, "beta": beta, "eps": self.eps}

    def _by_formula(self, input: Tensor, real: Tensor | None) -> Tensor:
        bound = self._bind(input, real)
        average, x, seen = bound["average"], bound["x"], []
        near = average(x.detach())

        def observed(values: Tensor) -> Tensor:
            seen.append(average(values))
            return seen[-1]

        y = self.formula(**bound | {"x": x - near, "average": observed})
        mu, var = seen
        self._remember(average, x, near + mu.detach(), var.detach())
        return y.to(input.dtype)

    def _remember(self, average: Any, x: Tensor, mu: Tensor, var: Tensor) -> None:
        """Keep the statistics of a batch, if the layer does."""

    # -- checks -------------------------------------------------------------------------------------------------

    def _real(
        self, x: Tensor, axes: Sequence[str], lengths: real_lengths.Lengths | None, mask: Tensor | None
    ) -> Tensor | None:
        return real_entries(self, x, axes, lengths, mask, self._feature_axis(x), self._time_axis(x))

    def _check(self, x: Tensor) -> tuple[str, ...]:
        axes = self.axes(x)
        if not x.is_floating_point():
            cure = "Normalize the two parts of torch.view_as_real(x)" if x.is_complex() else "Pass x.float()"
            raise NotImplementedError(f"{label(self)}: the input is of {x.dtype}, which has no deviation. {cure}.")
        stored = self.weight if self.weight is not None else getattr(self, "running_mean", None)
        if stored is not None and stored.dtype != x.dtype and torch.float64 in (stored.dtype, x.dtype):
            raise RuntimeError(
                f"{label(self)}: the input is of {x.dtype}, but the layer's parameters are of {stored.dtype}. "
                f"Pass x.to({stored.dtype}), or call layer.to({x.dtype})."
            )
        return axes

    def _misfit(self, x: Tensor, wanted: str, cure: str, kind: type[Exception], axes: Sequence[str] = ()) -> Exception:
        return kind(
            f"{label(self)}: the input has the shape {shape_text(x.shape, axes)}, but the layer reads {wanted}. {cure}"
        )


def space_axes(count: int) -> tuple[str, ...]:
    """Name the ``count`` axes of (batch, channels, *space)."""
    space = AXES.get(count - 2, tuple(f"space {axis}" for axis in range(1, count - 1)))
    return ("batch", "channels", *space)[:count]


class ChannelFirst(NormalizationFamily):
    """A member that reads (batch, channels, *space) and has one γ and one β for each channel."""

    def _affine_axes(self) -> tuple[str, ...]:
        return ("channels",)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        return parameter.reshape(1, -1, *(1,) * (x.ndim - 2))

    def _feature_axis(self, x: Tensor) -> int:
        return 1

    def _time_axis(self, x: Tensor) -> int | None:
        return 2 if x.ndim == 3 else None


class Normalization(NormalizationFamily):
    """The general member: any axes averaged, γ and β along any axes, statistics of the input itself.

    ``Normalization(axes=-1, affine_axes=-1, shape=64)`` is ``LayerNorm(64)``; ``Normalization(axes=(0, 2),
    affine_axes=1, shape=16)`` is what ``BatchNorm1d(16)`` computes in training.

    Input and output: any shape that has these axes. ``mask`` broadcasts to the input itself (its last axes first).

    Args:
        axes: the axes that are averaged.
        affine_axes: the axes along which γ and β vary; none by default: no γ, no β.
        shape: the sizes of ``affine_axes``.
        eps: added to the variance.
        bias: whether there is a β.
        time_axis: where ``lengths`` count.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: ``axes`` is empty, or ``shape`` has not as many sizes as there are ``affine_axes``.
        RuntimeError: an input has not these axes, or another size along ``affine_axes``.
    """

    def __init__(
        self,
        axes: int | Sequence[int],
        affine_axes: int | Sequence[int] = (),
        shape: int | Sequence[int] = (),
        eps: float = 1e-5,
        *,
        bias: bool = True,
        time_axis: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.averaged, self.affine_axes, self.shape = _tuple(axes), _tuple(affine_axes), _tuple(shape)
        self.eps, self.time_axis = eps, time_axis
        if not self.averaged:
            raise ValueError("nn.Normalization: axes is empty; name at least one axis to average over.")
        if len(self.affine_axes) != len(self.shape):
            raise ValueError(
                f"nn.Normalization: affine_axes={self.affine_axes} and shape={self.shape} must have equal lengths: one "
                f"size for each axis along which γ and β vary."
            )
        affine = bool(self.affine_axes)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = torch.nn.Parameter(torch.ones(self.shape, **options)) if affine else None
        self.bias = torch.nn.Parameter(torch.zeros(self.shape, **options)) if affine and bias else None

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes by their numbers."""
        names = tuple(f"axis {axis}" for axis in range(x.ndim))
        used = (*self.averaged, *self.affine_axes)
        if not all(-x.ndim <= axis < x.ndim for axis in used):
            raise self._misfit(x, f"inputs with the axes {sorted(set(used))}", "Add axes to it.", RuntimeError, names)
        if len(sizes := {axis % x.ndim for axis in self.averaged}) != len(self.averaged):
            raise self._misfit(x, f"axes={self.averaged} as {len(sizes)}", "Name each once.", RuntimeError, names)
        for axis, size in zip(self.affine_axes, self.shape, strict=True):
            if x.shape[axis] != size:
                wanted = f"size {size} along axis {axis % x.ndim}"
                raise self._misfit(x, wanted, f"Build it with shape {x.shape[axis]} there.", RuntimeError, names)
        return names

    def extra_repr(self) -> str:
        """Write the arguments."""
        affine = f", affine_axes={self.affine_axes}, shape={self.shape}" if self.affine_axes else ""
        return f"axes={self.averaged}{affine}, eps={self.eps}, bias={self.bias is not None}"

    def _real(
        self, x: Tensor, axes: Sequence[str], lengths: real_lengths.Lengths | None, mask: Tensor | None
    ) -> Tensor | None:
        time = self.time_axis if x.ndim > self.time_axis else None
        real = real_entries(self, x.unsqueeze(-1), (*axes, "1"), lengths, mask, -1, time)
        return None if real is None else real.squeeze(-1)

    def _plain(self, input: Tensor) -> Tensor:
        return self._by_formula(input, None)

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return tuple(axis % x.ndim for axis in self.averaged)

    def _affine_axes(self) -> tuple[str, ...]:
        return tuple(f"axis {axis}" for axis in self.affine_axes)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        places = [axis % x.ndim for axis in self.affine_axes]
        order = sorted(range(len(places)), key=places.__getitem__)
        sizes = [x.shape[axis] if axis in places else 1 for axis in range(x.ndim)]
        return parameter.permute(order).reshape(sizes)


def _tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
