"""Every layer of the table against its reference: values, gradients, state, copies, text and errors."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import pellucid
from cases import ALL, COMPONENTS, CONVOLUTION, LINEAR, NORMALIZATION, Case, Wrong
from pellucid import nn
from pellucid.nn.component import Running
from pellucid.nn.recurrence.sequence import SequenceLayer

EVERY = [pytest.param(case, id=case.name) for case in ALL]
SHARED = [pytest.param(case, id=case.name) for case in ALL if case.build_reference() is not None]  # torch.nn has it
COMPARED = [  # in training, drawn layers are compared in distribution, by test_dropout.py
    pytest.param(case, training, id=f"{case.name}-{'train' if training else 'eval'}")
    for case in (param.values[0] for param in SHARED)
    for training in ((False,) if case.random else (True, False))
]
TRAINED = [pytest.param(case, id=case.name) for case in ALL if not case.random]
REFUSED = [pytest.param(case, wrong, id=f"{case.name}!{wrong.shape}") for case in ALL for wrong in case.wrong]


def run(layer: torch.nn.Module, x: torch.Tensor, **call):
    """Return every result (output, states, indices) and the gradients of the input and of every parameter, by name."""
    x = x.detach().requires_grad_()
    results = tree_leaves(layer(x, **call))
    generator = torch.Generator().manual_seed(2)
    differentiable = [y for y in results if y.is_floating_point()]
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in differentiable]
    torch.autograd.backward(differentiable, weights)
    grads = {"input": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    return [y.detach() for y in results], grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("case", "training"), COMPARED)
def test_equals_reference(case: Case, training: bool, dtype: torch.dtype):
    reference = case.build_reference(dtype)
    assert reference is not None
    layer = case.build(dtype).train(training)
    layer.load_state_dict(reference.state_dict())
    reference.train(training)
    y, grads = run(layer, case.input(dtype))
    expected, expected_grads = run(reference, case.input(dtype))
    torch.testing.assert_close(y, expected)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, msg=lambda text, name=name: f"gradient of {name}: {text}")
    for name, value in reference.state_dict().items():  # running statistics too
        torch.testing.assert_close(layer.state_dict()[name], value)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in COMPONENTS])
def test_formula_is_the_layer(case: Case, training: bool):
    layer = case.build(torch.float64).train(training)
    x = case.input(torch.float64)
    twin = copy.deepcopy(layer)
    torch.manual_seed(3)
    y = layer(x.clone(), **case.options(x.dtype))  # in-place layers write into their input
    torch.manual_seed(3)
    if isinstance(layer, SequenceLayer):  # a loop over its formula: the naive one is the definition
        with pellucid.backend("naive"):
            bound = twin(x, **case.options(x.dtype))
    else:
        bound = twin.formula(**twin.bind(x, **case.options(x.dtype)))
        bound = bound.reshape(y.shape)
    torch.testing.assert_close(bound, y)


@pytest.mark.parametrize("case", TRAINED)
def test_gradients_are_right(case: Case):
    layer = case.build(torch.float64)
    parameters = dict(layer.named_parameters())
    names = list(parameters)

    def function(x, *values):
        state = dict(zip(names, values, strict=True))
        return tuple(tree_leaves(torch.func.functional_call(layer, state, (x,), case.options(torch.float64))))

    inputs = [case.input(torch.float64), *(p.detach() for p in parameters.values())]
    inputs = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    if case.twice:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL if case.twice and not case.random])
def test_gradients_end_at_what_a_layer_reads(case: Case, backend: str):
    """Where they are differentiated again, too: the input is computed from the weights, as of a layer applied twice."""
    layer, x = case.build(torch.float64), case.input(torch.float64).requires_grad_()
    with pellucid.backend(backend):
        y, *_ = tree_leaves(layer(x + sum(p.sum() for p in layer.parameters()), **case.options(torch.float64)))
        leaves = [x, *layer.parameters()]
        plain = torch.autograd.grad(y.pow(3).sum(), leaves, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True), plain)


class Elsewhere(torch.Tensor):
    """A tensor without memory of its own, as quantised and distributed ones are."""

    @staticmethod
    def __new__(cls, within):
        options = {"dtype": within.dtype, "requires_grad": within.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, within.shape, strides=within.stride(), **options)

    def __init__(self, within):
        self.within = within.detach()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        given = tree_map_only(cls, lambda x: x.within, (args, kwargs or {}))
        results = tree_map_only(torch.Tensor, cls, function(*given[0], **given[1]))
        return args[0] if function._schema.is_mutable else results


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("case", TRAINED)
def test_tensors_without_memory(case: Case, backend: str):
    layer, x = case.build(), case.input()
    with pellucid.backend(backend):
        (expected, *_), _ = run(copy.deepcopy(layer), x, **case.options())
        for module in layer.modules():
            for values in (module._parameters, module._buffers):
                kind = torch.nn.Parameter if values is module._parameters else torch.Tensor.detach
                values.update({n: kind(Elsewhere(v)) for n, v in values.items() if v is not None})
        for found in (layer(Elsewhere(x), **case.options()), layer(x, **case.options())):
            y = tree_leaves(found)[0]
            torch.testing.assert_close(y.within if isinstance(y, Elsewhere) else y, expected)


class Named(torch.Tensor):
    """A class that keeps itself, as torch's ``__torch_function__`` does."""


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL])
def test_a_class_of_tensors_keeps_itself(case: Case, backend: str):
    layer, x = case.build(), case.input()
    with pellucid.backend(backend):
        found = layer(x.as_subclass(Named), **case.call)
    assert {type(y) for y in tree_leaves(found) if isinstance(y, torch.Tensor)} == {Named}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL])
