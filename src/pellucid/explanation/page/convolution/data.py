"""The numbers of the exhibit: the input or the part of it that fits in the page, kernels, outputs, and the formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import Unsupported
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.arrays import blocks
from pellucid.explanation.page.program import Program, gradient, program
from pellucid.explanation.paper import letter
from pellucid.explanation.report import Exhibit
from pellucid.explanation.tcn import TCNExplained
from pellucid.explanation.text_convolution import TextConvExplained
from pellucid.explanation.trace import recording
from pellucid.explanation.windowed import (
    ConvolutionExplained,
    ConvPoolingExplained,
    PoolingExplained,
    WindowedExplained,
)
from pellucid.nn.convolution.convolution import Convolution
from pellucid.nn.convolution.separable import SeparableConvolution
from pellucid.nn.pooling.pooling import Adaptive, Average, Maximum, Mean, SlidingAverage
from pellucid.nn.windows import slide

WHOLE = 30_000  # entries of the input, the kernels and the output up to which each is in the page as a whole
UNDER = 300_000  # entries under all windows of one output channel up to which the page computes them
PRODUCTS = 20_000  # products up to which those of Python are in the page
SLICE = 40_000  # entries that the slice of a larger input has at most, and the kernels that go with it
SIDE = 8  # outputs along each axis of a slice
SHOWN = 4  # output channels of a slice
SYMBOLS = {
    "": {"x": "x", "weight": "weight", "bias": "bias", "y": "y"},
    "depthwise": {"x": "x", "weight": "depthwise", "bias": "bias", "y": "z"},
    "convolution": {"x": "x", "weight": "weight", "bias": "bias", "y": "features"},
}  # what the formula calls what is shown of it
BLOCKS = 32  # blocks along each axis of an overview


def convolution(explained: ConvolutionExplained) -> Exhibit | None:
    """Return the exhibit of a convolution along one or two axes, also of the one inside a layer made of several."""
    layer, inside = _inside(explained.layer)
    if layer.spatial > 2 or "state" in explained.request.options:
        return None
    x = explained.x
    with torch.no_grad():
        y = layer(x, **explained.request.options) if inside else explained.output
    sample = _first(explained, layer, x, y)
    if sample is None:
        return None
    layer = _with_output_size(layer, x, y)
    x, y = sample
    weight = layer._kernels().detach()
    bias = None if layer.bias is None else layer.bias.detach()
    lines = Lines(Convolution.formula)
    part = _part(layer, x, y, weight)
    if part is None:
        return None
    weight, bias = weight[: len(part.y)], bias if bias is None else bias[: len(part.y)]
    data = {
        "family": "convolution",
        "inside": inside,
        "layer": type(layer).__name__,
        "transposed": layer.transposed,
        "groups": layer.groups,
        "channels": [layer.in_channels, layer.out_channels],
        "mode": layer.padding_mode,
        "extra": _two(getattr(layer, "output_padding", 0), layer.spatial, 0),
        "weight": _square(weight, layer.spatial),
        "bias": bias,
        "products": _products(lines, layer, x, part),
        "program": _program(lines, SPACED),
        "gradient": _gradient(lines, SPACED),
        "symbols": {name: letter(called) for name, called in SYMBOLS.get(inside, SYMBOLS[""]).items()},
        "pooled": _pooled(explained),
    }
    return Exhibit("convolution", data | _window(layer) | _shared(explained, layer, part, x, y))


def pooling(explained: PoolingExplained) -> Exhibit | None:
    """Return the exhibit of a pooling along one or two axes."""
    layer: Any = explained.layer
    sample = None if layer.spatial > 2 else _first(explained, layer, explained.x, explained.output)
    if sample is None:
        return None
    x, y = sample
    part = _part(layer, x, y, None)
    if part is None:
        return None
    average, adaptive = isinstance(layer, Average), isinstance(layer, Adaptive)
    data = {
        "family": "pooling",
        "inside": "",
        "layer": type(layer).__name__,
        "transposed": False,
        "average": average,
        "shared": adaptive,
        "ceil": getattr(layer, "ceil_mode", False),
        "counted": getattr(layer, "count_include_pad", False),
        "divisor": getattr(layer, "divisor_override", None),
        "slidingAverage": isinstance(layer, SlidingAverage),
        "groups": 1,
        "channels": [len(x), len(x)],
        "mode": "zeros",
        "extra": [0, 0],
        "program": _program(Lines(averaged if average else greatest), ENTRIES),
        "gradient": _gradient(Lines(averaged), ENTRIES) if average else None,
        "symbols": {name: letter(name) for name in ("x", "y")},
    }
    return Exhibit("convolution", data | _window(layer) | _shared(explained, layer, part, x, y))


def text(explained: TextConvExplained) -> Exhibit | None:
    """Return the exhibit of a text convolution: the first sentence, with the filters of every width."""
    layer = explained.layer
    if not explained.real.numel():
        return None
    x = explained.x[0] if explained.batched else explained.x  # (time, embedding)
    lengths = explained.request.options.get("lengths")
    steps = len(x) if lengths is None else int(torch.as_tensor(lengths).reshape(-1)[0])
    x = x[:steps].T.contiguous().unsqueeze(1)  # (embedding, 1, time), as the other exhibits have it
    weights = [layer._of_width(width)[0].detach() for width in layer.widths]
    if not steps or x.numel() > WHOLE or sum(weight.numel() for weight in weights) > WHOLE:
        return None
    layers = []
    for width, weight in zip(layer.widths, weights, strict=True):
        bias = layer._of_width(width)[1]
        bound, index = layer.bind(x[:, 0].T), layer.widths.index(width)
        one = {name: [bound[name][index]] for name in ("windows", "weights", "biases")}
        features, products = _traced(explained.lines, x[:, 0].T, **one, activation=layer.activation, pools=[_keep])
        layers.append(
            {
                "width": width,
                "weight": weight.mT.unsqueeze(2),
                "bias": None if bias is None else bias.detach(),
                "y": features.reshape(layer.filters, 1, -1),
                "products": products.movedim(-1, -2).unsqueeze(-2) if products.numel() <= PRODUCTS else None,
                "names": {name: letter(f"{name}_{width}") for name in ("weight", "bias")},
            }
        )
    inputs = {"x": torch.ones(1, 3, 4, 2), "weights": torch.ones(1, 1, 1, 4, 2), "biases": torch.ones(1, 1, 1)}
    others = {"windows": [_LaidOut((-2, -1))], "activation": layer.activation, "pools": [_keep]}
    data = {
        "family": "text",
        "inside": "",
        "layer": explained.kind,
        "transposed": False,
        "groups": 1,
        "channels": [layer.embedding_size, layer.filters],
        "mode": "zeros",
        "extra": [0, 0],
        "kernel": [1, layer.widths[0]],
        "stride": [1, 1],
        "dilation": [1, 1],
        "padding": [0, 0],
        "around": "valid",
        "spatial": 1,
        "x": x,
        "layers": layers,
        "result": explained.real[0] if explained.batched else explained.real,
        "program": _attempt(lambda: _text(program(explained.lines, inputs, others))),
        "symbols": {"x": letter("x"), "y": "features"},
        "whole": True,
        "tokens": None if explained.request.tokens is None else list(explained.request.tokens)[:steps],
    }
    return Exhibit("convolution", data)


def network(explained: TCNExplained) -> Exhibit | None:
    """Return the exhibit of a TCN: which steps reach its last output."""
    layer = explained.layer
    stack = [[layer.kernel_size, 1, dilation] for dilation in layer.dilations for _ in range(2)]
    tokens = explained.request.tokens
    data = {"family": "network", "stack": stack, "tokens": None if tokens is None else list(tokens)[: explained.read]}
    return Exhibit("convolution", data)


# -- what is shown of the input -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """What the page has of input and output: all, or outputs from ``first`` on with what their windows read.

    ``x`` begins at ``origin`` of the input; both and ``y`` have two axes of space.
    """

    x: Tensor
    y: Tensor
    origin: tuple[int, int]
    first: tuple[int, int]
    whole: bool


def _first(explained: WindowedExplained, layer: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the first sample, its real steps alone, and its output; None where there is nothing."""
    lengths = explained.request.options.get("lengths")
    if not y.numel() or not x.numel() or x.is_complex():
        return None
    if x.ndim == layer.spatial + 2:
        x, y = x[0], y[0]
    if lengths is not None:
        steps = torch.as_tensor(lengths).reshape(-1)[:1]
        x, y = x[..., : int(steps)], y[..., : int(layer.output_lengths(steps))]
    return (_square(x.detach(), layer.spatial), _square(y.detach(), layer.spatial)) if y.numel() else None


