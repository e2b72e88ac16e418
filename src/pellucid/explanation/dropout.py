"""Explains dropout: the draws, the mask, the scaled values, and the crowd of networks that the masks make.

Of weights that are dropped, every one's mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from pellucid.explanation import request as shared
from pellucid.explanation.component import ComponentExplained
from pellucid.explanation.cost import Tally, count
from pellucid.explanation.lines import Lines
from pellucid.explanation.model.counts import Counts
from pellucid.explanation.paper import joined
from pellucid.explanation.pieces import Name
from pellucid.explanation.report import Rows, Step, Total, Values
from pellucid.explanation.request import Request
from pellucid.explanation.trace import Trace
from pellucid.formula.drop import drop, dropping

CROWD = 4  # masks that are shown
MANY = 1000  # masks that are averaged, fewer where that would draw more than MOST numbers
MOST = 10**7
COUNTED = 40  # coin flips whose number of outcomes is written out


class DropoutExplained(ComponentExplained):
    """The parts of the report on a layer of the dropout family."""

    family = "dropout"
    layer: Any

    def __init__(self, request: Request) -> None:
        layer: Any = request.layer
        with layer.rehearsal():
            seed, stream = layer.sequence()
        self.numbers = (int(seed), int(stream))  # those of the call that is explained
        super().__init__(request)

    @property
    def plain(self) -> bool:
        """Whether the formula is x·mask/(1 − p) itself."""
        return self.layer.formula is drop

    def notation(self) -> Iterator[str]:
        """What γ of blocks follows from is said too."""
        if "gamma" not in self.bound:
            yield from super().notation()
            return
        yield from shared.notation(self.paper, self.texts)
        facts = {"gamma": shared.number(self.bound["gamma"]), "p": shared.number(self.layer.p)}
        yield self.texts("notation.gamma_block" if self.layer.training else "notation.p_eval", **facts)
        yield self.texts("notation.hyperparameter", name="block", value=str(self.bound["block"]))

    def notes(self) -> Iterator[str]:
        """Whether the layer drops at all now."""
        yield from super().notes()
        if not self.layer.training:
            yield self.texts("note.dropout_off")

    def steps(self) -> Iterator[Step]:
        """The mask of this call; then what other calls would do; then eval."""
        texts, p = self.texts, self.layer.p
        self.trace = self.tracer(**self.bound)
        x, draws = self.bound["x"], self.bound["draws"]
        parts: list[Any] = [self.drawn()] if self.layer.training else []
        read = [shared.values(self.paper.name(name), value) for name, value in (("x", x), ("draws", draws))]
        parts += [*read, *self.recorded(self.trace)]
        if self.plain and self.layer.training and 0 < p < 1:
            parts.append(texts("step.scaled", p=shared.number(p), scale=shared.number(1 / (1 - p))))
        yield Step(texts("step.dropout_title"), tuple(parts))
        if 0 < p < 1 and draws.numel():
            yield self.crowd(x, draws)
        with torch.no_grad(), shared.in_eval(self.layer):
            y = self.layer(x.clone())
        yield Step(texts("step.eval_title"), (texts("step.eval"), shared.values(self.paper.name("y"), y)))

    def figures(self, steps: Sequence[Step]) -> Iterator[Rows]:
        """The rows of one call, where every entry is kept or dropped by its own draw."""
        values, draws, p = steps[0].values, self.bound["draws"], self.layer.p
        if not (self.plain and self.layer.training and 0 < p < 1 and draws.numel()):
            return
        spread = torch.broadcast_to(draws, self.bound["x"].shape)
        texts, facts = self.texts, {"p": shared.number(p)}
        yield Rows(
            title=texts("picture.rows", **facts),
            values=values["x"],
            draws=shared.values("draws", spread),
            threshold=p,
            threshold_label=texts("picture.threshold", **facts),
            mask=shared.values("mask", spread >= p),
            result=shared.values("y", self.trace.result),
            legend={key: texts(f"legend.{key}") for key in ("kept", "dropped")},
            note=texts("step.scaled", scale=shared.number(1 / (1 - p)), **facts),
        )

    def drawn(self) -> str:
        """What the draws decide."""
        if "gamma" in self.bound:
            return self.texts("step.draws_corner", gamma=shared.number(self.bound["gamma"]))
        return self.texts("step.draws", p=shared.number(self.layer.p))

    def crowd(self, x: Tensor, draws: Tensor) -> Step:
        """Other masks over the same input, and their average."""
        texts, coins = self.texts, prod(draws.shape)
        generator = torch.Generator().manual_seed(self.request.seed)
        values = {**self.bound, "p": self.layer.p} if "p" in self.bound else dict(self.bound)

        def once() -> Tensor:
            values["draws"] = torch.rand(draws.shape, generator=generator).to(draws.device)
            with torch.no_grad():
                return self.layer.formula(**values)

        masks = min(MANY, max(CROWD, MOST // max(1, x.numel())))
        key = "step.crowd" if coins <= COUNTED else "step.crowd_big"
        key = "step.crowd_blocks" if "gamma" in self.bound else key
        parts: list[str | Values] = [texts(key, coins=coins, number=2 ** min(coins, COUNTED))]
        total = torch.zeros_like(x, dtype=torch.float64)
        for index in range(masks):
            y = once()
            total += y
            if index < CROWD:
                parts.append(shared.values(texts("step.mask", number=index + 1), y))
        parts.append(shared.values(texts("step.mean_of", masks=masks), total / masks))
        if self.plain:
            parts.append(shared.values(self.paper.name("x"), x))
            parts.append(texts("step.crowd_mean"))
        return Step(texts("step.crowd_title"), tuple(parts))


class DropConnectExplained(ComponentExplained):
    """The parts of the report on a layer that drops weights: the formula runs on each of them, then the layer."""

    layer: Any

    def read_lines(self) -> Lines:
        """The formula that every weight goes through."""
        return Lines(dropping(self.bound["p"]), numbers=["p"])

    def notation(self) -> Iterator[str]:
        """What x and y stand for is said too."""
        yield from super().notation()
        names = self.texts("punctuation.list").join(self.bound["weights"])
        yield self.texts("notation.drop_connect", names=names, layer=type(self.layer.module).__name__)

    def notes(self) -> Iterator[str]:
        """Whether the layer drops at all now."""
        yield from super().notes()
        if not self.layer.training:
            yield self.texts("note.dropout_off")

    def totals(self) -> Iterator[Total]:
        """The weights that entries are dropped from; then with them what else the layer learns."""
        first, *_ = super().totals()
        yield first
        learned = [(name, p.numel()) for name, p in self.layer.module.named_parameters() if p.requires_grad]
        if sum(number for _, number in learned) != first.count:
            terms = " + ".join(f"{name} {number:,}" for name, number in learned)
            yield Total(self.texts("total.inside", terms=terms), sum(number for _, number in learned))

    def steps(self) -> Iterator[Step]:
        """The mask of every weight; then the layer with what the masks leave."""
        for name, weight in self.bound["weights"].items():
            x, draws = self.paper.name("x"), self.bound["draws"][name]
            trace = self.tracer(weight, draws, self.bound["p"])
            read = [shared.values(joined(" = ", (x, Name(name))), weight), shared.values("draws", draws)]
            yield Step(self.texts("step.drop_connect", name=name), (*read, *self.recorded(trace)))
        with torch.no_grad():
            self.trace = Trace((), self.layer.formula(**self.bound))
        result = self.trace.result[0] if isinstance(self.trace.result, tuple) else self.trace.result
        given = shared.values(self.texts("step.drop_connect_result"), result)
        yield Step(self.texts("step.drop_connect_layer", layer=type(self.layer.module).__name__), (given,))

    def tally(self) -> Tally:
        """What dropping costs, and what the layer costs that reads the weights."""
        bound, inside = self.bound, self.layer.module
        found = Counts().of(inside, bound["inputs"], bound["options"])
        tally = count(inside, bound["inputs"], bound["options"]) if found is None else found
        for name, weight in bound["weights"].items():
            tally += count(self.lines.function, (weight, bound["draws"][name], bound["p"]))
        return tally