def test_a_scripter_is_told_the_cure(case: Case):
    layer = case.build()
    if isinstance(layer, Running):
        with pytest.raises(NotImplementedError, match=r"torch.jit.script cannot read.*pellucid.restore"):
            torch.jit.script(torch.nn.Sequential(layer))


class Inside(torch.nn.Module):
    """A model with one layer, which is called as the case calls it."""

    def __init__(self, layer: torch.nn.Module, options: dict[str, Any]):
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x):
        return self.layer(x, **self.options)


@pytest.mark.parametrize("by_itself", [True, False])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL])
def test_a_symbolic_tracer_is_told_the_cure_or_traces(case: Case, by_itself: bool):
    layer, x = case.build(), case.input()
    options = {} if by_itself else case.options()
    told, traced = "", None
    try:
        traced = torch.fx.symbolic_trace(layer if by_itself else Inside(layer, options))
    except TypeError as error:
        told = str(error)
    if traced is None:
        assert re.search(r"torch\.fx\.symbolic_trace cannot read.*pellucid\.restore\(model\)", told)
    else:
        torch.testing.assert_close(traced(x), layer(x, **options))


@pytest.mark.parametrize("case", TRAINED)
def test_gradients_of_several_vectors_at_once(case: Case):
    layer, x = case.build(), case.input().requires_grad_()
    with pellucid.backend("c"):
        y, *_ = tree_leaves(layer(x, **case.options()))
        leaves, vectors = [x, *layer.parameters()], torch.stack([y.detach(), y.detach().cos()])
        several = torch.autograd.grad(y, leaves, vectors, is_grads_batched=True, retain_graph=True)
        for i, vector in enumerate(vectors):
            one = torch.autograd.grad(y, leaves, vector, retain_graph=True)
            torch.testing.assert_close([g[i] for g in several], list(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", SHARED)
def test_state_dict_both_ways(case: Case):
    layer, reference = case.build(), case.build_reference()
    assert list(layer.state_dict()) == list(reference.state_dict())
    for name, value in reference.state_dict().items():  # the same seed draws the same weights
        torch.testing.assert_close(layer.state_dict()[name], value)
    reference.load_state_dict(layer.state_dict())
    layer.load_state_dict(reference.state_dict())
    if case.reference is None:  # else it is made of several layers
        assert repr(layer) == repr(reference)


@pytest.mark.parametrize("case", EVERY)
def test_copies_compute_the_same(case: Case):
    layer = case.build().eval()
    x = case.input()
    expected = layer(x, **case.call)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x, **case.call), expected, rtol=0, atol=0)
        assert repr(twin) == repr(layer)


@pytest.mark.parametrize("case", EVERY)
def test_layout_does_not_matter(case: Case):
    layer = case.build().eval()
    x = case.input()
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    torch.testing.assert_close(layer(strided, **case.call), layer(x, **case.call))


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("case", EVERY)
def test_layout_of_weights_does_not_matter(case: Case, backend: str):
    layer, x = case.build().eval(), case.input()
    with pellucid.backend(backend):
        expected = layer(x, **case.call)
        for parameter in layer.parameters():
            parameter.data = torch.stack([parameter.data, parameter.data + 1], -1)[..., 0]
        torch.testing.assert_close(layer(x, **case.call), expected)


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("case", TRAINED)
def test_numbers_that_memory_holds_the_negatives_of(case: Case, backend: str):
    """As of z.conj().imag: torch's operators see them as they are."""
    layer, x = case.build(torch.float64), case.input(torch.float64)
    twin, gradients = copy.deepcopy(layer), []
    with pellucid.backend(backend):
        for each, turn in ((layer, torch._neg_view), (twin, torch.neg)):
            given = turn(x.clone().requires_grad_())
            y, *_ = tree_leaves(each(given, **case.options(torch.float64)))
            found = torch.autograd.grad(y, [given, *each.parameters()], turn(torch.ones_like(y)), allow_unused=True)
            gradients.append((y, found))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CONVOLUTION + NORMALIZATION + LINEAR])
