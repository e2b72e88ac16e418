"""Layers that stand side by side, computed as one: a norm with what is around it, a convolution with its BatchNorm.

What a fused call computes is decided by the layers as they are at the call: their parameters, modes, options. Where one
has changed, or where one pass is not the faster way, they run one by one.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.rows import nested
from pellucid.kernel.tensors import language, language_for, runs
from pellucid.nn.dropout.dropout import Dropout
from pellucid.nn.normalization.batch_norm import BatchNormFamily
from pellucid.nn.normalization.formula import Company
from pellucid.nn.normalization.normalization import NormalizationFamily
from pellucid.nn.swapped.reclassed import made_of


@dataclass(frozen=True)
class Activation:
    """A function, entry by entry, with its options; two with the same ones are equal."""

    function: Callable[..., Tensor]
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Compute it, into memory of its own."""
        return self.function(x, **dict(self.options))

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.function.__name__}({options})" if options else self.function.__name__


# The layers of torch.nn that are a function, and the names of its options: as attributes, and as arguments.
LAYERS: dict[type[torch.nn.Module], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    torch.nn.ReLU: (F.relu, ()),
    torch.nn.ReLU6: (F.relu6, ()),
    torch.nn.Hardtanh: (F.hardtanh, ("min_val", "max_val")),
    torch.nn.LeakyReLU: (F.leaky_relu, ("negative_slope",)),
    torch.nn.ELU: (F.elu, ("alpha",)),
    torch.nn.CELU: (F.celu, ("alpha",)),
    torch.nn.SELU: (F.selu, ()),
    torch.nn.SiLU: (F.silu, ()),
    torch.nn.GELU: (F.gelu, ("approximate",)),
    torch.nn.Mish: (F.mish, ()),
    torch.nn.Hardswish: (F.hardswish, ()),
    torch.nn.Sigmoid: (torch.sigmoid, ()),
    torch.nn.Tanh: (torch.tanh, ()),
    torch.nn.Softplus: (F.softplus, ("beta", "threshold")),
}
OPTIONS = dict(LAYERS.values())
FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    **{function: function for function in OPTIONS},
    **{getattr(torch, name): getattr(F, name) for name in ("relu", "selu", "celu")},
    **{F.sigmoid: torch.sigmoid, F.tanh: torch.tanh},
    **{"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu_": F.relu},  # methods of a tensor
}


def activation_of(layer: torch.nn.Module) -> Activation | None:
    """Return what an activation layer of torch.nn computes; None for any other layer."""
    function, names = LAYERS.get(made_of(layer), (None, ()))
    return None if function is None else Activation(function, tuple((name, getattr(layer, name)) for name in names))


