"""Real models after `pellucid.swap` under what torch does with models: compilers, exporters, transforms, mixed
precision, computed and pruned weights, checkpoints, other processes. Copies and state_dicts are in test_swap.py, single
layers in their own files, other people's packages in test_ecosystem_packages.py."""

from __future__ import annotations

import copy
import io
import logging
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid import nn
from pellucid.benchmark.zoo import ZOO
from pellucid.models.structures import difference, largest, mapped, ramp, tensors
from pellucid.nn.swapped.exchange import kind_of

pytest.importorskip("transformers", reason="the real models are built from transformers' code")
logging.getLogger("transformers").setLevel(logging.ERROR)
KNOWN = {known.name: known for known in ZOO}


def pair(name, training=False, dtype=torch.float32, drop=False):
    """The same model with torch.nn's layers and with pellucid's, and an example; ``drop``: whether dropouts act."""
    theirs, inputs = KNOWN[name].make(tiny=True)
    theirs.to(dtype).train(training)
    if not drop:
        for module in theirs.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, torch.nn.RNNBase):
                module.dropout = 0.0
    ours = copy.deepcopy(theirs)
    assert pellucid.swap(ours).replaced
    return theirs, ours, mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)


def results(model, inputs, seed=0):
    """Outputs, and gradients of all that has one."""
    torch.manual_seed(seed)
    outputs = list(tensors(model(**inputs)))
    gradients = torch.autograd.grad(ramp(outputs), list(model.parameters()), allow_unused=True)
    return [y.detach() for y in outputs], [g for g in gradients if g is not None]


def apart(found, expected):
    """The largest difference of outputs, each by its largest entry, and of gradients, by the largest of all."""
    (outputs, gradients), (outputs_expected, gradients_expected) = found, expected
    assert len(gradients) == len(gradients_expected)
    scale = max(map(largest, gradients_expected))
    of_outputs = [difference(a.float(), b.float()) for a, b in zip(outputs, outputs_expected, strict=True)]
    pairs = zip(gradients, gradients_expected, strict=True)
    return max(of_outputs), max(difference(a.float(), b.float(), scale) for a, b in pairs)


def same(model, other, inputs):
    assert max(apart(results(model, inputs), results(other, inputs))) < 1e-5