def _part(layer: Any, x: Tensor, y: Tensor, weight: Tensor | None) -> _Part | None:
    """Return what the page has; None where not even the windows of a single output fit."""
    rows, columns = _lines(layer, x)
    each = x.shape[0] if weight is None else weight.shape[1]
    taps = rows.coordinates.shape[-1] * columns.coordinates.shape[-1]
    under = (1 if weight is None else each) * taps * rows.positions * columns.positions
    kernels = 0 if weight is None else weight.numel()
    if max(x.numel(), y.numel(), kernels) <= WHOLE and under <= UNDER:
        return _Part(x, y, (0, 0), (0, 0), True)
    shown = SHOWN if weight is None else max(1, min(SHOWN, SLICE // (each * taps)))
    if each * (1 if weight is None else taps) > SLICE:
        return None
    for side in range(SIDE, 0, -1):
        cuts = [_cut(line, side, extent) for line, extent in zip((rows, columns), x.shape[1:], strict=True)]
        (first_row, top, bottom), (first_column, left, right) = cuts
        channels = x[:SHOWN] if weight is None else x
        cut = channels[:, top:bottom, left:right]
        if cut.numel() <= SLICE:
            outputs = y[:shown, first_row : first_row + side, first_column : first_column + side]
            return _Part(cut, outputs, (top, left), (first_row, first_column), False)
    return None


def _cut(line: Any, side: int, extent: int) -> tuple[int, int, int]:
    """Return the first of ``side`` windows in the middle, and from where to where they read."""
    first = max((line.positions - side) // 2, 0)
    read = line.coordinates[first : first + side]
    read = read[read >= 0]
    return (first, int(read.min()), int(read.max()) + 1) if len(read) else (first, 0, min(extent, 1))


def _lines(layer: Any, x: Tensor) -> tuple[Any, Any]:
    """Return what the windows read along rows and columns, of which a sequence has one row."""
    given = x.squeeze(1) if layer.spatial == 1 else x
    window = layer.bind(given)["window"]
    lines = getattr(window, "window", window).lines
    return (slide(1, 1, 1), lines[0]) if layer.spatial == 1 else (lines[0], lines[1])


def _shared(explained: WindowedExplained, layer: Any, part: _Part, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What the exhibits of convolution and pooling have in common."""
    tokens = explained.request.tokens
    found: dict[str, Any] = {
        "spatial": layer.spatial,
        "x": part.x,
        "y": part.y,
        "size": [list(x.shape[1:]), list(y.shape[1:])],
        "origin": list(part.origin),
        "first": list(part.first),
        "whole": part.whole,
        "tokens": None if tokens is None else list(tokens)[: x.shape[-1]],
    }
    if part.whole:
        found["backward"] = _backward(layer, x)
    if layer.spatial == 2 and max(*x.shape[1:], *y.shape[1:]) > 16:
        found["overview"] = {
            name: [blocks(channel, BLOCKS, BLOCKS) for channel in value[:SHOWN]]
            for name, value in (("x", x), ("y", y))
            if bool(value[:SHOWN].isfinite().all())
        }
    return found


def _window(layer: Any) -> dict[str, Any]:
    """How the layer's window lies and moves, along rows and columns."""
    padding = getattr(layer, "padding", 0)
    numbers = 0 if isinstance(padding, str) else padding
    return {
        "kernel": _two(getattr(layer, "kernel_size", 1), layer.spatial),
        "stride": _two(getattr(layer, "stride", 1), layer.spatial),
        "dilation": _two(getattr(layer, "dilation", 1), layer.spatial),
        "padding": _two(numbers, layer.spatial, 0),
        "around": padding if isinstance(padding, str) else "numbers",
    }


def _two(value: int | Sequence[int], spatial: int, fill: int = 1) -> list[int]:
    """Return a number for rows and one for columns; a sequence has a single row, whose number is ``fill``."""
    each = [value] * spatial if isinstance(value, int) else list(value)
    return [fill, each[-1]] if spatial == 1 else [each[0], each[-1]]


def _square(value: Tensor, spatial: int) -> Tensor:
    """Give a sequence its one row."""
    return value.unsqueeze(-2) if spatial == 1 else value


def _inside(layer: Any) -> tuple[Any, str]:
    """Return the convolution that is shown of a layer, and its name in it."""
    if isinstance(layer, SeparableConvolution):
        return layer.depthwise, "depthwise"
    inner = getattr(layer, "convolution", None)
    return (inner, "convolution") if isinstance(inner, Convolution) else (layer, "")


def _with_output_size(layer: Any, x: Tensor, y: Tensor) -> Any:
    """Return a transposed convolution that gives this output size also where it is not asked for."""
    if not layer.transposed or layer.padding == "same":
        return layer
    more = tuple(
        wanted - layer._placement(axis, size)[1] + layer.output_padding[axis]
        for axis, (size, wanted) in enumerate(zip(x.shape[-layer.spatial :], y.shape[-layer.spatial :], strict=True))
    )
    found = object.__new__(type(layer))  # copy.copy refuses layers whose weights are computed
    found.__dict__ = {**vars(layer), "output_padding": more}
    return found


def _pooled(explained: ConvolutionExplained) -> list[int] | None:
    """Return the size of the patches that the layer pools behind the convolution."""
    return (
        _two(explained.layer.pool_size, explained.layer.spatial)
        if isinstance(explained, ConvPoolingExplained)
        else None
    )


# -- the formula --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LaidOut:
    """Stands for a window where what it reads is laid out already."""

    axes: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return x


def _keep(features: Tensor) -> Tensor:
    """Reduce nothing."""
    return features


def averaged(entries, divisor):
    """Take the mean of what every window reads."""
    return Mean((-1,), divisor)(entries)


def greatest(entries):
    """Take the greatest of what every window reads."""
    return Maximum(1)(entries)


SPACED = {"x": (2, 3, 4, 2, 3, 2), "weight": (2, 1, 1, 2, 3, 2), "bias": (2, 1, 1)}
ENTRIES = {"entries": (4, 5), "divisor": (4,)}


def _program(lines: Lines, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Trace a formula over windows that are laid out; all sizes of the page's inputs may be others."""
    return _attempt(lambda: _text(program(lines, *_inputs(lines, shapes))))


def _gradient(lines: Lines, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Trace the gradient of such a formula."""
    return _attempt(lambda: _open(gradient(lines, *_inputs(lines, shapes)).text))


def _inputs(lines: Lines, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return examples of what a formula reads, and what else it takes."""
    names = lines.function.__code__.co_varnames
    window = {"window": _LaidOut((-3, -2, -1))} if "window" in names else {}
    return {name: torch.ones(shape) for name, shape in shapes.items() if name in names}, window


def _attempt(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a program, or the operation that the page does not know."""
    try:
        return make()
    except Unsupported as unsupported:
        return {"unsupported": str(unsupported)}


def _text(traced: Program) -> dict[str, Any]:
    """Return a program with the place of the products among its recorded values."""
    names = [site.name for site in traced.sites]
    return {**traced.text, "products": names.index("products") if "products" in names else -1}


def _open(text: Mapping[str, Any]) -> dict[str, Any]:
    """Leave sizes open: what was expanded to those of the example is left to broadcasting."""

    def opened(node: list[Any]) -> list[Any]:
        name, operation, arguments, keywords = node
        if operation != "expand":
            return node
        return [name, operation, [arguments[0], [-1] * len(arguments[1])], keywords]

    return {**text, "nodes": [opened(node) for node in text["nodes"]]}


def _products(lines: Lines, layer: Any, x: Tensor, part: _Part) -> Tensor | None:
    """Return the products under every window: (out channels, *positions, channels, *kernel); None where too many."""
    taps = layer._kernels()[0].numel()
    if not part.whole or part.y.numel() * taps > PRODUCTS:
        return None
    _, products = _traced(lines, **layer.bind(x.squeeze(1) if layer.spatial == 1 else x))
    return products if layer.spatial == 2 else products.unsqueeze(1).unsqueeze(-2)


def _traced(lines: Lines, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    """Run a formula's lines; return their result and the products."""
    found: dict[str, Tensor] = {}

    def record(index: int, value: Any) -> Any:
        if lines.sites[index].name == "products":
            found["products"] = value
        return value

    with torch.no_grad():
        return recording(lines, record)(*arguments, **keywords), found["products"]


def _backward(layer: Any, x: Tensor) -> Tensor | None:
    """Return the gradient of the input where the loss is the sum of all outputs; whole numbers have none."""
    if not x.is_floating_point():
        return None
    leaf = (x.squeeze(1) if layer.spatial == 1 else x).detach().clone().requires_grad_()
    with torch.enable_grad():
        y = layer(leaf)
        y = y[0] if isinstance(y, tuple) else y
        (found,) = torch.autograd.grad(y.sum(), leaf)
    return _square(found, layer.spatial)
