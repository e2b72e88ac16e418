"""What the axes of the tensors between layers mean: told by the kinds of the layers that read and write them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.nn.axes import AXES, space_axes
from pellucid.nn.component import Component
from pellucid.nn.swapped.exchange import kind_of, runs_as

Axes = tuple[str, ...]  # a name for every axis, "" for one that nothing is known of
Pair = tuple[list[Axes], list[Axes]]  # of the first tensors that a layer reads, and of those that it returns
UNKNOWN: Axes = ()
FEATURES = "features"
KEEPING = {"_softmax", "_log_softmax", "_to_copy", "clone"}  # operations that leave every entry in its place


class Meanings:
    """What the axes of tensors mean, remembered as long as the tensors live and, by their numbers, ever after.

    Tensors whose axes mean the same, since an operation went from one to the other entry by entry, learn together.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._axes: list[Axes] = []
        self._same: list[int] = []  # of every number another one that learns with it, at the end of which is itself

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor."""
        reference, number = self._numbers.get(id(tensor), (None, -1))
        if reference is None or reference() is not tensor:
            number = len(self._axes)
            self._numbers[id(tensor)] = weakref.ref(tensor), number
            self._axes.append(UNKNOWN)
            self._same.append(number)
        return number

    def learn(self, tensor: Tensor, axes: Axes) -> None:
        """Remember the meaning of a tensor's axes unless more is known already."""
        if len(axes) == tensor.ndim:
            self._learn(self._first(self.number(tensor)), axes)

    def alike(self, one: Tensor, other: Tensor) -> None:
        """Remember that the axes of two tensors mean the same."""
        first, second = (self._first(self.number(tensor)) for tensor in (one, other))
        if first != second:
            self._same[second] = first
            self._learn(first, self._axes[second])

    def of(self, tensor: Tensor) -> Axes:
        """Return what is known of a tensor's axes."""
        return self.of_number(self.number(tensor))

    def of_number(self, number: int) -> Axes:
        """Return what is known of the axes of the tensor that had this number."""
        return self._axes[self._first(number)]

    def follow(self, name: str, args: Sequence[Any], result: Any, entrywise: bool) -> None:
        """Carry the meaning of axes through an operation that keeps or permutes them."""
        if not isinstance(result, Tensor) or not args:
            return
        if name in ("transpose", "permute") and isinstance(args[0], Tensor):
            axes = self.of(args[0])
            order = list(range(args[0].ndim))
            if name == "permute":
                order = [axis % args[0].ndim for axis in args[1]]
            else:
                order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
            if axes:
                self.learn(result, tuple(axes[axis] for axis in order))
        elif entrywise or name in KEEPING:
            for value in args:
                if isinstance(value, Tensor) and value.shape == result.shape:
                    self.alike(value, result)

    def _learn(self, number: int, axes: Axes) -> None:
        if sum(map(bool, axes)) > sum(map(bool, self._axes[number])):
            self._axes[number] = axes

    def _first(self, number: int) -> int:
        while self._same[number] != number:
            self._same[number] = number = self._same[self._same[number]]
        return number


def meaning(
    layer: nn.Module, args: tuple[Any, ...], read: Sequence[Tensor], given: Sequence[Tensor], known: Axes
) -> Pair:
    """Name the axes of what a layer reads and returns, as far as its kind tells; () where it does not.

    Args:
        layer: the layer.
        args: what it was called with.
        read: the tensors among that.
        given: the tensors that it returned.
        known: what is known already of the axes of the first tensor that it reads.
    """
    if not read or not given:
        return [], []
    for kind, rule in RULES:
        if isinstance(layer, kind):
            return rule(layer, read, given, known)
    if isinstance(layer, Component):
        return _by_symbols(layer, args)
    return [], []