def train(model, inputs, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        ramp(list(tensors(model(**inputs)))).backward()
        optimizer.step()


# -- compilers and exporters ------------------------------------------------------------------------------------------

SIZES = {
    "forecaster (GRU)": lambda batch, time: {"past": torch.randn(batch, time, 3)},
    "CRNN (LSTM)": lambda batch, time: {"picture": torch.randn(batch, 1, 8, 2 * time)},
    "BERT": lambda batch, time: {"input_ids": torch.randint(1000, (batch, time))},
}


@pytest.mark.parametrize(
    ("name", "backend"), [("forecaster (GRU)", "aot_eager"), ("CRNN (LSTM)", "eager"), ("BERT", "eager")]
)
def test_one_compiled_graph_for_all_sizes(name, backend):
    theirs, ours, _ = pair(name, training=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=backend)
    for batch, time in ((2, 9), (3, 14), (5, 21)):
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            same(compiled, theirs, SIZES[name](batch, time))


def exported(model, inputs, sizes):
    """A program as somebody else loads it."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (), inputs, dynamic_shapes=sizes), file)
    file.seek(0)
    return torch.export.load(file)


def test_export_with_free_batch_and_size():
    theirs, ours, inputs = pair("CRNN (LSTM)")
    free = {0: torch.export.Dim("batch"), 3: torch.export.Dim.AUTO}
    program = exported(ours, inputs, {"picture": free})
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.pellucid.recurrence.default]
    assert len(nodes) == 4  # two levels in two directions, whatever the length
    same(program.module(), theirs, SIZES["CRNN (LSTM)"](5, 20))


def test_export_for_training_draws_and_learns_as_the_model_does():
    _, ours, inputs = pair("forecaster (GRU)", training=True, drop=True)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2, max=1000)}
    program = exported(ours, inputs, {"past": free})
    longer = {"past": torch.randn(40, 50, 3)}  # more numbers are drawn than the example has
    found, expected = results(program.module(), longer), results(ours, longer)
    assert max(apart(found, expected)) < 1e-5
    assert difference(results(ours, longer, seed=1)[0][0], expected[0][0]) > 1e-2  # the dropouts act


@pytest.mark.parametrize("make", [lambda: nn.Dropout(0.5), lambda: nn.DropPath(0.5), lambda: nn.BatchNorm1d(3)])
def test_export_sets_no_bound_on_the_batch(make):
    layer, batch = make(), torch.export.Dim("batch")
    program = torch.export.export(layer, (torch.randn(2, 3),), dynamic_shapes=({0: batch},))
    x = torch.randn(7001, 3)  # more than what is small, and than one block of random numbers
    torch.manual_seed(0)
    found = program.module()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, layer(x))


def test_the_tracer_of_the_documents_takes_layers_for_leaves():
    text = (Path(__file__).parents[2] / "docs" / "how-it-runs.md").read_text(encoding="utf-8")
    layers = [
        torch.nn.Conv1d(3, 4, 3),
        torch.nn.BatchNorm1d(4),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(5, 2),
    ]
    model, x = torch.nn.Sequential(*layers).eval(), torch.randn(2, 3, 7)
    pellucid.swap(model, fuse=True)
    given = {"torch": torch, "model": model}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "torch.fx" in block), given)
    graph = given["traced"].graph
    assert [node.op for node in graph.nodes] == ["placeholder", *["call_module"] * len(layers), "output"]
    torch.testing.assert_close(given["traced"](x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("gradient", [False, True], ids=["no_grad", "grad"])
def test_a_trace_reads_other_sizes_and_is_saved(gradient):
    theirs, ours, inputs = pair("forecaster (GRU)")
    with torch.set_grad_enabled(gradient):
        trace = torch.jit.trace(ours, example_kwarg_inputs=inputs)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    same(torch.jit.load(file), theirs, SIZES["forecaster (GRU)"](3, 20))


@pytest.mark.parametrize("name", ["forecaster (GRU)", "CRNN (LSTM)", "ConvNeXt"])
def test_fake_tensors_have_shapes_only(name):
    _, ours, inputs = pair(name, training=True, drop=True)
    expected = [(y.shape, y.dtype) for y in tensors(ours(**inputs))]
    with FakeTensorMode() as fake:
        values = {n: fake.from_tensor(v) for n, v in (*ours.named_parameters(), *ours.named_buffers())}
        outputs = list(tensors(functional_call(ours, values, (), mapped(fake.from_tensor, inputs))))
        ramp(outputs).backward()
    assert [(y.shape, y.dtype) for y in outputs] == expected
    ours.eval()  # what is drawn outside is not fake
    outside = mapped(fake.from_tensor, inputs)
    assert [y.shape for y in tensors(functional_call(ours, values, (), outside))] == [shape for shape, _ in expected]


@pytest.mark.parametrize("gradient", [False, True], ids=["no_grad", "grad"])
def test_a_graph_by_make_fx_has_no_constants(gradient):
    _, ours, inputs = pair("forecaster (GRU)")
    with torch.set_grad_enabled(gradient):
        graph = make_fx(lambda past: ours(past))(inputs["past"])
    other = inputs["past"] + 1
    torch.testing.assert_close(graph(other), ours(other))


# -- mixed precision --------------------------------------------------------------------------------------------------


def under_autocast(model, inputs, device, dtype):
    with torch.autocast(device, dtype):
        outputs = list(tensors(model(**inputs)))
    gradients = torch.autograd.grad(ramp(outputs), list(model.parameters()), allow_unused=True)
    return [y.detach() for y in outputs], [g for g in gradients if g is not None]


def as_exact_as_torch(name, device, dtype):
    theirs, ours, inputs = pair(name, training=name != "ConvNeXt")
    theirs, ours = theirs.to(device), ours.to(device)
    inputs = mapped(lambda x: x.to(device), inputs)
    exact = results(theirs, inputs)
    usual, found = (under_autocast(model, inputs, device, dtype) for model in (theirs, ours))
    assert [y.dtype for y in found[0]] == [y.dtype for y in usual[0]]
    assert {g.dtype for g in found[1]} == {torch.float32}
    for distance, limit in zip(apart(found, exact), apart(usual, exact), strict=True):
        assert distance < 2 * limit + 1e-3


AUTOCAST = ["forecaster (GRU)", "CRNN (LSTM)", "BERT", "ConvNeXt"]


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_costs_no_more_digits_than_with_torchs_layers(name):
    as_exact_as_torch(name, "cpu", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_on_the_gpu(name, dtype):
    as_exact_as_torch(name, "cuda", dtype)


@pytest.mark.gpu
def test_scaled_gradients_on_the_gpu():
    _, ours, inputs = pair("CRNN (LSTM)", training=True)
    ours.cuda()
    optimizer, scaler = torch.optim.SGD(ours.parameters(), 0.01), torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = ours(inputs["picture"].cuda()).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


# -- torch.func -------------------------------------------------------------------------------------------------------


def total(outputs):
    return sum((y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).sum() for y in tensors(outputs))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["forecaster (GRU)", "CRNN (LSTM)", "BERT"])
def test_models_side_by_side(name):
    models = []
    for _ in range(3):
        _, ours, inputs = pair(name)
        torch.manual_seed(len(models))
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        models.append(ours)
    together = vmap(lambda *state: next(tensors(functional_call(models[0], state, (), inputs))))
    found = together(*stack_module_state(models))
    for model, output in zip(models, found, strict=True):
        torch.testing.assert_close(output, next(tensors(model(**inputs))))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's attention has no batching rule
@pytest.mark.parametrize("name", ["forecaster (GRU)", "CRNN (LSTM)", "BERT", "ConvNeXt"])
def test_gradients_of_every_sample(name):
    """torch.nn's GRU and LSTM raise under vmap(grad): the loop over samples is theirs, vmap is ours."""
    theirs, ours, inputs = pair(name, dtype=torch.float64)
    parameters, buffers = dict(ours.named_parameters()), dict(ours.named_buffers())

    def loss(parameters, sample):
        return total(functional_call(ours, (parameters, buffers), (), mapped(lambda x: x.unsqueeze(0), sample)))

    found = vmap(grad(loss), (None, 0))(parameters, inputs)
    for i in range(2):
        theirs.zero_grad()
        total(theirs(**mapped(lambda x, i=i: x[i : i + 1], inputs))).backward()
        for name, parameter in theirs.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found[name][i], expected)


