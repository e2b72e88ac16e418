"""From what the user names to the layer and the input that are explained."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pellucid import nn
from pellucid.errors import kind_text, label, shape_text
from pellucid.explanation import examples as known
from pellucid.explanation.component import ComponentExplained
from pellucid.explanation.dropout import DropConnectExplained, DropoutExplained
from pellucid.explanation.normalization import NormalizationExplained
from pellucid.explanation.origin import Origin
from pellucid.explanation.recurrent import RecurrentExplained
from pellucid.explanation.report import Report
from pellucid.explanation.request import Request
from pellucid.explanation.row_wise import RowWiseExplained
from pellucid.explanation.tcn import TCNExplained
from pellucid.explanation.text_convolution import TextConvExplained
from pellucid.explanation.texts import Texts
from pellucid.explanation.typesetting import unbroken
from pellucid.explanation.windowed import (
    ConvolutionExplained,
    ConvPoolingExplained,
    LengthPoolExplained,
    PoolingExplained,
    SeparableExplained,
)
from pellucid.keeping import left_alone
from pellucid.nn.component import Component
from pellucid.nn.convolution.conv_pool import ConvPooling
from pellucid.nn.convolution.convolution import Convolution
from pellucid.nn.convolution.separable import SeparableConvolution
from pellucid.nn.dropout.drop_connect import DropConnect
from pellucid.nn.dropout.dropout import DropoutFamily
from pellucid.nn.normalization.normalization import NormalizationFamily
from pellucid.nn.recurrence.cell import Cell
from pellucid.nn.recurrence.sequence import SequenceLayer
from pellucid.nn.rows.row_formula import Layer
from pellucid.nn.rows.row_wise import RowWise
from pellucid.nn.swapped.exchange import has_twin, kind_of, name_of, runs_as, twin_of
from pellucid.nn.windowed import Windowed

JOINER = "\N{ZERO WIDTH JOINER}"
LETTER = 3  # numbers of a character's vector, for a convolution that is given by name
SIZES = {"input_size": 4, "hidden_size": 3}  # of a recurrent layer that is given by name


def report_on(subject: Any, inputs: tuple[Any, ...], options: Mapping[str, Any], *, lang: str, **about: Any) -> Report:
    """Explain a layer, a cell or a name; ``about`` are steps, seed and tokens of `pellucid.explain`."""
    texts = Texts(lang)
    steps = about["steps"]
    if steps is not None and (not isinstance(steps, int) or steps < 0):
        raise ValueError(f"explain: steps is how many steps or positions are worked out, from 0, not {steps!r}")
    maker = Maker.of(subject)
    if maker is not None or isinstance(subject, torch.nn.Module):
        pass
    elif isinstance(subject, type) and issubclass(subject, torch.nn.Module):
        raise TypeError(
            f"explain: {subject.__name__} is a class; what is made of it is explained, "
            f"explain({subject.__name__}(...), x)"
        )
    else:
        raise TypeError(
            f"explain: a layer, a cell or a name is explained, not {kind_text(subject)}. A function becomes a "
            f"cell by @pellucid.cell, a layer by @pellucid.layer."
        )
    request = Request(subject if maker is None else torch.nn.Module(), inputs, texts, **about)
    if maker is None:
        request.layer, request.options = _own(subject, request), dict(options)
    else:
        maker.make(request, options)
    if not inputs and isinstance(request.inputs[0], str):
        inputs = request.inputs  # the same sentence in every language
    _read_sentence(request)
    if request.tokens is not None:
        request.tokens = [unbroken(str(token)) for token in request.tokens]
    _refuse_wrong_call(request)
    _refuse_no_real_numbers(request)
    with left_alone(request.layer):
        explained = family(request.layer)(request)
    with left_alone(request.layer):  # and reads what the first one read, of weights that are computed anew every time
        report = explained.report()

    def again(lang: str) -> Report:
        return report_on(subject, inputs, options, lang=lang, **about)

    layer = subject if isinstance(subject, torch.nn.Module) else request.layer
    return replace(report, origin=Origin(explained, again, layer, (*inputs, *options.values())))


FAMILIES: tuple[tuple[type, Callable[[Request], Any]], ...] = (
    (SequenceLayer, RecurrentExplained),
    (Convolution, ConvolutionExplained),
    (SeparableConvolution, SeparableExplained),
    (ConvPooling, ConvPoolingExplained),
    (Windowed, PoolingExplained),
    (DropConnect, DropConnectExplained),
    (DropoutFamily, DropoutExplained),
    (NormalizationFamily, NormalizationExplained),
    (RowWise, RowWiseExplained),
    (nn.TextConv, TextConvExplained),
    (nn.TCN, TCNExplained),
    (nn.LengthPool, LengthPoolExplained),
    (Component, ComponentExplained),
)


def is_model(subject: Any) -> bool:
    """Whether a subject is a module that is no layer of pellucid's, nor of torch.nn with a twin here."""
    if not isinstance(subject, torch.nn.Module):
        return False
    layer = getattr(subject, "_orig_mod", subject)
    return not isinstance(layer, (SequenceLayer, Component)) and not has_twin(layer)


