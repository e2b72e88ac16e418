"""What the exhibit of normalization shows: the input, every member's numbers for it, and the formula as programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.errors import Unsupported
from pellucid.explanation.page.arrays import blocks
from pellucid.explanation.page.normalization.batches import kept_statistics
from pellucid.explanation.page.normalization.kinds import Given, Kind, Recorded, kinds_of, numbers, written
from pellucid.explanation.page.normalization.layout import Layout, layout_of
from pellucid.explanation.report import Exhibit
from pellucid.nn.normalization.averages import Synchronized
from pellucid.nn.normalization.batch_norm import BatchNormFamily, Remembering
from pellucid.nn.normalization.instance_norm import InstanceNormFamily

NAMES = {
    nn.LayerNorm: "layer", nn.RMSNorm: "rms", nn.GroupNorm: "group", nn.LocalResponseNorm: "lrn",
    nn.Normalization: "own", BatchNormFamily: "batch", InstanceNormFamily: "instance",
}  # fmt: skip
OVERVIEW = (32, 48)  # blocks


def exhibit(explained: Any) -> Exhibit | None:
    """Make the exhibit of a layer of the normalization family; none for an input without numbers."""
    if explained.x.numel() == 0 or isinstance(explained.average, Synchronized):
        return None
    return Exhibit("normalization", Data(explained).data())


class Data:
    """The numbers of the exhibit.

    All members read the same input. γ, β and the running statistics are the layer's own where their shape is the same
    for a member, otherwise those of a new layer.
    """

    def __init__(self, explained: Any) -> None:
        self.explained, self.layer = explained, explained.layer
        self.layout: Layout = layout_of(explained)
        self.own = next(name for kind, name in NAMES.items() if isinstance(self.layer, kind))
        self.kinds = list(kinds_of(self.layout, self.layer, self.own))
        self.recorded = {kind.formula: Recorded(kind.formula) for kind in self.kinds}
        generator = torch.Generator().manual_seed(explained.request.seed)
        drawn = torch.randn(self.layout.x.shape, generator=generator, dtype=torch.float64)
        self.gradient = (drawn * 10).round() / 10 * (1 if self.layout.real is None else self.layout.real)
        self.eps = float(explained.bound.get("eps", 1e-5))
        self.groups = getattr(self.layer, "num_groups", None)

    def data(self) -> dict[str, Any]:
        """Put everything together."""
        layout = self.layout
        groups = [kind.groups for kind in self.kinds if kind.name == "group"]
        values: dict[str, Any] = {key: self.run(kind, self.given(kind)) for key, kind in self.by_key()}
        running = kept_statistics(layout, self.layer, self.own)
        for key, kind in self.remembering():
            values[key] = self.run(kind, self.given(kind), self.remembered())
            assert running is not None
            for batch in range(1, len(running["means"])):
                after = self.after(running["means"][batch], running["vars"][batch])
                values[f"{key}/{batch}"] = self.run(kind, self.given(kind), after)
        own = self.own_key(groups)
        if self.explained.real.numel() == layout.x.numel():
            values[own]["y"] = layout.part(self.explained.real.cpu().double().reshape(layout.x.shape))
        names = list(dict.fromkeys(kind.name for kind in self.kinds))
        return {
            "own": self.own,
            "kinds": names,
            "letters": list(layout.letters),
            "channel": layout.channel,
            "shape": list(layout.x.shape),
            "shown": list(layout.shown),
            "whole": layout.whole,
            "x": layout.part(layout.x),
            "upstream": layout.part(self.gradient),
            "real": None if layout.real is None else layout.part(layout.real.expand(layout.x.shape).double()),
            "counts": self.counts(),
            "lengths": self.lengths(),
            "eps": self.eps,
            "numbers": self.hyperparameters(),
            "groups": groups,
            "group": self.groups or (groups[(len(groups) - 1) // 2] if groups else 1),
            "members": {kind.name: self.member(kind) for kind in self.kinds},
            "eval": self.explained.remembered,
            "values": values,
            "overview": None if layout.whole else self.overview(),
            "running": running,
            **self.programs(),
        }

    # -- members ------------------------------------------------------------------------------------------------

    def by_key(self) -> list[tuple[str, Kind]]:
        """Every member under its name in the page."""
        return [(_key(kind), kind) for kind in self.kinds]

    def own_key(self, groups: list[int]) -> str:
        """Where the values of the layer itself are."""
        key = f"group/{self.groups}" if self.own == "group" and self.groups in groups else self.own
        return f"{self.own}/eval" if self.explained.remembered else key

    def remembering(self) -> list[tuple[str, Kind]]:
        """The member that may take what training has kept for its averages: the layer, or a BatchNorm in its place."""
        if isinstance(self.layer, Remembering) and self.own == "batch" and not self.tracks():
            return []
        keeping = self.own if self.own == "instance" and self.tracks() else "batch"
        return [(f"{kind.name}/eval", kind) for kind in self.kinds if kind.name == keeping]

    def tracks(self) -> bool:
        """Whether the layer itself has running statistics."""
        return isinstance(self.layer, Remembering) and self.layer.running_mean is not None

    def remembered(self) -> tuple[Tensor, Tensor]:
        """The running statistics along the input: the layer's, or those of a new one."""
        layout, channel = self.layout, self.layout.channel
        assert channel is not None
        size = layout.x.shape[channel]
        kept = (torch.zeros(size), torch.ones(size))
        if self.tracks() and self.layer.running_var is not None:
            kept = (self.layer.running_mean, self.layer.running_var)
        mean, var = (layout.along(value.detach().cpu().double(), (channel,)) for value in kept)
        return mean, var

    def after(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Running statistics of the channels in the page along the input; the others stay as they are."""
        found = []
        for value, full in zip((mean, var), self.remembered(), strict=True):
            whole = full.flatten().clone()
            whole[: len(value)] = value
            found.append(whole.reshape(full.shape))
        return found[0], found[1]

    def affine(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """γ and β of a member, spread along the input."""
        layout = self.layout
        spread = layout.along(torch.ones([layout.x.shape[a] for a in kind.affine], dtype=torch.float64), kind.affine)
        gamma, beta = spread, torch.zeros_like(spread)
        if self.has_own(kind):
            weight, bias = self.layer.weight, self.layer.bias
            if self.own == "own":
                weight, bias = (None if v is None else self.layer._spread(v, layout.x) for v in (weight, bias))
            gamma = gamma if weight is None else weight.detach().cpu().double().reshape(spread.shape)
            beta = beta if bias is None else bias.detach().cpu().double().reshape(spread.shape)
        return gamma, beta

    def has_own(self, kind: Kind) -> bool:
        """Whether γ and β of a member have the shape of the layer's own, and so its numbers."""
        own = next(k for k in self.kinds if k.name == self.own)
        return kind.affine == own.affine and self.layer.weight is not None

    def member(self, kind: Kind) -> dict[str, Any]:
        """What the page says of a member: its axes, and what it learns."""
        gamma, beta = self.affine(kind)
        scales = (kind.name != self.own or self.layer.weight is not None) and kind.name != "lrn"
        shifts = kind.centred and (kind.name != self.own or self.layer.bias is not None)
        found = {"axes": list(kind.axes), "affine": list(kind.affine), "centred": kind.centred, "window": kind.window}
        learned = {"scales": scales, "shifts": shifts, "layers": self.has_own(kind)}
        parts = {"gamma": self.layout.part(gamma), "beta": self.layout.part(beta)}
        return found | learned | (parts if kind.name != "lrn" else {})

    def hyperparameters(self) -> dict[str, float]:
        """Numbers of the formula beside ε."""
        return {name: float(self.explained.bound[name]) for name in ("alpha", "beta", "k")} if self.own == "lrn" else {}

    def symbols(self, kind: Kind, x: Tensor | None = None) -> dict[str, Tensor]:
        """What the formula reads; ``x`` is one sample of the input, or all."""
        x = self.layout.x if x is None else x
        if kind.name == "lrn":
            numbers = {name: torch.tensor(value, dtype=x.dtype) for name, value in self.hyperparameters().items()}
            return {"x": x, **numbers}
        gamma, beta = self.affine(kind)
        return {"x": x, "gamma": gamma, **({"beta": beta} if kind.centred else {}), "eps": torch.tensor(self.eps).to(x)}

    def given(self, kind: Kind) -> Given:
        """What the formula reads and the gradient of its result."""
        return Given(self.symbols(kind), self.gradient, self.layout.real)

    def run(
        self, kind: Kind, given: Given, remembered: tuple[Tensor, Tensor] | None = None, layout: Layout | None = None
    ) -> dict[str, Any]:
        """Run the formula of a member."""
        return numbers(kind, self.recorded[kind.formula], layout or self.layout, given, remembered)

    def write(self, kind: Kind, layout: Layout, real: Tensor | None, mode: str) -> dict[str, Any]:
        """Write the formula of a member as a program."""
        return written(kind, self.recorded[kind.formula].lines, layout, self.symbols(kind, layout.x), real, mode)

    # -- what is real -------------------------------------------------------------------------------------------

    def lengths(self) -> list[int] | None:
        """How many steps of each sample are real, where they are the first ones and all are in the page."""
        layout, time, channel = self.layout, self.layout.time, self.layout.channel
        if time is None or channel is None or not layout.whole:
            return None
        if layout.real is None:
            return [layout.x.shape[time]] * layout.x.shape[0]
        marked = layout.real.squeeze(channel)
        lengths = marked.sum(1)
        first = torch.arange(layout.x.shape[time]) < lengths[:, None]
        return lengths.tolist() if torch.equal(first, marked) else None

    def counts(self) -> dict[str, Tensor] | None:
        """How many real numbers each average takes, for an input that is not all in the page."""
        if self.layout.whole or self.layout.real is None or self.own == "own":
            return None
        ones = self.layout.real.expand(self.layout.x.shape).double()
        return {
            key: self.layout.part(kind.average(self.layout)(ones, None)(ones) * _members(kind, self.layout))
            for key, kind in self.by_key()
            if kind.name != "lrn"
        }

    # -- further parts ------------------------------------------------------------------------------------------

    def overview(self) -> Tensor:
        """The means over all but the first two axes, by blocks."""
        x = self.layout.x
        matrix = x.reshape(1, -1) if x.ndim == 1 else x.reshape(*x.shape[:2], -1).mean(-1)
        return blocks(matrix, *OVERVIEW).float()

    def programs(self) -> dict[str, Any]:
        """The formula as programs, one a member, where the page has all that they read."""
        if not self.layout.whole:
            return {"programs": None, "unsupported": None, "alone": None}
        layout, real = self.layout, self.layout.real
        if real is None and layout.time is not None:
            shape = [1 if axis == layout.channel else size for axis, size in enumerate(layout.x.shape)]
            real = torch.ones(shape, dtype=torch.bool)
        found: dict[str, Any] = {}
        try:
            for key, kind in self.by_key():
                found[key] = self.write(kind, layout, real, "train")
                if kind.name in ("batch", "instance"):
                    found[f"{key}/unbiased"] = self.write(kind, layout, real, "unbiased")
            for key, kind in self.remembering():
                found[key] = self.write(kind, layout, real, "eval")
            alone = self.alone(found, real)
        except Unsupported as unknown:
            return {"programs": None, "unsupported": str(unknown), "alone": None}
        return {"programs": found, "unsupported": None, "alone": alone}

    def alone(self, programs: dict[str, Any], real: Tensor | None) -> dict[str, Any] | None:
        """Every sample as a batch of its own: x̂ of Batch and Layer, and what a BatchNorm says to it."""
        if self.own == "own":
            return None
        layout = self.layout
        found: dict[str, Any] = {"error": self.refusal()}
        for kind in self.kinds:
            if kind.name not in ("batch", "layer"):
                continue
            x_hat = []
            for index in range(layout.x.shape[0]):
                one = slice(index, index + 1)
                part = Layout(layout.x[one], None if layout.real is None else layout.real[one], "", layout.channel)
                given = Given(self.symbols(kind, part.x), self.gradient[one], part.real)
                x_hat.append(self.run(kind, given, layout=part)["x_hat"])
            found[kind.name] = torch.cat(x_hat)
            marked = None if real is None else real[:1]
            first = Layout(layout.x[:1], marked, "", layout.channel)
            programs[f"{kind.name}/alone"] = self.write(kind, first, marked, "train")
        return found

    def refusal(self) -> str | None:
        """What BatchNorm says to one sample in training, if it has a single number per channel."""
        layout, channel = self.layout, self.layout.channel
        assert channel is not None
        if layout.space and layout.x[:1].numel() != layout.x.shape[channel]:
            return None
        layer = nn.BatchNorm1d(layout.x.shape[channel])
        try:
            layer(layout.x[:1].float().reshape(1, -1))
        except ValueError as error:
            return str(error)
        return None


def _key(kind: Kind) -> str:
    return f"group/{kind.groups}" if kind.name == "group" else kind.name


def _members(kind: Kind, layout: Layout) -> int:
    """How many numbers one average takes where there is no padding."""
    count = 1
    for axis in kind.axes:
        count *= layout.x.shape[axis]
    return count // kind.groups