@pytest.mark.parametrize("name", ["forecaster (GRU)", "CRNN (LSTM)", "ResNet-18"])
def test_forward_mode(name):
    theirs, ours, inputs = pair(name, dtype=torch.float64)
    state = {n: p.detach() for n, p in ours.named_parameters()}
    torch.manual_seed(1)
    towards = {n: torch.randn_like(p) for n, p in state.items()}

    def loss(state):
        return total(functional_call(ours, state, (), inputs))

    value, slope = jvp(loss, (state,), (towards,))
    expected = total(theirs(**inputs))
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, sum((p.grad * towards[n]).sum() for n, p in theirs.named_parameters()))


@pytest.mark.parametrize("transform", ["per sample", "jvp"])
def test_transforms_are_compiled_too(transform):
    layer, x = nn.GRU(3, 4), torch.randn(2, 5, 1, 3)
    state = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(state, x):
        return functional_call(layer, state, (x,))[0].square().sum()

    def per_sample(state, x):
        return vmap(grad(loss), (None, 0))(state, x)

    def slope(state, x):
        return jvp(lambda x: loss(state, x), (x[0],), (torch.ones_like(x[0]),))[1]

    function, backend = (per_sample, "aot_eager") if transform == "per sample" else (slope, "eager")
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(state, x), function(state, x))


# -- what torch does to weights ---------------------------------------------------------------------------------------


class Positive(torch.nn.Module):
    def forward(self, weight):
        return weight.abs()

    def right_inverse(self, weight):
        return weight