def test_weights_of_another_shape(case: Case, backend: str):
    """torch goes by their shapes, or refuses them; a kernel would read what is not there."""
    for name, value in case.build().state_dict().items():
        for axis in range(value.ndim):
            results = []
            for layer in (case.build_reference(), case.build()):
                if layer is not None:
                    stored = layer._parameters if name in layer._parameters else layer._buffers
                    short = value.narrow(axis, 0, value.shape[axis] - 1).clone()
                    stored[name] = torch.nn.Parameter(short) if stored is layer._parameters else short
                    with pellucid.backend(backend):
                        try:
                            results.append(layer(case.input(), **case.call))
                        except (RuntimeError, IndexError):
                            results.append(None)
            torch.testing.assert_close(results[-1], results[0])


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        *(("Conv2d", attribute, 2) for attribute in ("stride", "padding", "dilation")),
        ("ConvTranspose2d", "stride", 2),
        ("AvgPool2d", "stride", None),
        ("MaxPool2d", "stride", None),
    ],
)
def test_numbers_that_are_set_later(name: str, attribute: str, value: int | None, swapped: bool, backend: str):
    args = (2, 3, 3) if name.startswith("Conv") else (2, 1)
    layer, reference = getattr(torch.nn if swapped else nn, name)(*args), getattr(torch.nn, name)(*args)
    layer.load_state_dict(reference.state_dict())
    for each in (layer, reference):
        setattr(each, attribute, value)
    if swapped:
        pellucid.swap(torch.nn.Sequential(layer))
    with pellucid.backend(backend):
        x = torch.linspace(-1, 3, 2 * 2 * 9 * 8).reshape(2, 2, 9, 8)
        torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize(("name", "padding"), [("Conv2d", "causal"), ("Conv1d", "some"), ("ConvTranspose1d", "valid")])
def test_a_padding_that_is_set_later_and_unknown_is_named(name: str, padding: str):
    with pytest.raises(ValueError, match=rf"nn.{name}: padding.*{padding}"):
        getattr(nn, name)(2, 3, 3).padding = padding


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("Conv2d", "stride", 0),
        ("Conv2d", "padding", -1),
        ("Conv2d", "dilation", 0),
        ("ConvTranspose2d", "output_padding", -1),
        ("MaxPool2d", "stride", 0),
        ("AvgPool2d", "padding", -1),
    ],
)
def test_numbers_by_which_no_window_lies_anywhere(name: str, attribute: str, value: int):
    args = (2, 3, 3) if name.startswith("Conv") else (2,)
    with pytest.raises(RuntimeError, match=rf"nn.{name}: {attribute} is .*{value}.* at least {max(value + 1, 0)}"):
        getattr(nn, name)(*args, **{attribute: value})


@pytest.mark.parametrize("backend", ["c", "auto"])
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("options", [{"stride": (2,)}, {"padding": (1,)}, {"dilation": (2,)}])
def test_one_number_in_a_tuple_is_for_all_axes(name: str, options: dict[str, tuple[int]], backend: str):
    reference = getattr(torch.nn, name)(2, 3, 3, **options)
    layer = getattr(nn, name)(2, 3, 3, **options)
    layer.load_state_dict(reference.state_dict())
    x = torch.linspace(-1, 3, 2 * 2 * 9 * 8).reshape(2, 2, 9, 8)
    with pellucid.backend(backend):
        torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "GroupNorm", "Dropout", "AlphaDropout", "Linear"])
def test_what_is_no_tensor(name: str, training: bool):
    args = {"Linear": (3, 3), "GroupNorm": (1, 3), "Dropout": (), "AlphaDropout": ()}.get(name, (3,))
    with pytest.raises(TypeError, match="NoneType"):
        getattr(nn, name)(*args).train(training)(None)


@pytest.mark.parametrize(("case", "wrong"), REFUSED)
def test_wrong_input_is_named(case: Case, wrong: Wrong):
    layer = torch.nn.Sequential()
    layer.add_module("encoder", case.build(wrong.dtype or torch.float32))
    with pytest.raises(wrong.error) as caught:
        layer(torch.zeros(wrong.shape), **case.call) if not case.call else layer.encoder(
            torch.zeros(wrong.shape), **case.call
        )
    for word in (case.layer, *wrong.words):
        assert word in str(caught.value)
