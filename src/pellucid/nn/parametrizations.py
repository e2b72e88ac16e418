"""Weights that are computed from parameters: weight standardization, weight norm and spectral norm.

The namespace of ``torch.nn.utils.parametrizations``, and weight standardization. A function registers its formula with
``torch.nn.utils.parametrize``: the layer's ``weight`` is computed from what ``layer.parametrizations.weight`` holds
whenever it is read, and ``torch.nn.utils.parametrize.remove_parametrizations`` makes it a plain parameter again.

A layer may be copied and pickled, and a copy has a class of its own: removing its parametrization leaves the layer that
it was copied from as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from pellucid.errors import label, shape_text
from pellucid.kernel.autocast import no_autocast
from pellucid.nn.axes import AXES
from pellucid.nn.component import Component
from pellucid.nn.normalization.averages import Average, Grouped
from pellucid.nn.normalization.formula import ALONE, Company
from pellucid.nn.normalization.general import Normalization
from pellucid.nn.swapped.reclassed import Reclassed

__all__ = [
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardization",
    "orthogonal",
    "spectral_norm",
    "weight_norm",
    "weight_standardization",
]

_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, *_TRANSPOSED)


# -- weight standardization -------------------------------------------------------------------------------------------


class WeightStandardization(Normalization):
    """The normalization of a weight over what reaches one output: mean 0 and variance 1, without γ and β.

    Weight, standardized weight: (outputs, inputs, *kernel), or as ``dim`` says. The half types are standardized in
    float32.

    Args:
        dim: the axis of the outputs.
        ndim: the number of axes of the weight.
        eps: added to the variance.
        groups: of a transposed convolution, whose weight has the inputs of all groups along its first axis.
    """

    def __init__(self, dim: int, ndim: int, eps: float = 1e-5, groups: int = 1) -> None:
        super().__init__([axis for axis in range(ndim) if axis != dim], eps=eps)
        self.groups = groups

    def average(self, x: Tensor, real: Tensor | None = None) -> Average:
        """Return the average over what reaches one output: of its group, where there are several."""
        return super().average(x, real) if self.groups == 1 else Grouped(self.groups, real, axis=0)

    def _by_kernel(self, input: Tensor, real: Tensor | None, company: Company = ALONE) -> Tensor | None:
        return super()._by_kernel(input, real, company) if self.groups == 1 else None

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight that is assigned as the one to standardize."""
        return weight

    def extra_repr(self) -> str:
        """Write what is averaged over."""
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"axes={self.averaged}, eps={self.eps}{groups}"


def weight_standardization(
    module: torch.nn.Module, name: str = "weight", eps: float = 1e-5, dim: int | None = None
) -> torch.nn.Module:
    """Bring the weights that reach one output to mean 0 and variance 1.

    Qiao, Wang, Liu, Shen and Yuille, "Micro-batch training with batch-channel normalization and weight
    standardization", arXiv:1903.10520, 2019.

    Args:
        module: the layer.
        name: the name of its parameter.
        eps: added to the variance.
        dim: the axis of the outputs; by default 0, and 1 for a transposed convolution, whose groups are kept apart. The
            U of a cell's ``x @ U`` has them along axis 1.

    Returns:
        The module, with the parameter ``parametrizations.<name>.original``.

    Raises:
        ValueError: the module has no such parameter, or one weight alone reaches an output: it would always be 0.
        IndexError: the parameter has no axis ``dim``.
        NotImplementedError: the parameter is of an integer or complex type.
    """
    fault = functools.partial(_fault, "weight_standardization", module, name)
    weight = _parameter(fault, module, name)
    groups: Any = module.groups if dim is None and isinstance(module, _TRANSPOSED) else 1
    if weight.is_complex():
        raise fault(f"is of {weight.dtype}, which has no deviation.", NotImplementedError)
    axis = _output_axis(fault, module, weight, dim) if weight.ndim else 0
    if weight.ndim < 2 or (weight.numel() and weight.numel() == weight.shape[axis] * groups):
        raise fault(
            f"has the shape {_shape_text(module, weight)}: one weight reaches each output, and minus its mean it "
            "would always be 0. Leave this layer out, or use weight_norm."
        )
    parametrize.register_parametrization(module, name, WeightStandardization(axis, weight.ndim, eps, groups))
    return copyable(module)


# -- weight norm ------------------------------------------------------------------------------------------------------