def family(layer: torch.nn.Module) -> Callable[[Request], Any]:
    """Return what explains this kind of layer: of several that fit, the first."""
    return next(explained for kind, explained in FAMILIES if isinstance(layer, kind))


class Maker:
    """Builds a layer that is given by name, with what the input says of its sizes, in the mode ``training`` says."""

    training = True

    def __init__(
        self, make: Callable[..., Any], name: str, arguments: Mapping[str, Any], example: known.Example | None = None
    ) -> None:
        self.construct, self.name, self.arguments, self.example = make, name, dict(arguments), example

    @staticmethod
    def of(subject: Any) -> Maker | None:
        """What makes the layer that a cell, a layer of one's own or a name stands for; None for anything else."""
        if isinstance(subject, str) and subject in known.known_cells():
            subject = known.known_cells()[subject]
        if isinstance(subject, Cell):
            return Maker(subject, subject.source.name, SIZES | dict.fromkeys(subject.size_names, 2))
        if isinstance(subject, Layer):
            example = known.of_rows(subject.source.name, "input_size")
            sizes = dict.fromkeys(subject.size_names, 2)
            return Maker(subject, subject.source.name, dict(example.arguments) | sizes, example)
        if isinstance(subject, str):
            return Maker._of_name(subject)
        return subject if isinstance(subject, Maker) else None

    @staticmethod
    def _of_name(name: str) -> Maker:
        layer = known.class_name(name)
        if layer is None or layer not in vars(nn):
            raise known.unknown_name(name)
        example = known.example_of(layer)
        arguments = dict(SIZES) if example is None else dict(example.arguments)
        return Maker(getattr(nn, layer), name, arguments, example)

    def make(self, request: Request, options: Mapping[str, Any]) -> None:
        """Put the layer and its input into the request."""
        arguments = {**self.arguments, **options}
        if request.inputs and not _is_text(request.inputs[0]):
            x = self.fitted(_tensor(request.inputs[0], self.name))
            request.inputs = (x, *request.inputs[1:])
            size = ("input_size", -1) if self.example is None else self.example.size
            if size is not None and size[0] not in options and x.ndim:
                arguments[size[0]] = x.shape[size[1]]
        elif request.inputs and "in_channels" in arguments:
            arguments = {**arguments, "in_channels": LETTER, **options}
        seeded = isinstance(self.construct, type) and "seed" in known.parameters_of(self.construct)
        if seeded and "generator" not in options:
            arguments.setdefault("seed", request.seed)
        request.layer = known.build(self.construct, self.name, arguments, request.seed).train(self.training)
        if self.example is not None:
            request.options = dict(self.example.options) if not request.inputs else {}
        if not request.inputs:
            request.inputs = (_example_input(request, self.example, arguments),)

    def fitted(self, x: Tensor) -> Tensor:
        """Add the axes, batch and channels of one, that plain numbers lack."""
        if self.example is None:
            return x.unsqueeze(0) if x.ndim == 1 else x
        while x.ndim < self.example.ndim():
            x = x.unsqueeze(0)
        return x