def test_weights_are_computed_on_swapped_layers():
    theirs, ours, inputs = pair("CRNN (LSTM)")
    for model in (theirs, ours):
        torch.manual_seed(0)
        parametrizations.weight_norm(model.stages[0])
        parametrizations.spectral_norm(model.stages[4])
        parametrizations.weight_norm(model.rnn, "weight_ih_l0_reverse")
        parametrizations.orthogonal(model.rnn, "weight_hh_l1")
        parametrize.register_parametrization(model.rnn, "weight_hh_l0", Positive())
        parametrizations.weight_norm(model.output)
    same(ours, theirs, inputs)
    for model in (theirs, ours):
        train(model, inputs)
    same(ours, theirs, inputs)
    with parametrize.cached():
        same(ours, theirs, inputs)
    pellucid.restore(ours)
    assert isinstance(ours.rnn, torch.nn.LSTM)
    same(ours, theirs, inputs)
    pellucid.swap(ours)
    for layer in (ours.stages[0], ours.stages[4], ours.rnn):
        for name in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, name)
    assert type(ours.rnn) is nn.LSTM
    with torch.no_grad():
        assert difference(ours(**inputs), theirs(**inputs)) < 1e-5


def test_pruned_weights_stay_pruned():
    theirs, ours, inputs = pair("CRNN (LSTM)")
    for model in (theirs, ours):
        for layer in (model.stages[0], model.stages[4], model.output):
            prune.l1_unstructured(layer, "weight", 0.5)
        for name in [n for n, _ in model.rnn.named_parameters() if n.startswith("weight")]:
            prune.l1_unstructured(model.rnn, name, 0.5)
        train(model, inputs)
    same(ours, theirs, inputs)
    pellucid.restore(ours)
    same(ours, theirs, inputs)
    pellucid.swap(ours)
    prune.remove(ours.rnn, "weight_hh_l0")
    assert float((ours.rnn.weight_hh_l0 == 0).float().mean()) == 0.5
    with torch.no_grad():
        assert difference(ours(**inputs), theirs(**inputs)) < 1e-5


def test_averaged_weights_and_their_statistics():
    theirs, ours, inputs = pair("CRNN (LSTM)", training=True)
    averages = []
    for model in (theirs, ours):
        averages.append(AveragedModel(model))
        for _ in range(2):
            train(model, inputs, steps=1)
            averages[-1].update_parameters(model)
        update_bn([inputs["picture"]], averages[-1])
    same(averages[1].eval(), averages[0].eval(), inputs)
    assert kind_of(averages[1].module.rnn) is nn.LSTM


# -- checkpoints and processes ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["kept graph", "reentrant"])
def test_checkpointed_blocks_draw_the_same_masks_again(reentrant):
    _, bert, inputs = pair("BERT", training=True, drop=True)
    expected = results(bert, inputs)
    bert.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in bert.encoder.layer)
    if reentrant:  # torch.autograd.grad does not go through these
        torch.manual_seed(0)
        ramp(list(tensors(bert(**inputs)))).backward()
        found = [p.grad for p in bert.parameters() if p.grad is not None]
        assert max(apart((expected[0], found), expected)) < 1e-6
    else:
        assert max(apart(results(bert, inputs), expected)) < 1e-6
    _, forecaster, inputs = pair("forecaster (GRU)", training=True, drop=True)
    past = inputs["past"].requires_grad_()
    seen = []
    for run in (forecaster, lambda past: checkpoint(forecaster, past, use_reentrant=reentrant)):
        forecaster.zero_grad()
        forecaster.norm.reset_running_stats()
        torch.manual_seed(0)
        run(past).square().sum().backward()
        seen.append([p.grad.clone() for p in forecaster.parameters()])
    torch.testing.assert_close(*seen)


def _learn(model, past):
    torch.set_num_threads(1)
    train(model, {"past": past}, steps=1)


def test_another_process_trains_a_shared_model():
    theirs, ours, inputs = pair("forecaster (GRU)")
    ours.share_memory()
    process = torch.multiprocessing.get_context("spawn").Process(target=_learn, args=(ours, inputs["past"]))
    process.start()
    train(theirs, inputs, steps=1)
    process.join()
    assert process.exitcode == 0
    same(ours, theirs, inputs)