def activation_of_call(function: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Activation | None:
    """Return what calling a function, or the method of this name, computes of its first argument, if it is known."""
    known = FUNCTIONS.get(function)
    if known is None:
        return None
    names = OPTIONS[known]
    given = dict(zip((*names, "inplace"), args[1:], strict=False)) | dict(named)
    given.pop("inplace", None)
    constant = all(isinstance(value, (int, float, str)) for value in given.values())
    if not constant or len(args) > len(names) + 2 or not given.keys() <= set(names):
        return None
    defaults = _defaults(known)
    return Activation(known, tuple((name, given.get(name, defaults[name])) for name in names))


def _defaults(function: Callable[..., Tensor]) -> dict[str, Any]:
    """The options of a function where none are given; torch has no signature of those that are built in."""
    if not OPTIONS[function]:
        return {}
    if function is F.gelu:
        return {"approximate": "none"}
    if function is F.softplus:
        return {"beta": 1.0, "threshold": 20.0}
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


class Slower(threading.local):
    """How many parts of a forward, in this thread, ran one by one because that takes less time."""

    parts = 0


slower = Slower()
LEAST = 2**17  # entries of an input below which the layers are faster one by one: Python takes longer than the work
Behind = torch.nn.Module | Activation | None  # what stands behind a norm


def normalize_in_company(
    norm: NormalizationFamily,
    x: Tensor,
    sublayer: Tensor | None = None,
    dropout: Dropout | None = None,
    residual: Tensor | None = None,
    activation: Behind = None,
    in_place: bool = False,
) -> Tensor:
    """Compute ``activation(norm(x + dropout(sublayer)) + residual)``, of which any part but the norm may be missing.

    With ``in_place`` the residual is added to what the norm gives where that lies, so in its type.
    """
    y = _in_one_pass(norm, x, sublayer, dropout, residual, activation)
    return one_by_one(norm, x, sublayer, dropout, residual, activation, in_place) if y is None else y


def _in_one_pass(
    norm: NormalizationFamily,
    x: Tensor,
    sublayer: Tensor | None,
    dropout: Dropout | None,
    residual: Tensor | None,
    activation: Behind,
) -> Tensor | None:
    """The same by one kernel; None where that is not possible, or not faster."""
    forced = chosen_backend() in ("c", "triton") or x.is_cuda  # on a GPU one pass is always the faster way
    if x.numel() < LEAST and not forced:
        slower.parts += 1
        return None
    function = activation_of(activation) if isinstance(activation, torch.nn.Module) else activation
    beside = {name: t for name, t in (("sublayer", sublayer), ("residual", residual)) if t is not None}
    drops = dropout if dropout is not None and dropout.training and dropout.p > 0 else None
    company = Company(function, beside, 0.0 if drops is None else drops.p)
    question = _question(norm, x, company, drops is not None)
    if not forced and _chosen.get(question) is False:
        slower.parts += 1
        return None
    layers = [layer for layer in (norm, dropout, activation) if isinstance(layer, torch.nn.Module)]
    if (activation is not None and function is None) or not fits(x, beside, layers, dropout):
        return None
    if not forced and not remembered(_chosen, question, lambda: _measured(norm, x, company, question)):
        slower.parts += 1
        return None
    if drops is not None:
        company = company._replace(draws=nested.Draws.of(*drops.sequence(), {"draws": 0}))
        drops._was_run_by(language_for(x))
    return norm.with_company(x, company)


def one_by_one(
    norm: Callable[[Tensor], Tensor],
    x: Tensor,
    sublayer: Tensor | None,
    dropout: Callable[[Tensor], Tensor] | None,
    residual: Tensor | None,
    activation: Callable[[Tensor], Tensor] | None,
    in_place: bool = False,
) -> Tensor:
    """Compute the same by the layers themselves."""
    if sublayer is not None:
        x = x + (sublayer if dropout is None else dropout(sublayer))
    return _followed(norm(x), residual, activation, in_place)


def _followed(
    y: Tensor, residual: Tensor | None, activation: Callable[[Tensor], Tensor] | None, in_place: bool
) -> Tensor:
    if residual is not None:
        y = y.add_(residual) if in_place else y + residual
    return y if activation is None else activation(y)


def fits(
    x: Tensor, beside: Mapping[str, Tensor], layers: Sequence[torch.nn.Module], dropout: Dropout | None = None
) -> bool:
    """Whether one kernel can compute all that the layers do."""
    if any("forward" in vars(layer) for layer in layers):
        return False
    if dropout is not None and (dropout.inplace or not 0 <= dropout.p < 1):
        return False
    if language(x, *beside.values()) is None or torch.is_autocast_enabled(x.device.type):
        return False
    return not beside or (
        x.is_contiguous()
        and all(t.shape == x.shape and t.dtype == x.dtype and t.is_contiguous() for t in beside.values())
    )


_chosen: dict[Any, bool] = {}


class _Question(NamedTuple):
    """What decides whether one pass takes less time than the layers one by one."""

    kind: tuple[Any, ...]
    drops: bool
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    beside: tuple[str, ...]
    wanted: tuple[str, ...]  # what has a gradient
    threads: int

    def __str__(self) -> str:
        """The question for all inputs of about this size, in words."""
        kind, training, *rest = self.kind
        parts = [*self.beside, *(["dropout"] if self.drops else []), *(str(part) for part in rest if part is not None)]
        mode = "training" if training else "eval"
        gradients = f"gradients of {', '.join(self.wanted)}" if self.wanted else "no gradient"
        layout = "" if sorted(self.strides, reverse=True) == list(self.strides) else "channels last "
        return (
            f"{kind.__name__} in {mode} with {', '.join(parts)} {str(self.dtype)[6:]} {rounded(self.shape)} "
            f"{layout}{gradients}"
        )


def _question(norm: NormalizationFamily, x: Tensor, company: Company, drops: bool) -> _Question:
    wanted: tuple[str, ...] = ()
    if torch.is_grad_enabled():
        tensors = {"x": x, **company.tensors, "weight": norm.weight, "bias": norm.bias}
        wanted = tuple([name for name, t in tensors.items() if t is not None and t.requires_grad])
    kind = (type(norm), norm.training, *norm._kind()[1:], company.activation)
    threads = torch.get_num_threads()
    return _Question(kind, drops, x.shape, x.stride(), x.dtype, tuple(company.tensors), wanted, threads)


def _measured(norm: NormalizationFamily, x: Tensor, company: Company, question: _Question) -> bool:
    """Measure one pass beside the layers one by one: copies of them, which draw and remember for themselves."""
    wanted = question.wanted
    given = {name: t.detach().requires_grad_(name in wanted) for name, t in {"x": x, **company.tensors}.items()}
    x, beside = given.pop("x"), given
    dropout = Dropout(company.p, seed=0) if question.drops else None
    company = company._replace(tensors=beside, draws=nested.Draws(0, 0, {"draws": 0}) if question.drops else None)
    one, other = _scratch(norm), _scratch(norm)

    def usual() -> Tensor:
        return one_by_one(one.forward, x, beside.get("sublayer"), dropout, beside.get("residual"), company.activation)

    def in_one_pass() -> Tensor:
        y = other.with_company(x, company)
        return usual() if y is None else y

    with torch.set_grad_enabled(bool(wanted)):
        text = norm.kernel_with(x, company)
        if text is None:
            return False
        candidates = (x, *beside.values(), *norm.parameters())  # of which a parametrization computes weight and bias
        leaves = [t for t in candidates if wanted and t.requires_grad]
    return faster(str(question), text, usual, in_one_pass, leaves)


def _scratch(norm: Any) -> Any:
    """A layer with the same parameters, and running statistics of its own."""
    made = object.__new__(type(norm))
    buffers = {name: None if b is None else b.detach().clone() for name, b in norm._buffers.items()}
    made.__dict__ = dict(vars(norm)) | {"_buffers": buffers}
    return made


# -- convolution and BatchNorm ----------------------------------------------------------------------------------------


def convolve_and_normalize(
    convolution: Any,
    norm: BatchNormFamily,
    x: Tensor,
    residual: Tensor | None = None,
    activation: Behind = None,
    in_place: bool = False,
) -> Tensor:
    """Compute ``activation(norm(convolution(x)) + residual)``.

    In eval the norm is an affine function of every channel, and so a part of the convolution's weight and bias.
    """
    if _folds(convolution, norm, x):
        return _followed(convolution._conv_forward(x, *folded(convolution, norm)), residual, activation, in_place)
    return normalize_in_company(norm, convolution(x), residual=residual, activation=activation, in_place=in_place)


def folded(convolution: Any, norm: BatchNormFamily) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that does both in eval: of the norm's formula, as γ·x/σ + (β − γ·μ/σ).

    Differentiable in the parameters of both.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    weight, bias = convolution.weight, convolution.bias
    scale = torch.rsqrt(var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean if bias is None else bias - mean
    shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1)), shift


