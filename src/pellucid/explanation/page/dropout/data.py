"""The numbers of the dropout exhibit: a part of the layer's input under the mask of this call, and under many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import FormulaError, Unsupported
from pellucid.explanation.dropout import DropoutExplained
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.dropout import coins, net, recomputed
from pellucid.explanation.page.dropout.sheet import Sheet, shown
from pellucid.explanation.report import Exhibit
from pellucid.explanation.trace import recording
from pellucid.formula.drop import drop, drop_all
from pellucid.kernel.random import uniform
from pellucid.nn.dropout.alpha_dropout import SATURATED, drop_alpha
from pellucid.nn.dropout.drop_block import DropBlock2d
from pellucid.nn.dropout.dropout import Dropout
from pellucid.nn.swapped.exchange import kind_of, runs_as

MASKS = 1000
COUNTS = (1, 10, 100, 1000)  # masks whose mean is written out
GRADIENTS = (1.0, -0.5, 0.8, 0.3, -1.2, 0.6, -0.9, 0.4)  # what might come back from the layers above
WHOLE = 2048  # entries up to which DropBlock, whose scale depends on all of them, can be recomputed
WORK = 2**18  # entries of all the masks of DropBlock that are averaged


def exhibit(explained: DropoutExplained) -> Exhibit | None:
    """Return the exhibit of a layer of the dropout family; None where there is nothing to drop, or nothing known."""
    x, layer = explained.bound["x"], explained.layer
    if not x.numel() or x.is_complex():
        return None
    if isinstance(layer, DropBlock2d):
        own = _squares(explained)
    elif layer.entrywise and set(explained.bound) == {"x", "draws", "p"}:
        own = _entries(explained)
    else:
        return None
    return Exhibit("dropout", {**_common(explained), **own})


def _common(explained: DropoutExplained) -> dict[str, Any]:
    """What every member shows: itself, its numbers, and the family in the small."""
    layer, (seed, stream), x = explained.layer, explained.numbers, explained.bound["x"]
    drawn = layer.drawn_shape(x)
    return {
        "layer": runs_as(kind_of(layer)).__name__,
        "p": float(layer.p),
        "training": layer.training,
        "seeded": layer.seed is not None,
        "seed": coins.words64(seed),
        "seed_text": str(seed),
        "stream": coins.words64(stream),
        "call": stream,
        "shape": list(x.shape),
        "drawn": list(drawn),
        "masks": MASKS,
        "counts": COUNTS,
        "plain": recomputed.of_layer(Dropout(recomputed.SOME)),
        "net": net.data(float(layer.p), coins.SEED),
        "toys": coins.toys(float(layer.p)),
        "toy_seed": coins.words64(coins.SEED),
    }


def _programs(explained: DropoutExplained) -> dict[str, Any]:
    """The layer's own formula as programs; without them, ``missing`` says what the page does not know."""
    try:
        return {"programs": recomputed.of_layer(explained.layer)}
    except Unsupported as error:
        return {"missing": str(error)}
    except FormulaError as error:
        return {"missing": str(error).splitlines()[0]}


def _entries(explained: DropoutExplained) -> dict[str, Any]:
    """A layer whose formula works entry by entry: any part of its input stands for itself."""
    layer, bound, p = explained.layer, explained.bound, float(explained.layer.p)
    sheet = Sheet(bound["x"].shape, layer.drawn_shape(bound["x"]))
    x, exact = sheet.of(bound["x"].cpu()), sheet.of(bound["x"].cpu()).double()
    many = coins.draws_at(sheet.coins.flatten().tolist(), explained.numbers, MASKS)
    draws = many[0].reshape(x.shape)
    with recomputed.posed(layer, p) as formula, torch.no_grad():
        y = formula(x=exact.flatten(), draws=many, p=p).expand(MASKS, exact.numel())
        dropped, kept = (formula(x=exact.flatten(), draws=torch.full((1,), u), p=p) for u in (-1.0, 2.0))
    mean = (1 - p) * kept + p * dropped if p < 1 else dropped
    variance = p * (1 - p) * (kept - dropped) ** 2 if p < 1 else torch.zeros_like(mean)
    now = {"draws": draws if layer.training else torch.zeros_like(draws), "p": bound["p"]}
    leaf = exact.clone().requires_grad_()
    gradient = _gradients(x)
    (arrived,) = torch.autograd.grad(layer.formula(x=leaf, **now), leaf, gradient)
    return {
        "kind": {drop: "plain", drop_all: "plain", drop_alpha: "alpha"}.get(_usual(explained), "other"),
        "rows": sheet.rows,
        "columns": sheet.columns,
        "height": sheet.height,
        "width": sheet.width,
        "coins": sheet.coins.tolist(),
        "saturated": SATURATED,
        "entry": telling(draws.flatten() >= p, x.flatten()),
        "x": x,
        "draws": draws,
        "y": sheet.of(explained.real.cpu()),
        "named": {
            name: value.expand(x.shape) if value.ndim else float(value)
            for name, value in _named(
                layer.formula, {"x": exact, "draws": now["draws"], "p": torch.tensor(now["p"])}
            ).items()
        },
        "crowd": {
            "means": torch.stack([y[:n].mean(0) for n in COUNTS]),
            "measured": y.var(0, correction=0),
            "expected": mean,
            "variance": variance,
        },
        "gradient": gradient,
        "arrived": arrived,
        **_programs(explained),
    }