def _own(layer: torch.nn.Module, request: Request) -> torch.nn.Module:
    """Return a layer of pellucid: the one given, or the twin of one of torch.nn."""
    layer = getattr(layer, "_orig_mod", layer)  # what torch.compile has wrapped
    twin = layer if isinstance(layer, (SequenceLayer, Component)) else twin_of(layer)
    assert twin is not None, "what has no formula is explained as a model"
    if twin is not layer:
        theirs, ours = name_of(kind_of(layer)), name_of(runs_as(kind_of(twin)))
        request.notes.append(request.texts("note.twin", theirs=theirs, ours=ours))
    if request.inputs:
        first = request.inputs[0]
        x = first if _is_text(first) else _tensor(first, label(twin))
        if x is not first and not (isinstance(x, str) or x.is_complex()):
            x = x.to(next(twin.parameters(), x))  # numbers that have no type of their own
        request.inputs = (x, *request.inputs[1:])
    else:
        example = known.example_of(runs_as(kind_of(twin)).__name__)
        if example is None and not isinstance(twin, (SequenceLayer, RowWise)):
            raise TypeError(f"explain: give {type(twin).__name__} an input to read, explain(layer, x)")
        arguments = {} if example is None else _arguments_of(twin, example)
        request.inputs = (_example_input(request, example, arguments),)
    return twin


def _arguments_of(layer: torch.nn.Module, example: known.Example) -> dict[str, Any]:
    found = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "stride") if hasattr(layer, name)}
    return found | {name: getattr(layer, name, value) for name, value in example.arguments.items()}


def _example_input(request: Request, example: known.Example | None, arguments: Mapping[str, Any]) -> Tensor | str:
    if isinstance(request.layer, torch.nn.RNNCellBase):
        request.notes.append(request.texts("note.example", seed=request.seed))
        return known.draw((1, request.layer.input_size), request.seed)
    if isinstance(request.layer, RowWise):
        request.notes.append(request.texts("note.example", seed=request.seed))
        return known.draw((2, request.layer.input_size), request.seed)
    if example is None or example.sentence:
        return request.texts("example.sentence")
    shape = example.shape(arguments)
    request.notes.append(request.texts("note.example", seed=request.seed))
    if isinstance(request.layer, DropoutFamily) and len(shape) == 1:
        return torch.arange(1.0, shape[0] + 1)
    return known.draw(shape, request.seed)


def _refuse_wrong_call(request: Request) -> None:
    """Raise where the layer's forward does not take what it is to be called with."""
    layer = request.layer
    signature = inspect.signature(layer.forward)
    try:
        signature.bind(*request.inputs, **request.options)
    except TypeError as error:
        raise TypeError(
            f"explain: {label(layer)}: {error}. It takes {', '.join(signature.parameters)}; arguments of explain "
            f"itself are lang, show, width, steps, seed and tokens."
        ) from error


def _refuse_no_real_numbers(request: Request) -> None:
    """Raise where an input, or the layer, has complex numbers, or none where a layer looks for them."""
    layer = request.layer
    given = [("the input", value) for value in request.inputs if isinstance(value, Tensor)]
    for name, value in given:
        if value.is_nested or value.layout is not torch.strided:
            what = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise TypeError(
                f"explain: {label(layer)}: {name} is a {what} tensor, and layers read dense ones. Give x.to_dense(); "
                f"of a nested one, x.to_padded_tensor(0.0) and lengths=."
            )
        if value.is_complex():
            raise NotImplementedError(
                f"explain: {label(layer)}: {name} is {shape_text(value.shape)} of {value.dtype}, and explanations show "
                f"real numbers only. Explain a layer that reads the two parts, torch.view_as_real(x)."
            )
    for name, value in (*layer.named_parameters(), *layer.named_buffers(), *given):
        if value.is_meta:
            raise RuntimeError(
                f"explain: {label(layer)}: {name}, {shape_text(value.shape)}, is on the meta device, which holds no "
                f"numbers. Make it on another, device='cpu'; layer.to_empty(device='cpu') gives a layer memory, whose "
                f"weights are then to be set."
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Sequence) and bool(value) and all(isinstance(part, str) for part in value)
    )


