"""The normalization family: its members differ in what is averaged and where γ and β vary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.errors import label, refuse_others, shape_text
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.rows import nested
from pellucid.kernel.tensors import language, language_for, runs
from pellucid.nn import lengths as real_lengths
from pellucid.nn.component import Component, Running, SymbolShape
from pellucid.nn.normalization.averages import Average, Over
from pellucid.nn.normalization.formula import (
    AFFINE,
    ALONE,
    Company,
    Composed,
    normalize,
    normalized,
    recipe_of,
    to_formula,
)
from pellucid.nn.padding import real_entries

# Entries of an input below which torch's operator is as fast: what Python does around a kernel takes longer than it.
SMALL = 2**19
SMALL_ON_GPU = 2**22  # the same on a GPU, which computes while Python goes on
KEPT = ("weight", "bias", "running_mean", "running_var")


class _Call(NamedTuple):
    """The arguments of `nested.run`."""

    recipe: nested.Recipe
    tensors: tuple[Tensor, ...]
    axes: Callable[..., nested.Axes]
    reference: Callable[..., tuple[Tensor, ...]]
    numbers: tuple[float, ...]
    draws: nested.Draws | None
    kind: tuple[Any, ...]


class NormalizationFamily(Running, Component, torch.nn.Module):
    """What the members share.

    ``forward(x, lengths=None, mask=None)``: ``lengths`` counts the real steps of each sample along the time axis,
    ``mask`` (bool, True = real) broadcasts to the input without its feature axis. Padding does not enter the
    statistics nor the gradients, may hold anything, NaN too, and comes out as 0.

    The formula runs as one kernel, on the CPU as far as there is a compiler, on a GPU as far as there is Triton.
    Torch's own operators run on other devices and in what torch.compile and torch.func see, unless padding is among
    what is averaged: then the formula runs in plain torch. They run, too, where autocast on a GPU would have them in
    float32, and on the CPU where they are as fast: on inputs of fewer than 524,288 entries, and where the channels of
    BatchNorm or of small groups lie side by side, unless the input is so far from 0 that they would lose digits; on a
    GPU on inputs of fewer than 4,194,304 entries without padding, which it is done with before Python is.
    """

    added = (*Running.added, "_right")
    formula = staticmethod(normalize)
    centred = True  # whether the formula moves the input by its mean
    cast_by_autocast = True  # whether autocast on a GPU runs torch's operator of that name in float32
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
        if lengths is None and mask is None:
            self._check_once(input)
            return self._plain(input)
        refuse_others(self, input)
        real = self._real(input, self._check(input), lengths, mask)
        assert real is not None
        y = self._by_kernel(input, real)
        if y is not None:
            return y
        if all(real.shape[axis] == 1 for axis in self._mixed(input)):  # no statistic sees both real entries and others
            return self._plain(input.masked_fill(~real, 0)).masked_fill(~real, 0)
        return self._by_formula(input, real)

    def bind(
        self, input: Tensor, lengths: real_lengths.Lengths | None = None, mask: Tensor | None = None
    ) -> dict[str, Any]:
        """Return what the formula's symbols stand for. Under a mask γ and β are 0 at padding, and so is the result."""
        real = self._real(input, self._check(input), lengths, mask)
        bound = to_formula(input, real, self._spread_all(self._symbols(input), input))
        return {"x": bound["x"], "average": self.average(bound["x"], real), **bound}

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the shapes of γ and β; given an input, its shape and those of its averages too."""
        shapes = []
        if inputs:
            (x,) = inputs
            axes, averaged, facts = self.axes(x), self._average_shape(x), self._facts(x)
            shapes = [SymbolShape("x", tuple(x.shape), axes, "norm.x", False)]
            shapes += [SymbolShape(n, averaged, axes, self._reason(n), False, facts) for n in self._averages()]
        for name, parameter, title in (("gamma", self.weight, "weight"), ("beta", self.bias, "bias")):
            if parameter is not None:
                axes = self._affine_axes()
                shapes.append(SymbolShape.of_weight(self, title, name, axes, f"norm.{name}", parameter=title))
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

    def _reason(self, name: str) -> str:
        """Key of why an average has its shape."""
        return f"norm.{name}"

    def _affine_axes(self) -> tuple[str, ...]:
        """Meaning of the axes of γ and β."""
        raise NotImplementedError

    def _affine_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of γ and β, and of what is remembered, that an input needs."""
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

    def _symbols(self, x: Tensor) -> dict[str, Tensor | float]:
        """What the formula reads beside the input and its average."""
        weight, bias = self.weight, self.bias  # a parametrization computes them anew whenever they are asked for
        return {"gamma": 1.0 if weight is None else weight, "beta": 0.0 if bias is None else bias, "eps": self.eps}

    def _remembered(self, x: Tensor) -> dict[str, Tensor]:
        """The statistics that are taken for averages, if they are: "running_mean" and "running_var"."""
        return {}

    def _kind(self) -> tuple[Any, ...]:
        """What decides, for a shape, how the formula's symbols lie along the input's axes."""
        return (type(self),)

    def _observes(self) -> bool:
        """Whether the layer keeps the averages of a batch."""
        return False

    def _grouped(self, x: Tensor) -> Tensor:
        """An input, or what is spread along it, with the axes that the formula's average knows."""
        return x

    def _averaged_when_grouped(self, x: Tensor) -> tuple[int, ...]:
        return self._average_over(x)

    def _plain(self, input: Tensor) -> Tensor:
        """Normalize what has no padding."""
        y = None
        if runs(input) and self._suits_operator(input):  # in this order: a compiler would guard the size
            self._was_run_by("torch")
            y = self._by_operator(input)
        if y is None:
            y = self._by_kernel(input, None)
        return super().forward(input) if y is None else y

    def _suits_operator(self, x: Tensor) -> bool:
        """Whether torch's operator is as fast as a kernel."""
        return x.numel() < SMALL

    def _by_operator(self, input: Tensor) -> Tensor | None:
        """Run torch's operator where it suits; None where it has none that tells how far the input is from 0."""
        return None

    def with_company(self, input: Tensor, company: Company) -> Tensor | None:
        """Compute in one pass what stands around the layer too; None where that has no kernel."""
        self._check_once(input)
        return self._by_kernel(input, None, company)

    def kernel_with(self, input: Tensor, company: Company) -> str | None:
        """The text of the kernel that `with_company` runs; None where it has none."""
        call = self._call(input, None, self._observes(), company)
        return None if call is None else nested.text_of(call.recipe, call.tensors, call.axes, call.kind)

    # -- the formula --------------------------------------------------------------------------------------------

    def _by_kernel(self, input: Tensor, real: Tensor | None, company: Company = ALONE) -> Tensor | None:
        """Run the formula as one kernel, None where it has none."""
        results = self._results(input, real, self._observes(), company)
        self._was_run_by("torch" if results is None else language_for(input))
        if results is not None and len(results) > 1:
            self._remember(self.average(input, real), input, *results[1:])
        return None if results is None else results[0]

    def _results(
        self, input: Tensor, real: Tensor | None, observed: bool, company: Company = ALONE
    ) -> tuple[Tensor, ...] | None:
        """The kernel's result, and if they are to be observed the averages of the batch."""
        call = self._call(input, real, observed, company)
        return None if call is None else nested.run(*call)

    def _call(self, input: Tensor, real: Tensor | None, observed: bool, company: Company) -> _Call | None:
        """The formula as `nested.run` takes it; None where it has no kernel."""
        symbols = self._symbols(input) | self._remembered(input)
        own = {name: value for name, value in symbols.items() if isinstance(value, Tensor)}
        given = own | dict(company.tensors)
        if real is not None:
            given["real"] = real
        tensors = (input, *given.values())
        spoken = language(*tensors)
        if self._is_cast(input) or spoken is None or (real is not None and real.numel() == 1):
            return None
        alone = real is None and company is ALONE
        if alone and spoken == "triton" and chosen_backend() == "auto" and input.numel() < SMALL_ON_GPU:
            return None
        constants = tuple((n, v) for n, v in symbols.items() if n in AFFINE and n not in given)
        numbers = {n: float(v) for n, v in symbols.items() if n not in AFFINE and n not in given}
        drawn = company.draws is not None
        if drawn:
            numbers["p"] = company.p
        centred = self.centred and "running_mean" not in given
        formula = self.formula if company is ALONE else Composed(self.formula, company.activation)
        name = type(self).__name__
        recipe = recipe_of(name, formula, ("x", *given), tuple(numbers), constants, centred, observed, drawn)

        def again(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            tensors = dict(zip(given, others, strict=True))
            padding = tensors.pop("real", None)
            beside: dict[str, Any] = {name: tensors.pop(name) for name in company.tensors}
            if company.draws is not None:
                beside |= {"draws": company.draws.tensor("draws", x.shape, x.device), "p": company.p}
            values = self._spread_all(symbols | tensors, x) | beside
            taken = functools.partial(self.average, real=padding)
            return normalized(formula, taken, x, padding, values, centred)

        spread = functools.partial(self._in_axes, tuple(given), drawn)
        return _Call(recipe, tensors, spread, again, tuple(numbers.values()), company.draws, self._kind())

    def _is_cast(self, x: Tensor) -> bool:
        """Whether torch's operator would have its input cast by autocast: on a GPU, to float32."""
        return self.cast_by_autocast and x.is_cuda and torch.is_autocast_enabled("cuda")

    def _in_axes(self, names: Sequence[str], drawn: bool, x: Tensor, *others: Tensor) -> nested.Axes:
        """How the input and what the formula reads beside it lie along its axes."""
        whole = self._grouped(x.detach())
        views = [nested.View(whole.stride())]
        for name, value in zip(names, others, strict=True):
            alike = name in ("real", "sublayer", "residual")
            beside = self._grouped(value.detach() if alike else self._spread(value.detach(), x))
            views.append(nested.spread(beside, whole.ndim))
        if drawn:
            views.append(nested.View(torch.empty(whole.shape, device="meta").stride()))
        averaged = () if "running_mean" in names else self._averaged_when_grouped(x)
        return nested.Axes(tuple(whole.shape), averaged, tuple(views))

    def _spread_all(self, symbols: Mapping[str, Tensor | float], x: Tensor) -> dict[str, Tensor | float]:
        return {
            name: self._spread(value, x) if isinstance(value, Tensor) else value
            for name, value in symbols.items()
            if not name.startswith("running")
        }

    def _by_formula(self, input: Tensor, real: Tensor | None) -> Tensor:
        taken = functools.partial(self.average, real=real)
        y, *averages = normalized(
            self.formula, taken, input, real, self._spread_all(self._symbols(input), input), self.centred
        )
        if averages:
            self._remember(self.average(input, real), input, *averages)
        return y

    def _remember(self, average: Any, x: Tensor, mu: Tensor, var: Tensor) -> None:
        """Keep the statistics of a batch, if the layer does."""

    # -- checks -------------------------------------------------------------------------------------------------

    def _real(
        self, x: Tensor, axes: Sequence[str], lengths: real_lengths.Lengths | None, mask: Tensor | None
    ) -> Tensor | None:
        return real_entries(self, x, axes, lengths, mask, self._feature_axis(x), self._time_axis(x))

    def _check_once(self, x: Tensor) -> None:
        """Check an input, unless one like it has been found to be right: that takes longer than a small layer."""
        refuse_others(self, x)
        if torch.compiler.is_compiling():
            self._check(x)
            return
        stored = (*self._parameters.values(), *self._buffers.values())
        kinds = [None if tensor is None else (tensor.shape, tensor.dtype) for tensor in stored]
        kind = x.shape, x.dtype, self.training, self.__dict__.get("eps"), kinds
        if self.__dict__.get("_right") != kind:
            self._check(x)
            self.__dict__["_right"] = kind

    def _check(self, x: Tensor) -> tuple[str, ...]:
        axes = self.axes(x)
        if not x.is_floating_point():
            cure = "Normalize the two parts of torch.view_as_real(x)" if x.is_complex() else "Pass x.float()"
            raise NotImplementedError(f"{label(self)}: the input is of {x.dtype}, which has no deviation. {cure}.")
        kept = {name: getattr(self, name, None) for name in KEPT}
        for name, value in kept.items():  # an operator, or a kernel, would read memory as far as the input wants it
            if value is not None and value.shape != self._affine_shape(x):
                raise RuntimeError(
                    f"{label(self)}: {name} is {shape_text(value.shape)}, but the input, {shape_text(x.shape, axes)}, "
                    f"wants {shape_text(self._affine_shape(x))}. Put one of that shape in its place."
                )
        stored = self._typed()
        if stored is not None and not self._goes_with(stored.dtype, x):
            raise RuntimeError(
                f"{label(self)}: the input is of {x.dtype}, but the layer's parameters are of {stored.dtype}. "
                f"Pass x.to({stored.dtype}), or call layer.to({x.dtype})."
            )
        return axes

    def _typed(self) -> Tensor | None:
        """What is of the input's type, or float32 beside an input of 16 bits; None where any type goes."""
        stored: Tensor | None = self.weight
        return stored

    @staticmethod
    def _goes_with(dtype: torch.dtype, x: Tensor) -> bool:
        """Whether parameters of a type go with an input, as in torch; autocast may yet change all but float64."""
        if autocast_dtype(x) is not None:
            return dtype == x.dtype or torch.float64 not in (dtype, x.dtype)
        return dtype == x.dtype or (dtype == torch.float32 and x.dtype.itemsize == 2)

    def _misfit(self, x: Tensor, wanted: str, cure: str, kind: type[Exception], axes: Sequence[str] = ()) -> Exception:
        return kind(
            f"{label(self)}: the input has the shape {shape_text(x.shape, axes)}, but the layer reads {wanted}. {cure}"
        )


class ChannelFirst(NormalizationFamily):
    """A member that reads (batch, channels, *space) and has one γ and one β for each channel."""

    def _affine_axes(self) -> tuple[str, ...]:
        return ("channels",)

    def _affine_shape(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1],)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        return parameter.reshape(1, -1, *(1,) * (x.ndim - 2))

    def _feature_axis(self, x: Tensor) -> int:
        return 1

    def _time_axis(self, x: Tensor) -> int | None:
        return 2 if x.ndim == 3 else None


def wrong_channels(x: Tensor, wanted: int, argument: str = "num_features") -> str:
    """Guess why the channels do not fit."""
    axes = [axis for axis in range(2, x.ndim) if x.shape[axis] == wanted]
    if axes:
        return f"Axis {axes[-1]} has that size: if it holds the channels, pass x.movedim({axes[-1]}, 1)."
    return f"Pass {argument}={x.shape[1]}, or change what comes before."