def telling(kept: Tensor, x: Tensor) -> int:
    """Return the entry that is looked at first: the second of those that stay and are not 0, if there are any."""
    good = (kept & (x != 0) & x.isfinite()).nonzero().flatten().tolist()
    return int(good[min(1, len(good) - 1)]) if good else 0


def _usual(explained: DropoutExplained) -> Any:
    with recomputed.posed(explained.layer, recomputed.SOME) as formula:
        return formula


def _gradients(x: Tensor) -> Tensor:
    return torch.tensor(GRADIENTS, dtype=torch.float64).repeat(x.numel())[: x.numel()].reshape(x.shape)


def _named(formula: recomputed.Formula, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run a formula's lines; return what they have names for: the mask, and numbers such as a and b."""
    lines = Lines(formula, numbers=["p"])
    found: dict[str, Tensor] = {}

    def record(index: int, value: Any) -> Any:
        name = lines.sites[index].name
        if name and isinstance(value, Tensor):
            found[name] = value.double()
        return value

    with torch.no_grad():
        recording(lines, record)(**values)
    return found


def _squares(explained: DropoutExplained) -> dict[str, Any]:
    """DropBlock, whose scale is counted over all entries: all of them; a corner of a large input, without controls."""
    layer, bound, numbers = explained.layer, explained.bound, explained.numbers
    x = bound["x"].cpu()
    drawn, whole = layer.drawn_shape(x), x.numel() <= WHOLE
    draws = uniform(drawn, numbers[0], stream=numbers[1])
    leaf = x.double().requires_grad_()
    gradient = _gradients(x)
    gamma = float(bound["gamma"])
    now = {"draws": draws.double(), "gamma": gamma, "block": bound["block"]}
    (arrived,) = torch.autograd.grad(layer.formula(x=leaf, **now), leaf, gradient)
    named = _named(layer.formula, {"x": x.double(), **now})
    rows, columns = x.shape[-2:]
    planes = x.numel() // (rows * columns)
    cut = (slice(None), slice(None)) if whole else (slice(shown(rows)), slice(shown(columns)))

    def part(value: Tensor) -> Tensor:
        value = value.reshape(planes, *value.shape[-2:])
        return value if whole else value[:1, *cut]

    data: dict[str, Any] = {
        "kind": "block",
        "planes": planes,
        "height": rows,
        "width": columns,
        "block": list(bound["block"]),
        "share_of_p": coins.gamma_of(layer, x),
        "gamma": gamma,
        "entry": telling(named["mask"].reshape(planes, -1)[0] > 0, x.reshape(planes, -1)[0]) if whole else 0,
        "x": part(x),
        "draws": part(draws),
        "y": part(explained.real.cpu()),
        "mask": part(named["mask"]),
        "stays": float(named["kept"]),
        "gradient": part(gradient),
        "arrived": part(arrived),
    }
    if not whole:
        return data | {"missing": "size"}
    masks = max(10, min(MASKS, WORK // x.numel()))
    bound_in_training = layer._symbol_values(x.double(), draws, float(layer.p))
    total, squared, means = torch.zeros_like(leaf), torch.zeros_like(leaf), []
    with torch.no_grad():
        for call in range(masks):
            bound_in_training["draws"] = uniform(drawn, numbers[0], stream=numbers[1] + call)
            y = layer.formula(**bound_in_training)
            total, squared = total + y, squared + y**2
            if call + 1 in COUNTS:
                means.append(part(total / (call + 1)))
    data["crowd"] = {
        "masks": masks,
        "means": torch.stack(means),
        "mean": part(total / masks),
        "measured": part(squared / masks - (total / masks) ** 2),
    }
    return data | {"programs": coins.squares(x.double(), layer)}