def _folds(convolution: Any, norm: BatchNormFamily, x: Tensor) -> bool:
    """Whether the norm is to become a part of the convolution for this call."""
    if (
        not runs(x)
        or norm.training
        or norm.running_mean is None
        or norm.running_var is None
        or not fits(x, {}, (convolution, norm))
    ):
        return False
    weight = convolution.weight
    if x.dtype != weight.dtype or norm.running_mean.dtype != x.dtype or weight.shape[0] != norm.num_features:
        return False
    if x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * convolution.groups:
        return False  # of which the layer tells
    if chosen_backend() == "c":
        return True
    grad = torch.is_grad_enabled()
    tensors = {"x": x, "weight": weight, "bias": convolution.bias, "gamma": norm.weight, "beta": norm.bias}
    wanted = tuple([name for name, t in tensors.items() if grad and t is not None and t.requires_grad])
    geometry = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    lies = (weight.shape, *geometry, getattr(convolution, "memory_format", None))
    kind = (type(convolution), lies, x.dtype, wanted, torch.get_num_threads())
    key = (kind, x.shape, x.stride())
    return remembered(_chosen, key, lambda: _folding_is_faster(convolution, norm, x.detach(), kind, wanted))


def _folding_is_faster(convolution: Any, norm: BatchNormFamily, x: Tensor, kind: Any, wanted: Sequence[str]) -> bool:
    """Measure one convolution beside both layers."""
    x.requires_grad_("x" in wanted)
    leaves = [t for t in (x, *convolution.parameters(), *norm.parameters()) if wanted and t.requires_grad]

    def usual() -> Tensor:
        return norm.forward(convolution.forward(x))

    def as_one() -> Tensor:
        return convolution._conv_forward(x, *folded(convolution, norm))

    layout = "" if x.is_contiguous() else "channels last "
    lies = " ".join(map(str, kind[1:-1]))
    question = f"{type(convolution).__name__} and BatchNorm in eval {rounded(x.shape)} {layout}{lies}"
    return faster(question, inspect.getsource(folded), usual, as_one, leaves)
