"""One table of components: what the tests run on.

Each case is a layer of ``pellucid.nn`` with its arguments, the shapes that it reads, and inputs that must fail. Where
torch.nn has a layer of the same name, that layer with the same arguments is the reference; ``reference`` overrides it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from pellucid import nn
from tensors import draw

FURTHER = ("sublayer",)  # inputs after the first that a call gives by name


@dataclass(frozen=True)
class Wrong:
    """An input that must be refused: its shape, the exception's type, and words that the message must hold."""

    shape: tuple[int, ...]
    words: tuple[str, ...]
    error: type[Exception] = RuntimeError
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Case:
    """A layer with its arguments and inputs."""

    layer: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)  # keyword arguments of forward
    wrong: tuple[Wrong, ...] = ()
    reference: Callable[..., Any] | None = None  # (*args, **kwargs) -> the layer to agree with
    twice: bool = True  # whether it has a second derivative worth checking
    random: bool = False  # whether its training output is drawn
    own: bool = False  # whether it uses options that torch.nn's layer of that name lacks

    @property
    def name(self) -> str:
        """A readable test id."""
        call = {name: value.ndim if name in FURTHER else value for name, value in {**self.kwargs, **self.call}.items()}
        named = {name: getattr(value, "__name__", value) for name, value in call.items()}  # no address of a function
        options = [str(a) for a in self.args] + [f"{k}={v}" for k, v in named.items()]
        return f"{self.layer}({','.join(options)})-{'x'.join(map(str, self.shape))}".replace(" ", "")

    def build(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """Make pellucid's layer, with weights drawn from seed 0."""
        torch.manual_seed(0)
        return getattr(nn, self.layer)(*self.args, **self.kwargs).to(dtype)

    def build_reference(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module | None:
        """Make the reference layer, with weights drawn from seed 0; None where there is none."""
        make = self.reference or getattr(torch.nn, self.layer, None)
        if make is None or self.call or self.own:
            return None
        torch.manual_seed(0)
        return make(*self.args, **self.kwargs).to(dtype)

    def options(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Return the keyword arguments of forward, a further input in this type."""
        return {name: value.to(dtype) if name in FURTHER else value for name, value in self.call.items()}

    def input(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Draw an input."""
        return draw(*self.shape, seed=1).to(dtype)


def both(layer: str, args: tuple[Any, ...], shape: tuple[int, ...], **kwargs: Any) -> Case:
    """A layer that torch.nn has too, with these options."""
    return Case(layer, args, shape, kwargs)


def own(layer: str, args: tuple[Any, ...], shape: tuple[int, ...], call: Any = None, **kwargs: Any) -> Case:
    """A layer of torch.nn's name with an option or an argument of forward that only pellucid has."""
    return Case(layer, args, shape, kwargs, call or {}, own=True)


CONVOLUTION: list[Case] = [
    Case(
        "Conv1d",
        (4, 6, 3),
        (2, 4, 9),
        wrong=(
            Wrong((2, 9, 4), ("batch 2", "channels 9", "in_channels is 4", "movedim(-1, -2)")),
            Wrong((2, 5, 9), ("channels 5", "in_channels is 4", "in_channels=5")),
            Wrong((9,), ("(9)", "(batch, channels 4, length)", "unsqueeze(-2)")),
            Wrong((2, 2, 4, 9), ("(2, 2, 4, 9)", "(batch, channels 4, length)", "flatten(0, 1)")),
            Wrong((2, 4, 2), ("length 2", "spans 3 places", "kernel_size 3")),
            Wrong((2, 4, 9), ("torch.float32", "torch.float64", "x.to(torch.float64)"), dtype=torch.float64),
        ),
    ),
    both("Conv1d", (4, 6, 4), (2, 4, 63), stride=3, padding=2, dilation=2, groups=2),
    both("Conv1d", (4, 4, 2), (1, 4, 5), groups=4, bias=False),
    both("Conv1d", (4, 8, 3), (4, 7), padding="valid"),
    both("Conv1d", (3, 2, 5), (2, 3, 7), padding="same", dilation=2),
    both("Conv1d", (3, 2, 1), (0, 3, 7)),
    Case(
        "Conv1d",
        (3, 2, 4),
        (2, 3, 7),
        {"padding": 3, "padding_mode": "reflect"},
        wrong=(Wrong((2, 3, 3), ("length 3", "'reflect'", "by 2 at most", "padding=(3,)")),),
    ),
    both("Conv1d", (3, 2, 4), (3, 7), padding=2, padding_mode="replicate", stride=2),
    Case(
        "Conv1d",
        (3, 2, 3),
        (2, 3, 7),
        {"padding": "same", "padding_mode": "circular", "dilation": 2},
        wrong=(Wrong((2, 3, 1), ("length 1", "'circular'", "by 1 at most", "padding='same'")),),
    ),
    own("Conv1d", (3, 2, 4), (2, 3, 7), padding="same", stride=2),
    own("Conv1d", (3, 2, 4), (2, 3, 8), padding="same", stride=3, padding_mode="circular"),
    own("Conv1d", (3, 2, 1), (2, 3, 7), padding="same", stride=3),
    own("Conv1d", (3, 2, 3), (2, 3, 7), padding="causal", dilation=2),
    own("Conv1d", (4, 4, 2), (4, 7), padding="causal", stride=2, groups=2, padding_mode="replicate"),
    Case(
        "Conv1d",
        (3, 2, 3),
        (3, 3, 7),
        call={"lengths": [7, 4, 0]},
        wrong=(
            Wrong((2, 3, 7), ("lengths", "shape (3,)", "batch of 2")),
            Wrong((3, 3, 6), ("lengths[0] is 7", "6 steps")),
            Wrong((3, 7, 3), ("channels 7", "in_channels is 3")),
            Wrong((3, 3, 7), ("torch.float32", "torch.float64"), dtype=torch.float64),
        ),
    ),
    own("Conv1d", (2, 4, 3), (3, 2, 8), {"lengths": [8, 5, 1]}, padding="same", stride=2, groups=2),
    own("Conv1d", (2, 3, 4), (3, 2, 8), {"lengths": [8, 5, 3]}, padding=2, padding_mode="reflect"),
    own("Conv1d", (2, 3, 3), (3, 2, 8), {"lengths": [8, 5, 2]}, padding="same", stride=2, padding_mode="circular"),
    own("Conv1d", (2, 3, 3), (2, 8), {"lengths": 5}, padding="causal", padding_mode="replicate", bias=False),
    Case(
        "Conv2d",
        (3, 4, 3),
        (2, 3, 5, 6),
        wrong=(
            Wrong((2, 5, 6, 3), ("height 6, width 3", "channels 5", "movedim(-1, -3)")),
            Wrong((5, 6), ("(5, 6)", "(batch, channels 3, height, width)")),
            Wrong((2, 3, 5, 2), ("width 2", "spans 3 places along the width")),
        ),
    ),
    both("Conv2d", (4, 6, (3, 2)), (1, 4, 7, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
    both("Conv2d", (2, 2, 2), (2, 4, 5), padding="same", padding_mode="replicate"),
    both("Conv2d", (2, 3, (3, 1)), (2, 2, 4, 4), padding=(2, 0), padding_mode="reflect", bias=False),
    both("Conv2d", (2, 3, 3), (1, 2, 4, 3), padding=1, padding_mode="circular"),
    both("Conv2d", (2, 3, 3), (0, 2, 4, 4), padding=1),
    own("Conv2d", (2, 3, (4, 3)), (2, 2, 5, 6), padding="same", stride=(2, 3)),
    own("Conv2d", (2, 2, 3), (2, 5, 4), padding="same", stride=2, padding_mode="reflect", groups=2),
    Case(
        "Conv3d",
        (2, 3, 2),
        (1, 2, 3, 4, 3),
        wrong=(
            Wrong((1, 3, 3, 4, 3), ("channels 3, depth 3, height 4, width 3", "in_channels is 2")),
            Wrong((3, 4, 3), ("(batch, channels 2, depth, height, width)",)),
            Wrong((1, 2, 1, 4, 3), ("spans 2 places along the depth",)),
        ),
    ),
    both("Conv3d", (2, 2, (2, 3, 1)), (2, 3, 4, 3), stride=(1, 2, 1), padding=(0, 1, 0), groups=2, bias=False),
    both("Conv3d", (1, 2, 3), (1, 1, 3, 3, 3), padding=1, padding_mode="circular", dilation=1),
    own("Conv3d", (1, 2, 2), (1, 1, 3, 4, 3), padding="same", stride=2, padding_mode="replicate"),
    Case(
        "ConvTranspose1d",
        (4, 6, 3),
        (2, 4, 5),
        {"stride": 2},
        wrong=(
            Wrong((2, 5, 4), ("channels 5, length 4", "in_channels is 4", "movedim(-1, -2)")),
            Wrong((5,), ("(batch, channels 4, length)",)),
            Wrong((2, 4, 0), ("empty length",)),
        ),
    ),
    Case(
        "ConvTranspose1d",
        (2, 3, 3),
        (2, 2, 5),
        {"padding": 2},
        wrong=(Wrong((2, 2, 1), ("padding=(2,)", "cuts off every output along the length")),),
    ),
    both("ConvTranspose1d", (4, 6, 4), (4, 5), stride=3, padding=2, output_padding=2, groups=2, dilation=2),
    both("ConvTranspose1d", (2, 3, 2), (0, 2, 5), stride=3, bias=False),
    own("ConvTranspose1d", (2, 3, 3), (2, 2, 5), {"output_size": [10]}, stride=2, padding=1),
    own("ConvTranspose1d", (4, 2, 4), (2, 4, 5), padding="same", stride=3, groups=2),
    own("ConvTranspose1d", (2, 3, 5), (2, 2, 5), padding="same", stride=2, padding_mode="circular"),
    Case(
        "ConvTranspose1d",
        (2, 3, 4),
        (2, 5),
        {"padding": 1, "stride": 2, "output_padding": 1, "padding_mode": "reflect"},
        wrong=(Wrong((2, 1), ("'reflect'", "by 0 at most")),),
        own=True,
    ),
    Case(
        "ConvTranspose2d",
        (2, 3, 3),
        (2, 2, 3, 4),
        wrong=(Wrong((2, 3, 3, 4), ("channels 3, height 3, width 4", "in_channels is 2")),),
    ),
    both(
        "ConvTranspose2d", (4, 4, (2, 3)), (1, 4, 3, 2), stride=(3, 2), padding=(1, 0), output_padding=(0, 1), groups=4
    ),
    own("ConvTranspose2d", (2, 3, (3, 2)), (2, 3, 4), padding="same", stride=(2, 3), padding_mode="replicate"),
    Case(
        "ConvTranspose3d",
        (2, 2, 2),
        (1, 2, 2, 3, 2),
        {"groups": 2, "stride": 2},
        wrong=(Wrong((1, 1, 2, 3, 2), ("channels 1, depth 2", "in_channels is 2")),),
    ),
    own("ConvTranspose3d", (1, 2, 3), (1, 1, 2, 3, 2), padding="same", stride=(1, 2, 1)),
]

TEXT: list[Case] = [
    Case(
        "TextConv",
        (5, 3),
        (2, 7, 5),
        wrong=(
            Wrong((2, 5, 7), ("time 5, embedding 7", "embedding_size is 5", "x.mT")),
            Wrong((2, 7, 4), ("embedding 4", "embedding_size=4")),
            Wrong((7,), ("(7)", "(batch, time, embedding 5)", "nn.Embedding")),
            Wrong((2, 2, 7, 5), ("(2, 2, 7, 5)", "(batch, time, embedding 5)")),
            Wrong((2, 7, 5), ("torch.float32", "torch.float64", "x.to(torch.float64)"), dtype=torch.float64),
        ),
    ),
    Case("TextConv", (3, 2, (1, 4)), (5, 3), {"bias": False, "activation": torch.tanh}),
    Case("TextConv", (3, 2, (4,)), (2, 2, 3), {"activation": None}),
    Case("TextConv", (2, 1, (2,)), (0, 4, 2)),
    Case(
        "TextConv",
        (3, 2, (2, 3)),
        (3, 6, 3),
        call={"lengths": [6, 2, 0]},
        wrong=(Wrong((2, 6, 3), ("lengths", "batch of 2")), Wrong((3, 5, 3), ("lengths[0] is 6", "5 steps"))),
    ),
    Case("TextConv", (3, 2, (2, 3)), (6, 3), call={"lengths": 2}),
]

SEPARABLE: list[Case] = [
    Case(
        "SeparableConv1d",
        (2, 3, 3),
        (2, 2, 7),
        {"depth_multiplier": 2},
        wrong=(
            Wrong((2, 7, 2), ("channels 7", "in_channels is 2", "movedim(-1, -2)")),
            Wrong((2, 2, 1), ("length 1", "spans 3 places")),
            Wrong((2, 2, 7), ("torch.float32", "torch.float64"), dtype=torch.float64),
        ),
    ),
    Case("SeparableConv1d", (2, 3, 3, 2, "same"), (3, 2, 7), call={"lengths": [7, 4, 0]}),
    Case("SeparableConv1d", (2, 3, 3, 1, "causal", 2), (2, 7), {"padding_mode": "replicate", "bias": False}),
    Case(
        "SeparableConv2d",
        (3, 4, (3, 2), (2, 1), (1, 0)),
        (2, 3, 5, 4),
        wrong=(Wrong((3, 5), ("(batch, channels 3, height, width)",)),),
    ),
    Case("SeparableConv2d", (2, 2, 3), (2, 4, 5), {"padding": 1, "padding_mode": "circular"}),
    Case("SeparableConv3d", (2, 2, 2), (1, 2, 2, 3, 3), {"depth_multiplier": 2}),
]


def then_pooled(layer: str) -> Callable[..., torch.nn.Module]:
    """Make the three layers of torch.nn that a convolution with a pooling behind it stands for."""

    def make(*args: Any, activation: Any = F.relu, pool_size: Any = 2, pool_stride: Any = None, **kwargs: Any) -> Any:
        modules = {F.relu: torch.nn.ReLU(), torch.tanh: torch.nn.Tanh(), None: torch.nn.Identity()}
        parts = {
            "convolution": getattr(torch.nn, layer)(*args, **kwargs),
            "activation": modules.get(activation, activation),
            "pool": getattr(torch.nn, layer.replace("Conv", "MaxPool"))(pool_size, pool_stride),
        }
        return torch.nn.Sequential(OrderedDict(parts))

    return make


CONV_POOL: list[Case] = [
    Case(
        "ConvPool1d",
        (2, 3, 3),
        (2, 2, 9),
        wrong=(
            Wrong((2, 9, 2), ("channels 9", "in_channels is 2", "movedim(-1, -2)")),
            Wrong((2, 2, 2), ("length 2", "spans 3 places")),
            Wrong((2, 2, 3), ("length 3", "spans 2 features along the length", "the 1 that", "pool_size")),
            Wrong((9,), ("(9)", "(batch, channels 2, length)")),
            Wrong((2, 2, 9), ("torch.float32", "torch.float64", "x.to(torch.float64)"), dtype=torch.float64),
        ),
        reference=then_pooled("Conv1d"),
    ),
    Case(
        "ConvPool1d",
        (4, 4, 2, 2, 1, 2, 2, False, "circular"),
        (4, 17),
        {"activation": torch.tanh, "pool_size": 3, "pool_stride": 2},
        reference=then_pooled("Conv1d"),
    ),
    Case(
        "ConvPool2d",
        (1, 4, 5),
        (2, 1, 12, 11),
        wrong=(Wrong((12, 11), ("(12, 11)", "(batch, channels 1, height, width)", "unsqueeze(-3)")),),
        reference=then_pooled("Conv2d"),
    ),
    Case(
        "ConvPool2d",
        (2, 4, (3, 2), (1, 2), (1, 0), 1, 2),
        (2, 7, 9),
        {"activation": None, "pool_size": (3, 2), "pool_stride": (1, 2)},
        reference=then_pooled("Conv2d"),
    ),
    Case(
        "ConvPool2d",
        (2, 3, 3),
        (3, 2, 5, 6),
        {"padding": "same", "activation": torch.nn.SiLU()},
        reference=then_pooled("Conv2d"),
    ),
    Case("ConvPool2d", (1, 2, 2), (0, 1, 5, 4), reference=then_pooled("Conv2d")),
    Case(
        "ConvPool3d",
        (2, 2, 2),
        (1, 2, 4, 5, 3),
        {"pool_size": (1, 2, 2)},
        reference=then_pooled("Conv3d"),
    ),
]

TCNS: list[Case] = [
    Case(
        "TCN",
        (3, [4, 4]),
        (2, 3, 9),
        random=True,
        wrong=(
            Wrong((2, 9, 3), ("channels 9", "in_channels is 3", "movedim(-1, -2)")),
            Wrong((9,), ("(9)", "(batch, channels 3, length)")),
            Wrong((2, 3, 0), ("empty length",)),
            Wrong((2, 3, 9), ("torch.float32", "torch.float64", "x.to(torch.float64)"), dtype=torch.float64),
        ),
    ),
    Case("TCN", (3, 4, 2), (3, 5), {"dilations": (1, 3, 2), "dropout": 0.0, "normalization": None}),
    Case("TCN", (2, [2, 3]), (2, 2, 6), {"dropout": 0.0, "padding_mode": "replicate", "activation": torch.tanh}),
    Case(
        "TCN",
        (2, [3]),
        (3, 2, 6),
        {"dropout": 0.0},
        {"lengths": [6, 2, 0]},
        wrong=(Wrong((3, 2, 5), ("lengths[0] is 6", "5 steps")),),
    ),
    Case("TCN", (2, [3], 1), (0, 2, 4), {"dropout": 0.0}),
]

POOLING: list[Case] = [
    Case(
        "MaxPool1d",
        (3,),
        (2, 3, 9),
        wrong=(
            Wrong((9,), ("(9)", "(batch, channels, length)", "unsqueeze(-2)")),
            Wrong((2, 3, 2), ("length 2", "spans 3 places along the length", "ceil_mode")),
        ),
    ),
    both("MaxPool1d", (3,), (3, 8), stride=2, padding=1, dilation=2, ceil_mode=True),
    both("MaxPool1d", (2,), (0, 3, 5)),
    Case("MaxPool1d", (3,), (2, 3, 9), {"padding": 1}, wrong=(Wrong((2, 3, 0), ("empty length",)),)),
    Case(
        "MaxPool2d",
        (2,),
        (2, 3, 5, 6),
        wrong=(
            Wrong((5, 6), ("(5, 6)", "(batch, channels, height, width)", "unsqueeze(-3)")),
            Wrong((2, 3, 5, 1), ("height 5, width 1", "spans 2 places along the width")),
        ),
    ),
    both("MaxPool2d", ((3, 2),), (1, 2, 7, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2), ceil_mode=True),
    both("MaxPool2d", ((2,),), (2, 63, 4)),
    Case("MaxPool3d", (2,), (1, 2, 4, 3, 5), wrong=(Wrong((4, 3), ("(batch, channels, depth, height, width)",)),)),
    both("MaxPool3d", ((1, 2, 3),), (2, 3, 4, 4), stride=2, padding=(0, 1, 1), ceil_mode=True),
    Case(
        "AvgPool1d",
        (3,),
        (2, 3, 9),
        wrong=(
            Wrong((9,), ("(9)", "(batch, channels, length)")),
            Wrong((2, 3, 2), ("spans 3 places along the length",)),
            Wrong((2, 3, 0), ("empty length",)),
        ),
    ),
    both("AvgPool1d", (4,), (3, 9), stride=3, padding=2, ceil_mode=True),
    both("AvgPool1d", (4,), (2, 3, 9), stride=3, padding=2, ceil_mode=True, count_include_pad=False),
    both("AvgPool1d", (2,), (0, 3, 5)),
    Case(
        "AvgPool2d",
        (2,),
        (2, 3, 5, 6),
        wrong=(
            Wrong((2, 2, 3, 5, 6), ("(2, 2, 3, 5, 6)", "(batch, channels, height, width)", "flatten(0, 1)")),
            Wrong((2, 3, 1, 6), ("spans 2 places along the height",)),
        ),
    ),
    both("AvgPool2d", ((3, 2),), (1, 2, 6, 5), stride=(2, 3), padding=1, ceil_mode=True, count_include_pad=False),
    both("AvgPool2d", (3,), (2, 6, 63), stride=2, padding=1, ceil_mode=True),
    both("AvgPool2d", ((2,),), (2, 2, 4, 4), divisor_override=3),
    Case("AvgPool3d", (2,), (1, 2, 4, 3, 5), wrong=(Wrong((1, 2, 1, 3, 5), ("spans 2 places along the depth",)),)),
    both("AvgPool3d", ((1, 2, 3),), (2, 3, 4, 4), stride=2, padding=(0, 1, 1), ceil_mode=True, count_include_pad=False),
    both("AvgPool3d", (2,), (1, 1, 3, 3, 3), padding=1, divisor_override=5),
    Case(
        "AdaptiveMaxPool1d",
        (3,),
        (2, 3, 7),
        wrong=(
            Wrong((7,), ("(7)", "(batch, channels, length)")),
            Wrong((2, 3, 0), ("empty length",)),
        ),
    ),
    both("AdaptiveMaxPool1d", (5,), (3, 3)),
    Case(
        "AdaptiveMaxPool2d", ((3, 2),), (2, 2, 5, 7), wrong=(Wrong((5, 7), ("channels, height, width",), ValueError),)
    ),
    both("AdaptiveMaxPool2d", ((None, 2),), (2, 5, 63)),
    Case("AdaptiveMaxPool3d", (2,), (1, 2, 3, 4, 5), wrong=(Wrong((4, 5), ("channels, depth, height, width",)),)),
    Case("AdaptiveAvgPool1d", (3,), (2, 3, 7), wrong=(Wrong((2, 3, 0), ("empty length",)),)),
    both("AdaptiveAvgPool1d", (5,), (0, 3, 3)),
    Case(
        "AdaptiveAvgPool2d",
        ((3, None),),
        (2, 2, 5, 7),
        wrong=(Wrong((5, 7), ("channels, height, width",), ValueError),),
    ),
    both("AdaptiveAvgPool2d", (1,), (2, 5, 63)),
    Case("AdaptiveAvgPool3d", (2,), (1, 2, 3, 4, 5), wrong=(Wrong((4, 5), ("channels, depth, height, width",)),)),
    both("AdaptiveAvgPool3d", ((1, None, 3),), (2, 3, 4, 5)),
    Case("LengthPool", (), (5, 2, 3), wrong=(Wrong((5, 2, 3, 1), ("(5, 2, 3, 1)", "(time, batch, features)")),)),
    Case(
        "LengthPool",
        ("mean",),
        (5, 3, 2),
        call={"lengths": [5, 2, 0]},
        wrong=(
            Wrong((3, 5, 2), ("lengths", "shape (3,)", "batch of 5")),
            Wrong((4, 3, 2), ("lengths[0] is 5", "4 steps")),
        ),
    ),
    Case("LengthPool", ("max",), (5, 3, 2), call={"lengths": [5, 2, 0]}),
    Case("LengthPool", ("last",), (5, 3, 2), call={"lengths": [5, 2, 0]}),
    Case("LengthPool", ("mean",), (3, 5, 2), {"batch_first": True}, {"lengths": [5, 2, 0]}),
    Case("LengthPool", ("max", True), (3, 63, 2), call={"lengths": [63, 2, 0]}),
    Case("LengthPool", ("last", True), (3, 5, 2)),
    Case("LengthPool", ("max", True), (5, 2), call={"lengths": 3}),
    Case("LengthPool", ("mean",), (0, 3, 2), call={"lengths": [0, 0, 0]}),
]

NORMALIZATION: list[Case] = [
    Case(
        "BatchNorm1d",
        (4,),
        (3, 4, 5),
        wrong=(
            Wrong((3, 5, 4), ("batch 3, channels 5, length 4", "channels 4", "x.movedim(2, 1)")),
            Wrong((3, 7), ("channels 7", "num_features=7")),
            Wrong((1, 4), ("more than 1 value", "batch 1, channels 4", "eval()"), ValueError),
            Wrong((4,), ("(4)", "(batch, channels 4) or (batch, channels 4, length)", "unsqueeze(0)"), ValueError),
            Wrong((2, 4, 5, 5), ("(2, 4, 5, 5)", "BatchNorm1d, 2d and 3d"), ValueError),
            Wrong((3, 4), ("torch.float32", "torch.float64"), dtype=torch.float64),
        ),
    ),
    both("BatchNorm1d", (1,), (7, 1)),
    both("BatchNorm1d", (3,), (1, 3, 2), eps=1e-3, momentum=None),
    both("BatchNorm1d", (3,), (4, 3), affine=False),
    both("BatchNorm1d", (3,), (4, 3), track_running_stats=False),
    own("BatchNorm1d", (3,), (3, 3, 5), {"lengths": [5, 0, 2]}),
    own("BatchNorm1d", (3,), (3, 3, 5), {"mask": torch.tensor([[1, 1, 0, 1, 0]] * 3).bool()}, momentum=None),
    own("BatchNorm1d", (3,), (4, 3), {"mask": torch.tensor([1, 1, 0, 1]).bool()}, affine=False),
    Case("BatchNorm2d", (3,), (2, 3, 4, 1), wrong=(Wrong((3, 4, 4), ("(3, 4, 4)", "height, width"), ValueError),)),
    both("BatchNorm2d", (2,), (1, 2, 1, 3), momentum=0.5),
    own("BatchNorm2d", (2,), (2, 2, 3, 2), {"mask": torch.tensor([[1, 0], [1, 1], [0, 0]]).bool()}),
    Case("BatchNorm3d", (2,), (2, 2, 1, 3, 2), wrong=(Wrong((2, 3, 1, 3, 2), ("channels 3", "depth 1")),)),
    Case(
        "SyncBatchNorm",
        (3,),
        (2, 3, 2),
        wrong=(
            Wrong((3,), ("(3)", "(batch, channels 3)"), ValueError),
            Wrong((2, 0), ("channels 0", "non-zero"), ValueError),
        ),
    ),
    own("SyncBatchNorm", (3,), (2, 3, 4), {"lengths": [4, 1]}),
    Case(
        "LayerNorm",
        (5,),
        (2, 3, 5),
        wrong=(
            Wrong((2, 5, 3), ("batch 2, time 5, features 3", "(..., 5)", "x.movedim(1, -1)")),
            Wrong((2, 4), ("features 4", "normalized_shape=(4,)")),
            Wrong((), ("()", "(..., 5)")),
            Wrong((2, 5), ("torch.float32", "torch.float64"), dtype=torch.float64),
        ),
    ),
    both("LayerNorm", ((2, 3),), (4, 2, 3), eps=1e-2),
    both("LayerNorm", (3,), (0, 3)),
    both("LayerNorm", (1,), (3, 1), bias=False),
    both("LayerNorm", (4,), (1, 4), elementwise_affine=False),
    own("LayerNorm", (4,), (3, 5, 4), {"lengths": [5, 0, 2]}),
    own("LayerNorm", ((3, 4),), (2, 3, 4), {"lengths": [1, 3]}),
    own("LayerNorm", (4,), (2, 3, 4), {"mask": torch.tensor([1, 0, 1]).bool()}, elementwise_affine=False),
    Case(
        "GroupNorm",
        (2, 6),
        (2, 6, 3),
        wrong=(
            Wrong((2, 3, 6), ("batch 2, channels 3, length 6", "channels 6", "x.movedim(2, 1)")),
            Wrong((6,), ("(6)", "(batch, channels 6, *space)", "unsqueeze(0)")),
        ),
    ),
    both("GroupNorm", (3, 3), (2, 3, 2, 2)),
    both("GroupNorm", (1, 4), (1, 4)),
    both("GroupNorm", (2, 4), (0, 4, 3), affine=False),
    own("GroupNorm", (2, 6), (3, 6, 4), {"lengths": [4, 2, 0]}),
    Case(  # groups of one entry: with a small eps torch's gradient of the input is its rounding, and not 0
        "GroupNorm", (2, 2, 0.1), (3, 2), wrong=(Wrong((1, 2), ("more than 1 value", "batch 1"), ValueError),)
    ),
    both("InstanceNorm1d", (3,), (2, 3, 5)),
    Case(
        "InstanceNorm1d",
        (3,),
        (2, 3, 5),
        {"affine": True, "track_running_stats": True},
        wrong=(
            Wrong((2, 5, 3), ("channels 5", "channels 3", "x.movedim(2, 1)"), ValueError),
            Wrong((2, 3, 5, 1), ("(2, 3, 5, 1)", "InstanceNorm1d, 2d and 3d"), ValueError),
            Wrong((2, 3, 1), ("more than 1 spatial element", "length 1"), ValueError),
        ),
    ),
    Case(
        "InstanceNorm1d",
        (3,),
        (3, 5),
        {"track_running_stats": True, "momentum": 0.3},
        wrong=(Wrong((4, 5), ("channels 4", "num_features=4")),),
    ),
    own("InstanceNorm1d", (3,), (4, 3, 5), {"lengths": [5, 0, 2, 1]}, affine=True, track_running_stats=True),
    own("InstanceNorm1d", (2,), (2, 5), {"lengths": 3}),
    both("InstanceNorm2d", (2,), (1, 2, 3, 2), affine=True),
    both("InstanceNorm2d", (2,), (2, 3, 1)),
    own("InstanceNorm2d", (2,), (2, 2, 2, 2), {"mask": torch.tensor([[[1, 0], [1, 1]], [[0, 0], [1, 0]]]).bool()}),
    both("InstanceNorm3d", (2,), (2, 2, 1, 3, 1)),
    Case(
        "RMSNorm",
        (5,),
        (2, 3, 5),
        wrong=(Wrong((2, 5, 3), ("batch 2, time 5, features 3", "(..., 5)", "x.movedim(1, -1)")),),
    ),
    both("RMSNorm", ((2, 3),), (2, 2, 3), eps=1e-3),
    both("RMSNorm", (3,), (1, 3), elementwise_affine=False),
    own("RMSNorm", (4,), (3, 5, 4), {"lengths": [5, 0, 2]}),
    own("RMSNorm", ((3, 4),), (2, 3, 4), {"lengths": [1, 3]}, eps=1e-5),
    Case(
        "LocalResponseNorm",
        (3,),
        (2, 5, 4),
        {"alpha": 0.3},
        wrong=(Wrong((2, 5), ("(2, 5)", "(batch, channels, *space)", "unsqueeze(-1)"), ValueError),),
    ),
    both("LocalResponseNorm", (2,), (1, 3, 2, 2), alpha=0.5, beta=1.5, k=2.0),
    both("LocalResponseNorm", (7,), (2, 3, 1, 2, 1), alpha=0.5),
    own("LocalResponseNorm", (3,), (2, 5, 4), {"lengths": [4, 1]}, alpha=0.3),
    Case(
        "Normalization",
        (-1, -1, 5),
        (2, 3, 5),
        wrong=(
            Wrong((2, 3, 4), ("axis 2 4", "size 5 along axis 2", "shape 4")),
            Wrong((), ("()", "axes [-1]")),
        ),
    ),
    own("Normalization", ((0, 2), 1, 3), (2, 3, 4), {"lengths": [4, 2]}, time_axis=2),
    own("Normalization", ((1, 3), (3, 0), (2, 3)), (3, 2, 1, 2), bias=False),
    own("Normalization", (0,), (4, 2), {"mask": torch.tensor([[1], [1], [0], [1]]).bool()}),
]

DROPOUT: list[Case] = [
    Case("Dropout", (0.5,), (4, 7), random=True),
    Case("Dropout", (), (3,), {"inplace": True}, random=True),
    Case("Dropout", (0.3,), (0, 5), random=True),
    Case("Dropout", (0.0,), (2, 3, 4), random=True),
    Case("Dropout", (1.0,), (1, 3), random=True),
    Case("Dropout", (0.2,), (3, 5), {"seed": 7}, random=True, own=True),
    Case(
        "Dropout1d",
        (0.4,),
        (2, 5, 3),
        random=True,
        wrong=(
            Wrong((4,), ("(4)", "(batch, channels, length) or (channels, length)", "nn.Dropout")),
            Wrong((2, 3, 4, 5), ("(2, 3, 4, 5)", "(batch, channels, length)")),
        ),
    ),
    Case("Dropout1d", (), (5, 3), random=True),
    Case(
        "Dropout2d",
        (0.4,),
        (2, 5, 3, 1),
        random=True,
        wrong=(Wrong((4,), ("(4)", "(batch, channels, height, width)", "nn.Dropout")),),
    ),
    Case("Dropout2d", (), (1, 5, 2, 2), {"inplace": True}, random=True),
    Case(
        "Dropout3d",
        (0.4,),
        (2, 5, 1, 2, 3),
        random=True,
        wrong=(Wrong((2, 3, 4), ("(2, 3, 4)", "(batch, channels, depth, height, width)")),),
    ),
    Case("Dropout3d", (), (5, 2, 1, 2), random=True),
    Case("AlphaDropout", (0.3,), (4, 7), random=True),
    Case("AlphaDropout", (1.0,), (4,), {"inplace": True}, random=True),
    Case(
        "FeatureAlphaDropout",
        (0.3,),
        (4, 5, 2),
        random=True,
        wrong=(Wrong((4,), ("(4)", "(batch, channels, ...)", "nn.AlphaDropout")),),
    ),
    Case(
        "LockedDropout",
        (0.4,),
        (4, 2, 3),
        random=True,
        wrong=(Wrong((4,), ("(4)", "(time, batch, features) or (time, features)")),),
    ),
    Case(
        "LockedDropout",
        (0.4,),
        (2, 4, 3),
        {"batch_first": True},
        random=True,
        wrong=(Wrong((2, 4, 3, 1), ("(2, 4, 3, 1)", "(batch, time, features) or (time, features)")),),
    ),
    Case("LockedDropout", (), (4, 3), {"batch_first": True, "inplace": True}, random=True),
    Case("DropPath", (0.4,), (5, 2, 3), random=True, wrong=(Wrong((), ("()", "(batch, ...)", "first axis")),)),
    Case("DropPath", (1.0,), (1, 2), random=True),
    Case(
        "DropBlock2d",
        (0.3, 3),
        (2, 2, 5, 6),
        random=True,
        wrong=(Wrong((5, 6), ("(5, 6)", "(batch, channels, height, width) or (channels, height, width)")),),
    ),
    Case("DropBlock2d", (0.3, 2), (2, 5, 4), random=True),
    Case("DropBlock2d", (0.3,), (0, 2, 3, 4), {"inplace": True}, random=True),
]

RECURRENT: list[Case] = [
    Case(
        "RNN",
        (3, 4),
        (5, 2, 3),
        wrong=(
            Wrong((5, 2, 7), ('"encoder"', "features 7", "input_size is 3", "batch_first=True")),
            Wrong((3, 5, 2), ("time 3", "The time axis has that size")),
            Wrong((3,), ("(time, batch, features)",), ValueError),
            Wrong((5, 2, 3, 1), ("4 axes",), ValueError),
        ),
    ),
    both("RNN", (3, 5), (7, 1, 3), nonlinearity="relu", bidirectional=True),
    both("RNN", (3, 4), (6, 3), bias=False),
    both("GRU", (3, 4), (5, 2, 3)),
    both("GRU", (1, 1), (1, 1, 1)),
    both("GRU", (3, 4, 2), (2, 5, 3), batch_first=True, bidirectional=True),
    both("GRU", (3, 4, 3), (6, 2, 3), bias=False),
    own("GRU", (3, 4, 2), (6, 3, 3), {"lengths": [6, 0, 3]}, bidirectional=True),
    own("GRU", (3, 4), (4, 5, 3), {"lengths": [3, 1, 5, 2]}, batch_first=True),
    both("LSTM", (3, 4), (5, 2, 3)),
    both("LSTM", (63, 7), (3, 2, 63)),
    both("LSTM", (3, 5, 2), (6, 2, 3), bidirectional=True, proj_size=2),
    own("LSTM", (3, 4, 2), (6, 3, 3), {"lengths": [2, 6, 1]}, bidirectional=True),
    Case(
        "RNNCell", (3, 4), (2, 3), wrong=(Wrong((2, 5), ("(batch 2, features 5)", "Make the layer with input_size=5")),)
    ),
    both("RNNCell", (3, 4), (2, 3), nonlinearity="relu", bias=False),
    Case("GRUCell", (3, 4), (2, 3), wrong=(Wrong((2, 2, 3), ("3 axes", "nn.GRU"), ValueError),)),
    Case("GRUCell", (3, 4), (3,), wrong=(Wrong((5,), ("(features 5)", "input_size is 3")),)),
    both("LSTMCell", (3, 4), (2, 3)),
    both("LSTMCell", (3, 4), (3,), bias=False),
]

ROW_WISE: list[Case] = [
    Case(
        "DyT",
        (5,),
        (2, 3, 5),
        wrong=(
            Wrong((2, 5, 3), ("batch 2, time 5, features 3", "(..., 5)", "input_size", "x.movedim(1, -1)")),
            Wrong((2, 4), ("batch 2, features 4", "(..., 5)", "another input_size")),
            Wrong((), ("()", "(..., 5)")),
            Wrong((2, 5), ("torch.float32", "torch.float64", "x.to(torch.float64)"), dtype=torch.float64),
        ),
    ),
    Case("DyT", (63,), (63,), {"alpha": 1.5}),
    Case("DyT", (1,), (0, 2, 1)),
    Case("ScaleNorm", (5,), (2, 3, 5), wrong=(Wrong((5, 2), ("batch 5, features 2", "x.movedim(0, -1)")),)),
    Case("ScaleNorm", (1,), (7, 1), {"eps": 0.5}),
    Case("ScaleNorm", (3,), (0, 3)),
    Case("SwiGLU", (5, 7), (2, 3, 5), wrong=(Wrong((2, 3, 7), ("features 7", "(..., 5)", "its input_size")),)),
    Case("SwiGLU", (1, 3), (1,)),
    Case("GEGLU", (5, 7), (2, 3, 2, 5), wrong=(Wrong((5, 7), ("batch 5, features 7", "x.movedim(0, -1)")),)),
    Case("GEGLU", (3, 1), (0, 3)),
    Case(
        "AddNorm",
        (3, 0.0),
        (2, 2, 3),
        {"eps": 1e-3},
        {"sublayer": torch.linspace(-1, 1, 12).reshape(2, 2, 3)},
        wrong=(
            Wrong((2, 2, 4), ("the input x", "features 4", "(..., 3)")),
            Wrong((2, 3), ("sublayer", "batch 2, time 2, features 3", "x has (batch 2, features 3)", "expand(2, 3)")),
            Wrong((2, 2, 3), ("torch.float32", "torch.float64"), dtype=torch.float64),
        ),
    ),
    Case("AddNorm", (4, 0.4), (3, 4), {"seed": 7}, {"sublayer": torch.linspace(-1, 1, 12).reshape(3, 4)}, random=True),
    Case("AddNorm", (2,), (2,), call={"sublayer": torch.tensor([0.5, -2.0])}, random=True),
]

LINEAR = [
    Case(
        "Linear",
        (5, 7),
        (2, 3, 5),
        wrong=(
            Wrong((2, 3, 7), ("nn.Linear", "batch 2, time 3, features 7", "(..., features 5)", "in_features=7")),
            Wrong((5, 2), ("features 2", "x.transpose(-1, -2)")),
            Wrong((), ("()", "(..., features 5)")),
            Wrong((2, 5), ("torch.float32", "torch.float64", "x.to(torch.float64)"), dtype=torch.float64),
        ),
    ),
    Case("Linear", (63, 65), (4, 63), {"bias": False}),
    Case("Linear", (1, 1), (1,)),
    Case("Linear", (3, 2), (0, 3)),
]

COMPONENTS = (
    RECURRENT + CONVOLUTION + TEXT + SEPARABLE + CONV_POOL + TCNS + POOLING + NORMALIZATION + DROPOUT + ROW_WISE
)
ALL = COMPONENTS + LINEAR