def norm_except(v: Tensor, dim: int | None) -> Tensor:
    """Take the Euclidean norm over all axes but ``dim``, which keep size 1; over all, as a scalar, if that is None."""
    if dim is None:
        return torch.linalg.vector_norm(v)
    over = [axis for axis in range(v.ndim + 1) if axis != dim]  # one axis more: there is something to sum in a vector
    return torch.linalg.vector_norm(v.unsqueeze(-1), dim=over, keepdim=True).squeeze(-1)


def magnitude_and_direction(g: Tensor, v: Tensor, *, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Make a weight of its magnitude and its direction, w = g·v/‖v‖; v = 0 has no direction and stays 0.

    Salimans and Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural
    networks", NeurIPS 2016, equation 2.
    """
    length = norm(v)
    length = torch.where(length == 0, 1, length)
    return v * (g / length)


class WeightNorm(Component, torch.nn.Module):
    """A weight as its magnitude and its direction.

    Magnitude g: the norm of the weight over all axes but ``dim``, which have size 1; a scalar if ``dim`` is None.
    Direction v, and the weight: any shape. The half types are computed in float32.

    Args:
        dim: the axis along which magnitudes are apart, counted from the front.
    """

    formula = staticmethod(magnitude_and_direction)

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Return the weight."""
        return self.formula(**self.bind(g, v)).to(v.dtype)

    def bind(self, g: Tensor, v: Tensor) -> dict[str, Any]:
        """Return what the formula's symbols stand for."""
        return {"g": _precise(g), "v": _precise(v), "norm": functools.partial(norm_except, dim=self.dim)}

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return magnitude and direction of a weight; that of zeros is all ones, so that it can learn."""
        g = norm_except(weight, self.dim)
        return g, torch.where(g == 0, 1, weight)

    def extra_repr(self) -> str:
        """Write the argument."""
        return f"dim={self.dim}"


def weight_norm(module: torch.nn.Module, name: str = "weight", dim: int | None = 0) -> torch.nn.Module:
    """Learn a weight as its magnitude and its direction: ``torch.nn.utils.parametrizations.weight_norm``.

    Unlike torch's it has right second derivatives and forward-mode ones, keeps ``channels_last``, lets weights of zeros
    learn instead of making them NaN, and reads -1 as the last axis: torch takes the norm over all axes then, as for
    None.

    Args:
        module: the layer.
        name: the name of its parameter.
        dim: the axis along which magnitudes are apart; None for one magnitude of the whole weight.

    Returns:
        The module, with the parameters ``parametrizations.<name>.original0`` (the magnitude: 1 along all axes but
        ``dim``) and ``original1`` (the direction: the weight's shape). It also loads the ``<name>_g`` and ``<name>_v``
        of ``torch.nn.utils.weight_norm``.

    Raises:
        ValueError: the module has no such parameter, or it has another parametrization already.
        IndexError: the parameter has no axis ``dim``.
        NotImplementedError: the parameter is of an integer type.
    """
    fault = functools.partial(_fault, "weight_norm", module, name)
    weight = _parameter(fault, module, name)
    if parametrize.is_parametrized(module, name):
        known = type(module.parametrizations[name][0]).__name__  # type: ignore[index]
        raise fault(
            f"is computed by {known} already, but weight_norm makes two parameters of one, so it comes first. Remove "
            f"the other by torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})."
        )
    axis = None if dim is None else _output_axis(fault, module, weight, dim)
    parametrize.register_parametrization(module, name, WeightNorm(axis), unsafe=True)
    module.register_load_state_dict_pre_hook(functools.partial(_read_old_names, name))
    return copyable(module)


def _read_old_names(name: str, module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename what torch.nn.utils.weight_norm, the older one, has saved."""
    old = [f"{prefix}{name}_{part}" for part in "gv"]
    if parametrize.is_parametrized(module, name) and all(key in state for key in old):
        for index, key in enumerate(old):
            state[f"{prefix}parametrizations.{name}.original{index}"] = state.pop(key)


# -- spectral norm ----------------------------------------------------------------------------------------------------


def matrix_of(weight: Tensor, dim: int) -> Tensor:
    """Lay a weight out as (outputs, everything else)."""
    return weight.movedim(dim, 0).flatten(1)


def divided_by_norm(w: Tensor, *, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """Divide a weight by its spectral norm σ = uᴴWv, of which u and v are the singular vectors; σ = 0 leaves it.

    Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial networks", ICLR 2018,
    equations 8 and 19.
    """
    sigma = torch.vdot(u, matrix_of(w, dim) @ v)
    return w / torch.where(sigma == 0, 1, sigma)


class SpectralNorm(Component, torch.nn.Module):
    """A weight divided by its largest singular value, which a few power iterations at every call in training follow.

    Weight: at least two axes, of which ``dim`` is that of the outputs; the others together are those of the inputs.
    The half types are computed in float32. The buffers ``_u`` and ``_v`` are the singular vectors; they start with 15
    iterations, eval leaves them alone, and a weight of zeros does too.

    Args:
        weight: where they start.
        n_power_iterations: how many at a call.
        dim: the axis of the outputs, counted from the front.
        eps: a product that is no longer than this does not change a vector.
    """

    formula = staticmethod(divided_by_norm)
    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        self.n_power_iterations, self.dim, self.eps = n_power_iterations, dim, eps
        for name, size in zip(("_u", "_v"), matrix_of(weight, dim).shape, strict=True):
            start = weight.detach().new_empty(size).normal_(0, 1)
            self.register_buffer(name, torch.nn.functional.normalize(start, dim=0, eps=eps))
        with no_autocast(weight):
            self._iterate(weight, 15)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight divided by its spectral norm."""
        with no_autocast(weight):
            if self.training:
                self._iterate(weight, self.n_power_iterations)
            return self.formula(**self.bind(weight)).to(weight.dtype)

    def bind(self, weight: Tensor) -> dict[str, Any]:
        """Return what the formula's symbols stand for, u and v as the last call has left them."""
        w = _precise(weight)
        # Copies: a later call changes the buffers, and the gradient of this one still needs them.
        u, v = (vector.to(w.dtype, copy=True) for vector in (self._u, self._v))
        return {"w": w, "u": u, "v": v, "dim": self.dim}

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight that is assigned as the one to divide."""
        return weight

    def extra_repr(self) -> str:
        """Write the arguments."""
        return f"n_power_iterations={self.n_power_iterations}, dim={self.dim}, eps={self.eps}"

    @torch.no_grad()
    def _iterate(self, weight: Tensor, count: int) -> None:
        matrix = matrix_of(_precise(weight.detach()), self.dim)
        u, v = (vector.detach().to(matrix.dtype) for vector in (self._u, self._v))
        for _ in range(count):
            u = self._direction(matrix @ v, u)
            v = self._direction(matrix.mH @ u, v)
        _write(u, self._u)
        _write(v, self._v)

    def _direction(self, product: Tensor, before: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(product)
        return torch.where(length > self.eps, product / length, before)


def _write(value: Tensor, buffer: Tensor) -> None:
    """Change a buffer in place, for replicas share it; where torch.func captures it, out= alone may."""
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(buffer):
        buffer.copy_(value)
    else:
        torch.mul(value, 1, out=buffer)


def spectral_norm(
    module: torch.nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> torch.nn.Module:
    """Divide a weight by its largest singular value: ``torch.nn.utils.parametrizations.spectral_norm``.

    Unlike torch's, a weight that is or was 0 does not make it NaN, and a vector is refused.

    Args:
        module: the layer.
        name: the name of its parameter.
        n_power_iterations: the power iterations whenever the weight is read in training.
        eps: a product that is no longer than this does not change a singular vector.
        dim: the axis of the outputs; by default 0, and 1 for a transposed convolution.

    Returns:
        The module, with the parameter ``parametrizations.<name>.original`` and the buffers
        ``parametrizations.<name>.0._u`` (outputs) and ``._v`` (everything else).

    Raises:
        ValueError: the module has no such parameter, it is a vector, or n_power_iterations is not positive.
        IndexError: the parameter has no axis ``dim``.
        NotImplementedError: the parameter is of an integer type.
    """
    fault = functools.partial(_fault, "spectral_norm", module, name)
    weight = _parameter(fault, module, name)
    if weight.ndim < 2:
        raise fault(
            f"has the shape {shape_text(weight.shape)}, but singular values are those of a matrix: of (outputs, "
            "inputs, ...). For a vector of norm 1 use torch.nn.functional.normalize, for a learnt norm weight_norm."
        )
    axis = _output_axis(fault, module, weight, dim)
    if n_power_iterations < 1:
        raise ValueError(
            f"nn.parametrizations.spectral_norm: n_power_iterations={n_power_iterations} is not positive; 1 is enough "
            "for weights that change slowly."
        )
    parametrize.register_parametrization(module, name, SpectralNorm(weight, n_power_iterations, axis, eps))
    return copyable(module)


# -- what they share --------------------------------------------------------------------------------------------------


def _precise(x: Tensor) -> Tensor:
    """Return float32 instead of a half type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _fault(
    function: str, module: torch.nn.Module, name: str, text: str, kind: type[Exception] = ValueError
) -> Exception:
    return kind(f"nn.parametrizations.{function}: the parameter {name!r} of {label(module)} {text}")


def _parameter(fault: Callable[..., Exception], module: torch.nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of that name; refuse one that no formula can read."""
    computed: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    known = [n for n, value in (*module._parameters.items(), *module._buffers.items()) if value is not None]
    known += list(computed)
    if name not in known:
        cure = f"It has {', '.join(known)}." if known else "It has none of its own: pass the layer that has."
        raise fault(f"does not exist. {cure}")
    weight = getattr(module, name)
    if is_lazy(weight):
        raise fault("has no shape yet. Call the layer once with an input, then parametrize it.")
    if not (weight.is_floating_point() or weight.is_complex()):
        raise fault(f"is of {weight.dtype}, which has no norm. Convert it: module.float().", NotImplementedError)
    return weight


def _output_axis(fault: Callable[..., Exception], module: torch.nn.Module, weight: Tensor, dim: int | None) -> int:
    """Return the axis of the outputs, counted from the front."""
    if dim is None:
        return 1 if isinstance(module, _TRANSPOSED) else 0
    if not -weight.ndim <= dim < weight.ndim:
        known = f"from {-weight.ndim} to {weight.ndim - 1}" if weight.ndim else "None"
        raise fault(
            f"has the shape {_shape_text(module, weight)}, so dim is {known}, not {dim}.",
            IndexError,
        )
    return dim % weight.ndim


def _shape_text(module: torch.nn.Module, weight: Tensor) -> str:
    """Write the shape of a weight, with the meaning of its axes where the layer is one of torch.nn's with weights."""
    if weight.ndim < 2 or not isinstance(module, (torch.nn.Linear, RNNBase, torch.nn.RNNCellBase, *_CONVOLUTIONS)):
        return shape_text(weight.shape)
    pair = ("inputs", "outputs") if isinstance(module, _TRANSPOSED) else ("outputs", "inputs")
    return shape_text(weight.shape, (*pair, *AXES.get(weight.ndim - 2, ())))


# -- copies -----------------------------------------------------------------------------------------------------------
# torch gives a parametrized module a class of its own, which has the computed weights as properties. Its deepcopy lets
# both modules share that class, and removing a parametrization deletes the property for both; pickle is refused.


def copyable(module: torch.nn.Module) -> torch.nn.Module:
    """Let copies of a parametrized module, and unpickled ones, have a class of their own."""
    kind: Any = type(module)
    for method in {"__deepcopy__", "__getstate__"} & vars(kind).keys():
        delattr(kind, method)
    kind.__reduce_ex__ = _reduce
    return module


def _reduce(module: torch.nn.Module, protocol: Any) -> tuple[Any, ...]:
    kind = type(module)
    if isinstance(module, RNNBase):  # it keeps a list of its weights, which it renews when one of them is another
        flat = [module._parameters.get(name, torch.empty(0)) for name in module._flat_weights_names]
        state: Any = {k: v for k, v in vars(module).items() if k != "_flat_weight_refs"} | {"_flat_weights": flat}
    else:
        state = super(kind, module).__getstate__()
    base = kind.__bases__[0]
    start = functools.partial(base._blank, base._own_kind) if issubclass(base, Reclassed) else base
    return _rebuild, (start, tuple(module.parametrizations)), state  # type: ignore[arg-type]


def _rebuild(start: Any, names: tuple[str, ...]) -> torch.nn.Module:
    """Make a module whose named weights are computed, of a class or what makes objects; its state comes afterwards."""
    module = start() if isinstance(start, functools.partial) else start.__new__(start)
    torch.nn.Module.__init__(module)
    for name in names:
        module.register_buffer(name, torch.empty(0))
        parametrize.register_parametrization(module, name, torch.nn.Identity(), unsafe=True)
    return copyable(module)
