"""Layers that can be explained by name: how each is built, and an input that suits it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.nn import cells
from pellucid.nn.factory import Factory
from pellucid.nn.recurrence.cell import Cell

Shape = Callable[[Mapping[str, Any]], tuple[int, ...]]


@dataclass(frozen=True)
class Example:
    """How a layer of ``pellucid.nn`` is built where nothing is said, and the shape of an input for its arguments.

    ``size`` names the argument that an input decides, and on which axis of the input it stands; ``ndim`` is how many
    axes an input has. ``sentence``: whether a sentence suits the layer better than numbers.
    """

    layer: str
    arguments: Mapping[str, Any]
    shape: Shape
    size: tuple[str, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sentence: bool = False

    def ndim(self) -> int:
        """How many axes the input has."""
        return len(self.shape(self.arguments))


def fixed(*shape: int) -> Shape:
    """The same shape for all arguments."""
    return lambda arguments: shape


def with_channels(name: str, *rest: int, batch: int = 1) -> Shape:
    """(batch, channels, *rest), the number of channels being an argument."""
    return lambda arguments: (batch, arguments[name], *rest)


def under_window(spatial: int, least: int, channels: str | None = "in_channels") -> Shape:
    """An input in which the window of these arguments finds room for at least three positions.

    With a pooling behind a convolution these are positions of the patch that it reads.
    """

    def shape(arguments: Mapping[str, Any]) -> tuple[int, ...]:
        sizes = []
        names = ("kernel_size", "dilation", "stride", "pool_size", "pool_stride")
        for axis in range(spatial):
            kernel, dilation, stride, patch, patches = (_along(arguments.get(name), axis) for name in names)
            if arguments.get("pool_stride") is None:
                patches = patch
            reach = dilation * (kernel - 1) + 1 + (patch - 1) * stride
            sizes.append(max(least, reach + 2 * stride * patches))
        return (1, arguments[channels] if channels else 1, *sizes)

    return shape


def _along(value: Any, axis: int) -> int:
    if value is None:
        return 1
    return value if isinstance(value, int) else value[axis]


def _last(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    shape = arguments["normalized_shape"]
    return (3, shape) if isinstance(shape, int) else (3, *shape)


def of_rows(layer: str, size: str, **arguments: Any) -> Example:
    """A row-wise layer whose argument ``size`` is the features of its input."""
    return Example(layer, {size: 4} | arguments, lambda given: (2, given[size]), (size, -1))


LEAST = {1: 8, 2: 7, 3: 4}
CONVOLUTION = {"in_channels": 1, "out_channels": 1, "kernel_size": 3}
SPACE = {1: (4,), 2: (2, 2), 3: (2, 2, 2)}

EXAMPLES: list[Example] = [
    *(Example(f"Conv{n}d", CONVOLUTION, under_window(n, LEAST[n]), ("in_channels", 1)) for n in (1, 2, 3)),
    *(Example(f"ConvTranspose{n}d", CONVOLUTION, under_window(n, 3), ("in_channels", 1)) for n in (1, 2, 3)),
    *(
        Example(f"{kind}Pool{n}d", {"kernel_size": 2}, under_window(n, 4, None))
        for kind in ("Max", "Avg")
        for n in (1, 2, 3)
    ),
    *(
        Example(f"Adaptive{kind}Pool{n}d", {"output_size": 2}, fixed(1, 1, *(5,) * n))
        for kind in ("Max", "Avg")
        for n in (1, 2, 3)
    ),
    *(
        Example(f"SeparableConv{n}d", CONVOLUTION | {"in_channels": 2}, under_window(n, LEAST[n]), ("in_channels", 1))
        for n in (1, 2, 3)
    ),
    *(
        Example(
            f"ConvPool{n}d",
            CONVOLUTION | {"pool_size": 2, "pool_stride": None},
            under_window(n, LEAST[n]),
            ("in_channels", 1),
        )
        for n in (1, 2, 3)
    ),
    Example(
        "TextConv",
        {"embedding_size": 4, "filters": 2, "widths": (2, 3)},
        lambda arguments: (1, 5, arguments["embedding_size"]),
        ("embedding_size", 2),
        sentence=True,
    ),
    Example(
        "TCN",
        {"in_channels": 2, "hidden_channels": (2, 3), "kernel_size": 2},
        with_channels("in_channels", 8),
        ("in_channels", 1),
    ),
    Example("LengthPool", {"mode": "mean"}, fixed(4, 2, 3), options={"lengths": [4, 2]}),
    Example("BatchNorm1d", {"num_features": 4}, with_channels("num_features", batch=3), ("num_features", 1)),
    *(
        Example(
            f"BatchNorm{n}d",
            {"num_features": 2},
            with_channels("num_features", *SPACE[n], batch=3),
            ("num_features", 1),
        )
        for n in (2, 3)
    ),
    *(
        Example(
            f"InstanceNorm{n}d",
            {"num_features": 2},
            with_channels("num_features", *SPACE[n], batch=2),
            ("num_features", 1),
        )
        for n in (1, 2, 3)
    ),
    Example("LayerNorm", {"normalized_shape": 4}, _last, ("normalized_shape", -1)),
    Example("RMSNorm", {"normalized_shape": 4}, _last, ("normalized_shape", -1)),
    Example(
        "GroupNorm",
        {"num_groups": 2, "num_channels": 4},
        with_channels("num_channels", 3, batch=2),
        ("num_channels", 1),
    ),
    Example("LocalResponseNorm", {"size": 3}, fixed(1, 5, 2)),
    Example("Dropout", {"p": 0.5}, fixed(6)),
    *(Example(f"Dropout{n}d", {"p": 0.5}, fixed(1, 4, *SPACE[n])) for n in (1, 2, 3)),
    Example("AlphaDropout", {"p": 0.5}, fixed(6)),
    Example("FeatureAlphaDropout", {"p": 0.5}, fixed(1, 4, 3)),
    Example("LockedDropout", {"p": 0.5}, fixed(3, 1, 4)),
    Example("DropPath", {"p": 0.5}, fixed(4, 3)),
    Example("DropBlock2d", {"p": 0.3, "block_size": 2}, fixed(1, 1, 5, 5)),
    of_rows("DyT", "features"),
    of_rows("ScaleNorm", "features"),
    of_rows("SwiGLU", "in_features", out_features=3),
    of_rows("GEGLU", "in_features", out_features=3),
    of_rows("AddNorm", "features", p=0.3),
]

RECURRENT = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
SHORT = {
    "conv": "Conv2d",
    "maxpool": "MaxPool2d",
    "avgpool": "AvgPool2d",
    "batchnorm": "BatchNorm1d",
    "instancenorm": "InstanceNorm1d",
}


def known_cells() -> dict[str, Cell]:
    """The cells of `pellucid.nn.cells`, by name."""
    return {name: value for name, value in vars(cells).items() if isinstance(value, Cell)}


def names() -> list[str]:
    """Every name that can be explained."""
    layers = [example.layer for example in EXAMPLES if example.layer in vars(nn)]
    short = [name for name, layer in SHORT.items() if layer in layers]
    return [*known_cells(), *short, *(layer.lower() for layer in layers), *RECURRENT]


def unknown_name(name: str) -> ValueError:
    """Say that a name is unknown, which one may be meant, and which there are."""
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names()], 1, 0.5)
    meant = next((n for n in names() if near and n.lower() == near[0]), None)
    guess = f" Did you mean {meant!r}?" if meant else ""
    return ValueError(
        f"explain: there is no layer {name!r}.{guess} Known names: {', '.join(names())}; or a file and a cell in it, "
        f"path/file.py:cell."
    )


def example_of(layer: str) -> Example | None:
    """Return the example of a class of ``pellucid.nn``."""
    return next((example for example in EXAMPLES if example.layer == layer), None)


def class_name(name: str) -> str | None:
    """Return the class of ``pellucid.nn`` that a name stands for; None for a cell and what is unknown."""
    if name in RECURRENT:
        return name
    wanted = SHORT.get(name.lower(), name).lower()
    return next((example.layer for example in EXAMPLES if example.layer.lower() == wanted), None)


def parameters_of(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a constructor's arguments by name, also where a class passes them all on to its base."""
    if isinstance(make, Factory):
        return make.parameters()
    if not isinstance(make, type):
        return dict(inspect.signature(make).parameters)
    signatures = (inspect.signature(vars(base)["__init__"]) for base in make.__mro__ if "__init__" in vars(base))
    named = next(s for s in signatures if not any(p.kind is p.VAR_POSITIONAL for p in s.parameters.values()))
    return dict(list(named.parameters.items())[1:])


def build(make: Callable[..., Any], name: str, arguments: Mapping[str, Any], seed: int) -> torch.nn.Module:
    """Build a layer with weights drawn from a seed; an unknown argument is named, with those that there are."""
    accepted = parameters_of(make)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        unknown = next((key for key in arguments if key not in accepted), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown, accepted, 1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            takes = f"It takes {', '.join(accepted)}." if accepted else "It takes none."
            raise TypeError(f"explain: {name} takes no {unknown!r}.{guess} {takes}")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        try:
            return make(**arguments)
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            error.add_note(f"pellucid.explain: this was raised by {name}({given})")
            raise


def draw(shape: Sequence[int], seed: int) -> Tensor:
    """Draw an input of small whole numbers, easy to follow by eye."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 10, tuple(shape), generator=generator).float()


def embed(tokens: Sequence[str], size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give every different token a random vector with entries from −1 to 1: (tokens, size)."""
    different = list(dict.fromkeys(tokens))
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(len(different), size, generator=generator, dtype=torch.float64) * 2 - 1
    return table[[different.index(token) for token in tokens]].to(dtype)
