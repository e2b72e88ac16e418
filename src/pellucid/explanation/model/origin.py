"""Where a model's report comes from: asked again for other languages and for single layers, until the model changes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pellucid.explanation.model.compose import Composer
from pellucid.explanation.model.run import Caught, Recording
from pellucid.explanation.model.tree import LayerRow, ModelReport
from pellucid.explanation.origin import Origin
from pellucid.explanation.report import Report
from pellucid.explanation.subject import report_on
from pellucid.explanation.texts import Texts, languages


class ModelOrigin(Origin):
    """The model and the inputs of a report."""

    explained: Recording

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording, self._written, recording.model, pytree.tree_leaves(recording.inputs))

    def others(self, report: ModelReport) -> tuple[ModelReport, ...]:
        """Return the report in every other language, of the same layer where it is of one."""
        with self._as_it_was():
            written = [self._written(lang) for lang in languages() if lang != report.lang]
        found = []
        for other in written:
            part = other.layer(report.root.path) if report.root.path else other
            assert isinstance(part, ModelReport)
            found.append(part)
        return tuple(found)

    def layer(self, row: LayerRow, call: int, lang: str) -> Report:
        """Explain one call of a layer that pellucid has a formula for."""
        if not 1 <= call <= row.calls:
            raise ValueError(f"explain: {row.path!r} was called {row.calls} times, so there is no call {call}")
        layer = self.explained.model.get_submodule(row.path)
        with self._as_it_was():
            return self._report(row, call, self.explained.caught({layer: call})[layer], lang)

    def layers(self, rows: Sequence[LayerRow], lang: str) -> list[Report | str]:
        """Explain the first call of several layers, after one run; of one that cannot be explained, say why."""
        layers = [self.explained.model.get_submodule(row.path) for row in rows]
        reports: list[Report | str] = []
        with self._as_it_was():
            found = self.explained.caught(dict.fromkeys(layers, 1)) if layers else {}
            for row, layer in zip(rows, layers, strict=True):
                try:
                    reports.append(self._report(row, 1, found[layer], lang))
                except (TypeError, ValueError, RuntimeError) as error:  # called with what the explanation does not know
                    reports.append(str(error))
        return reports

    def _report(self, row: LayerRow, call: int, caught: Caught, lang: str) -> Report:
        layer = self.explained.model.get_submodule(row.path)
        args, options = _first_in_front(layer, caught.args, caught.options)

        def explained(lang: str) -> Report:
            with torch.random.fork_rng(devices=()):
                torch.set_rng_state(caught.draws)
                report = report_on(layer, args, options, lang=lang, steps=None, seed=0, tokens=None)
            note = Texts(lang)("model.reached", path=row.path, call=call, calls=row.calls)
            return replace(report, notes=(note, *report.notes))

        report = explained(lang)
        assert report.origin is not None
        return replace(report, origin=Origin(report.origin.explained, explained, layer, (*args, *options.values())))

    def _written(self, lang: str) -> Any:
        return replace(Composer(self.explained, Texts(lang)).report(), origin=self)


def explain_model(
    model: torch.nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any], lang: str, *, grad: bool, runs: int
) -> ModelReport:
    """Run a model and explain it, layer by layer; ``options`` are keyword arguments of its forward."""
    texts = Texts(lang)
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 0:
        raise ValueError(f"explain: runs is how often the model is run to take the time, from 0, not {runs!r}")
    if not inputs and not options and _wants_input(model):
        raise TypeError(
            f"explain: {type(model).__name__} is explained by running it, so it needs something to read: "
            f"explain(model, x), with what model(x) takes, or --input on the command line"
        )
    if type(model).forward is torch.nn.Module.forward:
        raise TypeError(
            f"explain: {type(model).__name__} has no forward, it only holds layers. Explain one of them, or the model "
            f"that calls them."
        )
    recording = Recording(model, (tuple(inputs), dict(options)), grad=grad, runs=runs)
    return replace(Composer(recording, texts).report(), origin=ModelOrigin(recording))


def _wants_input(model: torch.nn.Module) -> bool:
    try:
        inspect.signature(model.forward).bind()
    except TypeError:
        return True
    except ValueError:
        return False
    return False


def _first_in_front(
    layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put what a layer reads in front where it was given by name."""
    name = next(iter(inspect.signature(layer.forward).parameters))
    if args or name not in options:
        return args, options
    return (options[name],), {key: value for key, value in options.items() if key != name}