def _tensor(value: Any, name: str) -> Any:
    """Make a tensor of plain numbers; leave tensors and packed sequences as they are."""
    if isinstance(value, (Tensor, PackedSequence)):
        return value
    try:
        numbers = np.asarray(value)
    except ValueError:  # rows of different lengths
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "biufc":
        what = "None" if value is None else kind_text(value)
        raise TypeError(
            f"explain: {name}: the input is {what}, which cannot be read as numbers. Give a tensor or an "
            f"array, numbers in rows of one length, [[1, 2], [3, 4]], or a sentence, 'a quick brown fox'."
        )
    return torch.tensor(numbers, dtype=None if numbers.dtype.kind == "c" else torch.float32)


def characters(sentence: str) -> list[str]:
    """Cut a sentence into what readers see as one character each: with its accents, and emoji with their parts."""
    found: list[str] = []
    for code in sentence:
        last = found[-1] if found else ""
        follows = last and (
            unicodedata.category(code) in ("Mn", "Me")  # accents, and what chooses another form
            or code == JOINER
            or last.endswith(JOINER)
            or "\U0001f3fb" <= code <= "\U0001f3ff"  # a colour of skin
            or (len(last) == 1 and all("\U0001f1e6" <= c <= "\U0001f1ff" for c in last + code))  # two letters: a flag
        )
        found[-1:] = [last + code] if follows else [last, code] if found else [code]
    return found


def _read_sentence(request: Request) -> None:
    """Turn a sentence into vectors, one a character or word, and bring numbers to the layer's dtype and device."""
    first, layer = request.inputs[0], request.layer
    weight = next(layer.parameters(), None)
    dtype = torch.float32 if weight is None else weight.dtype
    if not _is_text(first):
        whole = isinstance(first, Tensor) and not (first.is_floating_point() or first.is_complex())
        if whole and request.tokens is None and weight is not None:
            request.inputs = (first.to(dtype), *request.inputs[1:])
        return
    if not first:
        raise ValueError("explain: the sentence is empty; a sequence has at least one step")
    along_time = isinstance(layer, SequenceLayer) and not isinstance(layer, torch.nn.RNNCellBase)
    if not along_time and not isinstance(layer, (nn.Conv1d, nn.SeparableConv1d, nn.ConvPool1d, nn.TCN, nn.TextConv)):
        raise TypeError(
            f"explain: {type(layer).__name__} does not read sentences; recurrent layers, TextConv, TCN and 1-D "
            f"convolutions do. Give it numbers; a picture's are numpy.asarray(PIL.Image.open(path).convert('L'))."
        )
    tokens = characters(first) if isinstance(first, str) else list(first)
    sizes = ("input_size", "in_channels", "embedding_size")
    size: Any = next(getattr(layer, name) for name in sizes if hasattr(layer, name))
    x = known.embed(tokens, int(size), request.seed, dtype)
    if weight is not None:
        x = x.to(weight.device)
    if not along_time:
        x = (x if isinstance(layer, nn.TextConv) else x.t()).unsqueeze(0)
    different = len(dict.fromkeys(tokens))
    key = "note.embedding" if isinstance(first, str) else "note.embedding_words"
    request.notes.append(request.texts(key, n=different, size=size, seed=request.seed))
    request.inputs, request.tokens = (x, *request.inputs[1:]), tokens
