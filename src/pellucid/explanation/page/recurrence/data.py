"""The numbers of a recurrent layer's exhibit: what its lines compute at every step, forward and backward."""

from __future__ import annotations

import ast
import functools
import re
from math import prod
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import FormulaError, Unsupported
from pellucid.explanation.page.arrays import blocks
from pellucid.explanation.page.program import flat, gradient, program
from pellucid.explanation.page.recurrence.backward import PATCH, WIDEST, Backward
from pellucid.explanation.page.recurrence.structure import Shapes, Structure, one_row
from pellucid.explanation.paper import letter
from pellucid.explanation.reading import Provider
from pellucid.explanation.reasons import by_axis
from pellucid.explanation.recurrent import THEIRS, RecurrentExplained
from pellucid.explanation.report import Exhibit
from pellucid.explanation.sites import Site
from pellucid.explanation.texts import Texts, languages
from pellucid.explanation.trace import recording
from pellucid.explanation.typesetting import shape_of
from pellucid.formula.draws import provided_by
from pellucid.formula.shapes import split_result

BYTES = 1_050_000  # of numbers that are carried whole; base64 makes 1.4 million characters of them
PARTLY = 150_000  # numbers of all steps that are carried of a larger layer
WORK = 4_000_000  # weights × steps that a browser takes while one waits
EXACT = 8  # of a large layer: the first units, and as many that change most
WORD = re.compile("[^\\W_ₜ₋₁]+")
OVERVIEW = (32, 96)  # blocks of an overview: units, steps


def recurrence(explained: RecurrentExplained) -> Exhibit | None:
    """Make the exhibit; None where the sequence has no steps."""
    if not explained.sequence.steps:
        return None
    return Exhibit("recurrence", Recurrence(explained).data())