def keeps(layer: nn.Module, read: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether a layer, such as an activation or a dropout, returns what it reads with the axes as they are."""
    if not read or not given or read[0].shape != given[0].shape or isinstance(layer, (nn.RNNBase, *ATTENTIVE)):
        return False
    kind = runs_as(kind_of(layer))
    return kind.__module__.startswith(("torch.nn.", "pellucid.nn.")) and not any(True for _ in layer.children())


def _last(tensor: Tensor, known: Axes) -> Axes:
    """The axes of a tensor whose last one is features: the others as they are known; a matrix is a batch of rows."""
    lead = known[:-1] if len(known) == tensor.ndim else ("batch",) if tensor.ndim == 2 else ("",) * (tensor.ndim - 1)
    return (*lead, FEATURES)


def _features(layer: nn.Module, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    x = _last(read[0], known)
    return [x], [(*x[: given[0].ndim - 1], FEATURES)]


def _normalized(layer: Any, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    own = known if known else _last(read[0], known) if len(layer.normalized_shape) == 1 else UNKNOWN
    return [own], [own]


def _embedding(layer: nn.Module, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    lead = known if len(known) == read[0].ndim else ("",) * read[0].ndim
    return [known], [(*lead, "embedding")]


def _bag(layer: nn.Module, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    return [known], [("batch", "embedding")]


def _channels(layer: nn.Module, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    """Batch, channels and space, by the number of axes."""
    x, y = (space_axes(t.ndim) if 1 < t.ndim < 6 else UNKNOWN for t in (read[0], given[0]))
    return [x], [y]


def _space(layer: nn.Module, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    """Channels and space, with a batch or without, by the name of the layer's class in torch.nn."""
    count = next(int(m[1]) for k in type(layer).__mro__ if (m := re.search(r"([123])d$", k.__name__)))

    def named(tensor: Tensor) -> Axes:
        lead = ("batch", "channels")[max(0, count + 2 - tensor.ndim) :]
        return (*lead, *AXES[count]) if tensor.ndim in (count + 1, count + 2) else UNKNOWN

    return [named(read[0])], [named(tensor) for tensor in given]


def _recurrent(layer: Any, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    if isinstance(layer, nn.RNNCellBase):
        row: Axes = ("batch", FEATURES)[-read[0].ndim :]
        return [row] * len(read), [row] * len(given)
    steps: Axes = ("batch", "time") if layer.batch_first else ("time", "batch")
    x: Axes = (*steps, FEATURES) if read[0].ndim == 3 else ("time", FEATURES)
    state: Axes = ("layers × directions", "batch", FEATURES) if read[0].ndim == 3 else ("layers × directions", FEATURES)
    return [x, *[state] * (len(read) - 1)], [x, *[state] * (len(given) - 1)]


def _attention(layer: Any, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    first: Any = next((m for m in layer.modules() if isinstance(m, nn.MultiheadAttention)), layer)
    lead: Axes = ("batch", "time") if getattr(first, "batch_first", False) else ("time", "batch")
    lead = lead if read[0].ndim == 3 else ("time",)
    inner: Axes = (*lead, FEATURES)
    weights: Axes = ("batch", "heads", "queries", "keys")
    names = {2: ("queries", "keys"), 3: ("batch", "queries", "keys"), 4: weights}
    count = sum(t.ndim == read[0].ndim and t.shape[-1] == read[0].shape[-1] for t in read[:3])
    return [inner] * count, [inner, *(names.get(t.ndim, UNKNOWN) for t in given[1:])]


def _flatten(layer: Any, read: Sequence[Tensor], given: Sequence[Tensor], known: Axes) -> Pair:
    if layer.start_dim != 1 or given[0].ndim != 2:
        return [known], []
    return [known], [(known[0] if known else "batch", FEATURES)]


def _by_symbols(layer: Any, args: tuple[Any, ...]) -> Pair:
    """The names that a layer of pellucid's own gives the axes of x and y."""
    try:
        named = {symbol.name: symbol.axes for symbol in layer.symbols(*args)}
    except Exception:  # it is called with what its formula does not show
        return [], []
    return [named.get("x", UNKNOWN)], [named.get("y", UNKNOWN)]


SPATIAL = (
    nn.modules.conv._ConvNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.instancenorm._InstanceNorm,
    nn.Dropout2d,
    nn.Dropout3d,
)
CHANNEL_FIRST = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Softmax2d,
)
ATTENTIVE = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
RULES: tuple[tuple[Any, Callable[[Any, Sequence[Tensor], Sequence[Tensor], Axes], Pair]], ...] = (
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (SPATIAL, _space),
    (CHANNEL_FIRST, _channels),
    ((nn.Linear, nn.Bilinear), _features),
    ((nn.LayerNorm, nn.RMSNorm), _normalized),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _bag),
    (ATTENTIVE, _attention),
    (nn.Flatten, _flatten),
)


def sizes(shape: torch.Size | tuple[int, ...], axes: Axes) -> list[tuple[str, int]]:
    """Pair every size with the name of its axis, "" where it has none."""
    names = axes if len(axes) == len(shape) else ("",) * len(shape)
    return list(zip(names, shape, strict=True))