class Recurrence:
    """The first sequence read by the first level, forward, without draws."""

    def __init__(self, explained: RecurrentExplained) -> None:
        self.explained, self.layer, self.source = explained, explained.layer, explained.source
        self.reading, self.lines, self.sequence = explained.reading, explained.lines, explained.sequence
        self.solution, self.paper = self.layer.solution(), self.lines.paper()
        self.steps = self.sequence.steps
        with torch.no_grad():
            self.weights = {name: value.detach().clone() for name, value in self.layer.symbol_values().items()}
        self.inputs = [value.clone() for value in (self.sequence.x, *self.sequence.further)]  # no inference tensors
        self.sizes = self.solution.state_sizes(self.source)
        with torch.no_grad(), provided_by(Provider(False)):
            self._run()

    def _run(self) -> None:
        """Take all steps, recording every value."""
        recorded: list[Tensor] = []
        self.sites: list[Site] = []

        def record(index: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                self.sites.append(self.lines.sites[index])
                recorded.append(value.detach())
            return value

        function = recording(self.lines, record)
        states, outputs, values = [state.clone() for state in self.sequence.states[0]], [], []
        self.states = [[state] for state in states]
        for step in range(self.steps):
            self.sites.clear()
            recorded.clear()
            result = function(
                *(value[step] for value in self.inputs), *states, **self.weights, **self.layer.hyperparameters
            )
            output, new = split_result(self.source, result)
            states = list(new)
            values.append(list(recorded))
            outputs.append(output)
            for kept, state in zip(self.states, states, strict=True):
                kept.append(state)
        self.returned = len(flat(result))
        self.output = torch.stack([output[0] for output in outputs])
        self.trajectory = [torch.cat(kept) for kept in self.states]  # every entry (steps + 1, size)
        even = len({len(step) for step in values}) == 1
        self.sites = list(self.sites) if even else []
        self.values = [torch.stack([step[place] for step in values]) for place in range(len(self.sites))]

    # -- what is carried ----------------------------------------------------------------------------------------

    @functools.cached_property
    def rows(self) -> list[bool]:
        """Of every recorded value, whether it is one row at each step."""
        return [one_row(value) for value in self.values]

    @functools.cached_property
    def once(self) -> list[bool]:
        """Of every recorded value, whether it comes of parameters alone."""
        return [site.constant for site in self.sites]

    @functools.cached_property
    def whole(self) -> bool:
        """Whether all numbers are carried."""
        numbers = sum(value.numel() for value in (*self.weights.values(), *self.inputs, *2 * self.trajectory))
        for value, once in zip(self.values, self.once, strict=True):
            numbers += value[0].numel() if once else value.numel()
        return numbers * (8 if self.sequence.x.dtype == torch.float64 else 4) <= BYTES

    @functools.cached_property
    def units(self) -> list[int] | None:
        """The units that are carried: None for all; of a large layer the first, and those that change most."""
        size = self.sizes[0]
        if self.whole or size <= 2 * EXACT:
            return None
        moved = self.trajectory[0].double().diff(dim=0).abs().sum(0).nan_to_num(0)
        most = [unit for unit in moved.argsort(descending=True).tolist() if unit >= EXACT][:EXACT]
        return [*range(EXACT), *sorted(most)]

    def columns(self, width: int) -> list[int]:
        """The columns of a value of some width that belong to the carried units."""
        if self.units is None:
            return list(range(width))
        size = self.sizes[0]
        parts = width // size if width % size == 0 else 0
        if not parts:
            return list(range(min(width, len(self.units))))
        return [part * size + unit for part in range(parts) for unit in self.units]

    @functools.cached_property
    def steps_kept(self) -> list[int]:
        """The steps that are carried: all, or the first and the last that there is room for."""
        if self.whole:
            return list(range(self.steps))
        row = sum(value.shape[-1] for value in self.inputs) + sum(self.sizes)
        row += sum(len(self.columns(v.shape[-1])) for v, r, o in self._series() if r and not o)
        room = max(4, PARTLY // row)
        if room >= self.steps:
            return list(range(self.steps))
        first = (room + 1) // 2
        return [*range(first), *range(self.steps - room + first, self.steps)]

    @functools.cached_property
    def times(self) -> list[int]:
        """The moments before and after the carried steps, 0 … steps."""
        return sorted({moment for step in self.steps_kept for moment in (step, step + 1)})

    def _series(self) -> list[tuple[Tensor, bool, bool]]:
        return list(zip(self.values, self.rows, self.once, strict=True))

    def carried(self, place: int) -> dict[str, Any]:
        """A recorded value: of every carried step a row, or a matrix; of what comes of parameters alone one."""
        value, row, once = self.values[place], self.rows[place], self.once[place]
        shape = list(value.shape[1:])
        kept = value[:1] if once else value[self.steps_kept]
        if row:
            flat_rows = kept.reshape(len(kept), -1)
            chosen = self.columns(flat_rows.shape[-1])
            return {"shape": shape, "columns": self._listed(chosen, flat_rows.shape[-1]), "rows": flat_rows[:, chosen]}
        if not once:  # a matrix of the sample
            grid = [prod(shape[:-1]), shape[-1]]
            return {"shape": shape, "grid": grid, **({"columns": None, "rows": kept.flatten(1)} if self.whole else {})}
        if once and value.ndim == 3:
            chosen = self.columns(shape[-1])
            return {"shape": shape, "columns": self._listed(chosen, shape[-1]), "matrix": kept[0][:, chosen]}
        return {"shape": shape}

    def _listed(self, columns: list[int], width: int) -> list[int] | None:
        return None if len(columns) == width else columns

    def weight(self, value: Tensor) -> dict[str, Any]:
        """A parameter; of a large layer the columns of the carried units."""
        width = value.shape[-1] if value.ndim else 1
        chosen = self.columns(width)
        kept = value if self.whole or not value.ndim else value[..., chosen]
        listed = None if self.whole else self._listed(chosen, width)
        return {"shape": list(value.shape), "columns": listed, "values": kept}

    # -- everything ---------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """Put it together."""
        tokens = self.explained.request.tokens
        tokens = None if tokens is None else list(tokens[: self.steps])
        different = list(dict.fromkeys(tokens or ()))
        structure = self.structure()
        backward = Backward(self)
        programs, trouble = self.programs
        kept = self.steps_kept
        return {
            "name": self.source.name,
            "steps": self.steps,
            "kept": kept,
            "times": self.times,
            "units": self.units,
            "whole": self.whole,
            "trouble": trouble,
            "training": bool(self.layer.training and self.solution.sites),
            "places": len(self.reading.places),
            "tokens": tokens,
            "ids": None if tokens is None else [different.index(token) for token in tokens],
            "different": len(different),
            "inputs": [
                {"name": s.name, "label": letter(s.name), "size": value.shape[-1], "rows": value[kept, 0]}
                for s, value in zip(self.source.inputs, self.inputs, strict=True)
            ],
            "states": [  # whole rows even of a large layer, for the products
                {"name": s.name, "label": letter(s.name), "size": value.shape[-1], "rows": value[self.times]}
                for s, value in zip(self.source.states, self.trajectory, strict=True)
            ],
            "output": {
                "name": letter(self.lines.output),
                "size": self.output.shape[-1],
                "own": self.returned > len(self.sizes),
            },
            "last": self.output[-1],
            "parameters": [
                {
                    "name": name,
                    "label": letter(name),
                    "learned": name in self.explained.learned,
                    "axes": list(self.solution.symbols[name].dims),
                    **self.weight(value),
                }
                for name, value in self.weights.items()
            ],
            "scaled": self.recurrent_weight(),
            "sites": [
                {
                    "label": str(site.label(self.paper)),
                    "symbol": letter(site.name or ""),
                    **self.shaped(place),
                    **self.carried(place),
                }
                for place, site in enumerate(self.sites)
            ],
            "formula": list(map(str, self.lines.on_paper(self.paper))),
            "sums": list(structure.sums()) if structure else [],
            "valves": list(structure.valves()) if structure else [],
            "overview": None if self.whole else blocks(self.trajectory[0][1:].T.nan_to_num(0), *OVERVIEW),
            "changes": self.changes(),
            "puzzle": self.puzzle(),
            "convention": self.convention(),
            "ledger": self.ledger(),
            "backward": backward.data(),
            "programs": programs,
        }

    def changes(self) -> Tensor:
        """How far the first state entry moves at every step, as a Euclidean length."""
        return self.trajectory[0].double().diff(dim=0).norm(dim=1)

    def structure(self) -> Structure | None:
        """What the lines say of one unit; None where Python does not keep them."""
        if not self.sites:
            return None
        names = {
            "input": [s.name for s in self.source.inputs],
            "state": [s.name for s in self.source.states],
            "parameter": list(self.weights),
        }
        numbers = self.layer.hyperparameters
        return Structure(self.lines, self.sites, names, numbers, self.paper, self.values.__getitem__)

    def shaped(self, place: int) -> dict[str, Any]:
        """The expression of a value with shapes for names."""
        defined = {s.name: list(v.shape[1:]) for s, v in zip(self.sites[:place], self.values, strict=False) if s.name}

        def shape(name: str, moment: str) -> str | None:
            symbol = self.solution.symbols.get(name)
            if name in defined and moment != "before":
                return shape_of(defined[name])
            return None if symbol is None else shape_of(symbol.shape)

        site = self.sites[place]
        shapes = "" if isinstance(site.node, ast.Name) else str(Shapes(self.lines, shape).expression(site.node))
        return {"shapes": shapes, "result": shape_of(self.values[place].shape[1:])}

    def recurrent_weight(self) -> str | None:
        """The parameter that an experiment scales: one that is multiplied with the state, else W, else the first."""
        names = [symbol.name for symbol in self.source.parameters]
        nodes = list(ast.walk(self.lines.tree)) if self.lines.tree is not None else []
        products = [
            node for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.MatMult, ast.Mult))
        ]
        for node in sorted(products, key=lambda n: (isinstance(n.op, ast.Mult), n.lineno, n.col_offset)):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                state = any(getattr(n, "moment", "") == "before" for n in ast.walk(one))
                found = [n.id for n in ast.walk(other) if isinstance(n, ast.Name) and n.id in names]
                if state and found:
                    return found[0]
        return "W" if "W" in names else next(iter(names), None)

    # -- programs -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def programs(self) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        """The formula forward and backward as programs, or why the page has none."""
        if not self.whole:
            return None, {"key": "no_room"}
        numbers = sum(value.numel() for value in self.weights.values())
        if numbers * self.steps > WORK:
            return None, {"key": "no_time"}
        names = [s.name for s in (*self.source.inputs, *self.source.states)]
        rows = [value[0] for value in self.inputs] + [kept[0] for kept in self.states]
        given, numbers_, positional = dict(zip(names, rows, strict=True)), self.layer.hyperparameters, len(names)
        states = [s.name for s in self.source.states]
        wide = {name: value.expand(self.sizes[0], -1).contiguous() for name, value in given.items()}
        try:
            forward = program(self.lines, {**given, **self.weights}, numbers_, positional)
            back = gradient(self.lines, {**given, **self.weights}, numbers_, positional)
            jacobian = gradient(self.lines, {**wide, **self.weights}, numbers_, positional, wanted=states)
        except Unsupported as error:
            return None, {"key": "unsupported", "operation": str(error)}
        except FormulaError:
            return None, {"key": "untraced"}
        work = self.sizes[0] * numbers * self.steps
        texts = {"forward": forward.text, "gradient": back.text}
        return texts | ({"jacobian": jacobian.text} if work <= 25 * WORK and self.sizes[0] <= WIDEST else {}), None

    # -- words of both languages --------------------------------------------------------------------------------

    def puzzle(self) -> list[dict[str, Any]]:
        """Every parameter with axes: its sizes, and why they are so, in every language."""
        found = []
        for symbol in self.source.parameters:
            solved = self.solution.symbols[symbol.name]
            reasons: dict[str, list[dict[str, Any]]] = {}
            for lang in languages():
                given = by_axis(solved, self.solution, symbol.role, Texts(lang))
                reasons[lang] = [{"axis": r.axis, "because": r.because, "sentence": r.sentence} for r in given]
            if solved.shape and len(solved.shape) <= 2:
                shape = list(solved.shape) if len(solved.shape) == 2 else [1, *solved.shape]
                about = {"name": symbol.name, "label": letter(symbol.name), "shape": shape}
                found.append({**about, "reasons": reasons, "uses": self.uses(symbol.name)})
        return found

    def uses(self, name: str) -> list[str]:
        """The lines in which a parameter stands, as on paper."""
        label = letter(name)
        lines = list(map(str, self.lines.on_paper(self.paper)))
        return [line for line in lines if label in WORD.findall(line)]

    def convention(self) -> dict[str, Any] | None:
        """Where torch keeps the same numbers, and how many there are with one bias or two."""
        twin = self.explained.twin
        if twin is None:
            return None
        theirs = dict(twin.named_parameters())
        suffix = "_l0" if any(name.endswith("_l0") for name in theirs) else ""
        own = dict(self.layer.named_parameters())
        pairs, counts = [], []
        for name in self.weights:
            key = THEIRS.get(name, "") + suffix
            if key in theirs:
                pairs.append({"ours": name, "theirs": key, "shape": list(theirs[key].shape)})
        for key in ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh"):
            if key + suffix in theirs:
                counts.append({"name": key + suffix, "shape": list(theirs[key + suffix].shape)})
        biases = [own[key + suffix].detach() for key in ("bias_ih", "bias_hh") if key + suffix in own]
        return {
            "layer": f"torch.nn.{type(twin).__name__}",
            "pairs": pairs,
            "counts": counts,
            "biases": [bias[:PATCH] for bias in biases],
            "apart": "c" in self.weights,
        }

    def ledger(self) -> dict[str, Any]:
        """Parameters and the work of one step."""
        tally = self.reading.tally_of_step(1, self.sequence.x.dtype)
        return {"macs": tally.macs, "other": tally.other}
