"""The drop-in recurrent layers beyond the table: packed input, state, dtypes, transforms, compilers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

import formulas
import pellucid
from pellucid import nn
from pellucid.nn.recurrence import torch_recurrence


def pair(name, *args, **kwargs):
    torch.manual_seed(0)
    ours = getattr(nn, name)(*args, **kwargs)
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_packed_sequences(name, enforce_sorted):
    ours, theirs = pair(name, 3, 4, 2, bidirectional=True)
    lengths = [5, 4, 2, 1] if enforce_sorted else [2, 5, 1, 4]
    packed = pack_padded_sequence(torch.randn(5, 4, 3), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    state = torch.randn(4, 4, 4)
    state = (state, state.flip(0)) if name == "LSTM" else state
    (out, last), (expected, expected_last) = ours(packed, state), theirs(packed, state)
    torch.testing.assert_close(out.data, expected.data)
    assert torch.equal(out.batch_sizes, expected.batch_sizes)
    torch.testing.assert_close(last, expected_last)
    torch.testing.assert_close(pad_packed_sequence(out), pad_packed_sequence(expected))
    with pytest.raises(ValueError, match="brings its own lengths"):
        ours(packed, lengths=lengths)


def test_packing_alike_lengths_keeps_the_order():
    ours, theirs = pair("GRU", 3, 4)
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 3, 3, 2, 3)], enforce_sorted=False)
    torch.testing.assert_close(ours(packed)[0].data, theirs(packed)[0].data)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_state_goes_in_and_out(name):
    ours, _ = pair(name, 3, 4, 2)
    x = torch.randn(7, 2, 3)
    whole, last = ours(x)
    first, state = ours(x[:4])
    second, state = ours(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    ours, theirs = pair("GRU", 8, 16)
    x = torch.randn(6, 3, 8)
    expected = theirs(x)[0]
    output = ours.to(dtype)(x.to(dtype))[0]
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_complex_numbers(name):
    seen = []
    for layer in pair(name, 3, 4, 2, bidirectional=True):
        torch.manual_seed(1)
        layer.to(torch.complex128)
        x = torch.randn(5, 2, 3, dtype=torch.complex128, requires_grad=True)
        y = layer(x)[0]
        seen.append([y, *torch.autograd.grad(y.abs().square().sum() + y[0].imag.sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*seen)


def test_complex_numbers_in_one_graph():
    torch._dynamo.reset()
    layer, x = nn.LSTM(3, 4).to(torch.complex128), torch.randn(5, 2, 3, dtype=torch.complex128)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x)[0], layer(x)[0])
    torch._dynamo.reset()


def test_autocast_runs_the_layer_in_its_type():
    ours, theirs = pair("LSTM", 8, 16)
    x = torch.randn(6, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output, (h, _) = ours(x)
    assert output.dtype == h.dtype == torch.bfloat16
    output.float().sum().backward()
    assert x.grad.dtype == ours.weight_ih_l0.grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), theirs(x)[0], rtol=0, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.double()(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")), ("LSTM", {"proj_size": 4})],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_autocast_gives_the_types_of_torch(name, options):
    x = torch.randn(*((4, 8) if name.endswith("Cell") else (70, 4, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (getattr(module, name)(8, 8, **options)(x) for module in (nn, torch.nn))
    types = [[t.dtype for t in torch.utils._pytree.tree_leaves(result)] for result in (ours, theirs)]
    assert types[0] == types[1]


@pytest.mark.parametrize("name", ["RNN", "GRU", "GRUCell", "LSTMCell"])
def test_torch_counts_the_operations(name):
    def counted(layer):
        x = torch.randn(*((4, 8) if name.endswith("Cell") else (70, 4, 8)), requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            y = layer(x)
            (y[0] if isinstance(y, tuple) else y).sum().backward()
        return counter.get_total_flops()

    assert counted(getattr(nn, name)(8, 6)) == counted(getattr(torch.nn, name)(8, 6)) > 0


def test_autocast_of_a_norm_inside_a_cell():
    layer = formulas.normalized(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(4, 2, 8))[0]
    output.float().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_dropout_stands_between_levels_only():
    torch.manual_seed(0)
    layer = nn.GRU(3, 4, 2, dropout=1.0)
    x = torch.randn(5, 2, 3)
    output, _ = layer(x)
    assert torch.equal(layer(10 * x)[0], output)  # all of the first level's output is dropped
    layer.eval()
    assert not torch.equal(layer(10 * x)[0], layer(x)[0])
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        nn.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (torch.zeros(1, 3, 4), "batch 3"),
        (torch.zeros(2, 2, 4), "layers × directions 2"),
        (torch.zeros(2, 4), r"\(2, 4\)"),
        ((torch.zeros(1, 2, 4),) * 2, "1 entries, but 2"),
        (torch.zeros(1, 2, 4, dtype=torch.float64), "torch.float64, the input is of torch.float32"),
    ],
)
def test_a_wrong_state_is_named(state, word):
    model = torch.nn.ModuleDict({"encoder": nn.GRU(3, 4)})
    with pytest.raises(RuntimeError, match=f"nn.GRU: the state .*{word}|{word}"):
        model["encoder"](torch.randn(5, 2, 3), state)


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [
        (torch.float64, r"input.to\(torch.float32\) or layer.to\(torch.float64\)\."),
        (torch.int64, r"input.to\(torch.float32\)\."),
        (torch.complex64, r"layer.to\(torch.complex64\) or give it both parts as features, .*, 6\."),
    ],
    ids=str,
)
def test_another_dtype_is_named(dtype, cure):
    with pytest.raises(ValueError, match=rf"input is of {dtype}, the parameters are of torch.float32.*: {cure}"):
        nn.GRU(3, 4)(torch.zeros(5, 2, 3, dtype=dtype))


@pytest.mark.parametrize("backend", ["auto", "stepwise"])
@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("bias_hh_l0", torch.zeros(12, dtype=torch.float64), "torch.float64"),
        ("weight_hh_l0", torch.zeros(12, 4, dtype=torch.float64), "torch.float64"),
        ("weight_hh_l0", torch.zeros(12, 4, device="meta"), "meta"),
        ("weight_hh_l0", torch.zeros(9, 4), r"W of its formula is \(4, 9\)"),
        ("bias_hh_l0", torch.zeros(1), r"c of its formula is \(1\)"),
    ],
)
def test_what_a_kernel_cannot_read_is_named(backend, name, value, word):
    layer = nn.GRU(3, 4)
    setattr(layer, name, torch.nn.Parameter(value))
    with pellucid.backend(backend), pytest.raises(RuntimeError, match=word):
        layer(torch.zeros(5, 2, 3))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_it_is_made_without_initialisation(name):
    layer = torch.nn.utils.skip_init(getattr(nn, name), 3, 4)
    assert [p.shape for p in layer.parameters()] == [p.shape for p in getattr(torch.nn, name)(3, 4).parameters()]


def test_a_subclass_finds_what_torch_s_lstm_has():
    class Own(nn.LSTM):
        def forward(self, input, hx):
            self.check_forward_args(input, hx, None)
            return super().forward(input, self.permute_hidden(hx, torch.tensor([1, 0])))

    layer, x, state = Own(3, 4), torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert layer.get_expected_cell_size(x, None) == (1, 2, 4)
    _, (h, _) = layer(x[:0], (state, state))
    torch.testing.assert_close(h, state.flip(1))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\)"):
        layer(x, (state, state[:, :1]))


@pytest.mark.parametrize(
    ("name", "args", "attribute", "value"),
    [
        ("RNN", (3, 4, 2), "mode", "RNN_RELU"),
        ("RNN", (3, 4, 2, "relu"), "mode", "RNN_TANH"),
        ("RNN", (3, 4), "nonlinearity", "relu"),
        ("RNNCell", (3, 4), "nonlinearity", "relu"),
        ("RNNCell", (3, 4), "bias", False),
        ("GRUCell", (3, 4, False), "bias", True),
        ("LSTM", (3, 4, 2), "num_layers", 1),
        ("LSTM", (3, 4), "batch_first", True),
    ],
)
def test_what_is_set_later_decides(name, args, attribute, value):
    ours, theirs = pair(name, *args)
    x = torch.randn(*((2, 3) if name.endswith("Cell") else (5, 2, 3)))
    ours(x)
    for layer in (ours, theirs):
        setattr(layer, attribute, value)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "attribute", "value", "word"),
    [
        ("GRU", "num_layers", 3, "no weight_ih_l2, which it needs with .*num_layers=3"),
        ("GRU", "bidirectional", True, "no weight_ih_l0_reverse"),
        ("LSTM", "proj_size", 2, r"U of its formula|no weight_hr_l0"),
        ("LSTM", "hidden_size", 7, r"sizes want \(3, 28\)"),
        ("GRUCell", "hidden_size", 7, r"sizes want \(3, 21\)"),
        ("RNN", "mode", "GRU", "'RNN_TANH' or 'RNN_RELU', not 'GRU'"),
        ("RNNCell", "nonlinearity", "selu", "'tanh' or 'relu', not 'selu'"),
    ],
)
def test_what_is_set_later_and_does_not_fit_is_named(name, attribute, value, word):
    layer = getattr(nn, name)(3, 4, *(() if name.endswith("Cell") else (2,)))

    def set_and_read():
        setattr(layer, attribute, value)
        layer(torch.zeros(*((2, 3) if name.endswith("Cell") else (5, 2, 3))))

    with pytest.raises(RuntimeError, match=rf"nn.{name}.*{word}"):
        set_and_read()


def test_layers_of_a_cell_follow_what_is_set_later():
    layer = nn.cells.leaky(3, 4, 2)
    x = torch.randn(5, 2, 3)
    recorded = layer(x, record=["h"])[2]["h"]
    layer.num_layers = 1
    torch.testing.assert_close(layer(x)[0], recorded[0])
    layer.hidden_size = 5
    with pytest.raises(RuntimeError, match=r"leaky: U of its formula is \(3, 4\).*want \(3, 5\)"):
        layer(x)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_a_cell_reads_sparse_features(name):
    ours, theirs = pair(name, 6, 4)
    x = torch.eye(6)[[0, 3, 3]].to_sparse()
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_state_on_another_device_is_named():
    with pytest.raises(RuntimeError, match="meta"):
        nn.GRU(3, 4)(torch.zeros(5, 2, 3), torch.zeros(1, 2, 4, device="meta"))


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_raise_what_torch_does_for_another_dtype(cell):
    with pytest.raises(RuntimeError, match=r"input is of torch.float64"):
        cell(3, 4)(torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("lengths", "error", "word"),
    [
        ([5, 6], RuntimeError, "exceeds the 5 steps"),
        ([1], RuntimeError, "batch of 2"),
        ([1.5, 2.0], TypeError, "whole"),
    ],
)
def test_wrong_lengths_are_named(lengths, error, word):
    with pytest.raises(error, match=word):
        nn.GRU(3, 4)(torch.randn(5, 2, 3), lengths=lengths)


@pytest.mark.parametrize("backend", ["auto", "c", "stepwise", "naive"])
def test_empty_batch_and_no_steps(backend):
    layer = nn.LSTM(3, 4, 2, bidirectional=True)
    for shape in ((5, 0, 3), (0, 2, 3), (0, 0, 3)):
        x = torch.randn(shape, requires_grad=True)
        with pellucid.backend(backend):
            output, (h, c) = layer(x)
        assert output.shape == (*shape[:2], 8)
        assert h.shape == c.shape == (4, shape[1], 4)
        output.sum().backward()
        assert x.grad.shape == shape


def test_the_meta_device_has_shapes_only():
    layer = nn.LSTM(3, 4, 2, device="meta")
    output, (h, _) = layer(torch.empty(5, 2, 3, device="meta"), lengths=torch.tensor([5, 2]))
    assert output.is_meta
    assert (output.shape, h.shape) == ((5, 2, 4), (2, 2, 4))


def test_only_what_needs_a_gradient_gets_one():
    layer = nn.GRU(3, 4)
    layer.weight_ih_l0.requires_grad_(False)
    x = torch.randn(5, 2, 3)
    layer(x)[0].sum().backward()
    assert layer.weight_ih_l0.grad is None
    assert x.grad is None
    assert layer.weight_hh_l0.grad is not None


# -- transforms and compilers ----------------------------------------------------------------------------------

LAYERS = [
    pytest.param(lambda: nn.GRU(3, 4, 2, bidirectional=True), id="GRU"),
    pytest.param(lambda: nn.LSTM(3, 4, proj_size=2), id="LSTM"),
    pytest.param(lambda: formulas.read_out(3, 4, classes=5), id="read_out"),
    pytest.param(lambda: formulas.signed(3, 4), id="signed"),
]


@pytest.mark.parametrize("make", LAYERS)
def test_functional_transforms(make):
    torch.manual_seed(0)
    layer = make().double()
    parameters = {n: p.detach() for n, p in layer.named_parameters()}
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)

    def loss(weights, sample):
        return torch.func.functional_call(layer, weights, (sample,))[0].square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(6):
        live = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        expected = torch.autograd.grad(loss(live, x[i]), list(live.values()))
        for name, grad in zip(live, expected, strict=True):
            torch.testing.assert_close(per_sample[name][i], grad)
    sample, tangent = x[0], torch.randn_like(x[0])
    value, derivative = torch.func.jvp(lambda v: loss(parameters, v), (sample,), (tangent,))
    _, pullback = torch.func.vjp(lambda v: loss(parameters, v), sample)
    torch.testing.assert_close(derivative, (pullback(torch.ones_like(value))[0] * tangent).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = loss(parameters, torch.autograd.forward_ad.make_dual(sample, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, derivative)


def test_a_crowd_of_models_by_vmap():
    layers = [nn.GRU(3, 4) for _ in range(3)]
    stacked, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(5, 2, 3)
    outputs = torch.func.vmap(lambda w, b: torch.func.functional_call(layers[0], (w, b), (x,))[0])(stacked, buffers)
    for layer, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(layer(x)[0], output)


@pytest.mark.parametrize("make", LAYERS)
def test_compile_in_one_graph(make):
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for time in (5, 7):
        x = torch.randn(time, 2, 3, requires_grad=True)
        inputs = [x, *layer.parameters()]
        expected, output = layer(x, lengths=[time, 2])[0], compiled(x, lengths=[time, 2])[0]
        torch.testing.assert_close(output, expected)
        grads = (torch.autograd.grad(y.square().sum(), inputs) for y in (output, expected))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gradients_off", [torch.no_grad, torch.inference_mode])
def test_compile_in_one_graph_without_gradients(gradients_off):
    layer, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with gradients_off():
        torch.testing.assert_close(compiled(x), layer(x))


def test_compile_of_random_draws():
    layer = formulas.variational(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    layer.eval()
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])


@pytest.mark.parametrize("make", LAYERS)
def test_export_with_a_dynamic_length(make):
    layer = make().eval()
    time = torch.export.Dim("time", min=2, max=1000)
    exported = torch.export.export(layer, (torch.randn(5, 2, 3),), dynamic_shapes=({0: time},))
    for steps in (2, 11):
        x = torch.randn(steps, 2, 3)
        torch.testing.assert_close(exported.module()(x), layer(x))


def test_operators_keep_their_promises():
    layer = nn.GRU(3, 4)
    values = [p.detach().clone().requires_grad_() for p in layer.symbol_values().values()]
    x = torch.randn(5, 2, 3, requires_grad=True)
    state = [torch.zeros(2, 4, requires_grad=True)]
    lengths = torch.tensor([5, 2])
    for division in ((0, 0), (2, 0), (0, 2), (2, 4)):
        arguments = (x, state, values, lengths, None, layer._keys[0], True, False, *division, True)
        torch.library.opcheck(torch.ops.pellucid.recurrence.default, arguments)


def test_inference_mode_and_threads():
    layer = formulas.leaky(3, 4, tau=7.5)  # a program that nothing has built yet
    x = torch.randn(5, 2, 3)
    results = []

    def work():
        with torch.inference_mode():
            results.append(layer(x)[0].clone())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pellucid.backend("naive"):
        expected = layer(x)[0]
    assert len(results) == 4
    for result in results:
        torch.testing.assert_close(result, expected)


def test_checkpointing_and_in_place_safety():
    layer = nn.GRU(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    expected = torch.autograd.grad(layer(x)[0].sum(), x)[0]
    again = torch.utils.checkpoint.checkpoint(lambda v: layer(v)[0], x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), x)[0], expected)
    output = layer(x)[0]
    with torch.no_grad():
        layer.weight_hh_l0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("lengths", [None, [5, 2]], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_results_may_be_changed_in_place(name, lengths):
    """``output += residual`` is how people write it; what backward reads must not change with it."""
    layer, x = getattr(nn, name)(3, 4).double(), torch.randn(5, 2, 3, dtype=torch.float64)

    def gradients(in_place):
        output, state = layer(x, lengths=lengths)
        for result in (output, *(state if name == "LSTM" else [state])):
            yield from torch.autograd.grad(
                (result.mul_(3) if in_place else result * 3).square().sum(), list(layer.parameters()), retain_graph=True
            )

    torch.testing.assert_close(list(gradients(True)), list(gradients(False)))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_an_input_of_batches_first_may_be_written_to(name):
    """``x += rnn(x)[0]``: what is kept for backward is a copy, as in torch.nn."""
    ours, theirs = pair(name, 3, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(4, 70, 3, dtype=torch.float64)

    def gradients(layer):
        y = x.clone().requires_grad_() * 1.0
        y += layer(y)[0]
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()))

    torch.testing.assert_close(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("name", ["GRU", "LSTM", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("wrong", [[[1.0, 2.0, 3.0]], None], ids=str)
def test_what_is_no_tensor_is_refused(name, wrong):
    layer, rows = getattr(nn, name)(3, 4), torch.ones(2, 3)
    said = f"the input is a {type(wrong).__name__}, but the layer reads a torch.Tensor"
    with pytest.raises(TypeError, match=rf"nn\.{name}: {said}"):
        layer(wrong)
    entries = 2 if name.startswith("LSTM") else 1
    with pytest.raises(TypeError, match=rf"nn\.{name}: the state.* is a str, but the layer reads"):
        layer(rows, ["wrong"] * entries)


# -- torch's own operator, where it is faster -----------------------------------------------------------------------


@pytest.fixture
def torch_is_faster(monkeypatch):
    """Let torch's operator be taken wherever it can be."""
    monkeypatch.setattr(torch_recurrence, "faster", lambda *_: True)
    monkeypatch.setattr(torch_recurrence, "_chosen", {})
    monkeypatch.setattr(torch_recurrence, "MOST_STEPS", 1)
    monkeypatch.setattr(torch_recurrence, "LEAST_WEIGHTS", 0)


@pytest.mark.usefixtures("torch_is_faster")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNN", {"nonlinearity": "relu", "bias": False}),
        ("GRU", {"bidirectional": True, "batch_first": True}),
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("LSTM", {"num_layers": 2, "dropout": 0.5}),
    ],
    ids=str,
)
def test_torchs_operator_computes_the_same(name, options):
    torch.manual_seed(0)
    layer = getattr(nn, name)(4, 5, **options).eval()
    x = torch.randn(3, 2, 4, requires_grad=True)
    weights = [x, *layer.parameters()]
    found = []
    for backend in ("auto", "c"):
        with pellucid.backend(backend):
            output, last = layer(x)
            assert layer.backend == ("torch" if backend == "auto" else "c")
            loss = output.square().sum() + sum(s.sum() for s in (last if name == "LSTM" else [last]))
            plain = torch.autograd.grad(loss, weights, retain_graph=True)
            first = torch.autograd.grad(loss, weights, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), weights)
            with torch.no_grad():
                silent = layer(x)[0]
            found.append([output, last, first, second, plain, silent])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("torch_is_faster")
def test_torchs_operator_is_left_alone_where_it_cannot_do_it():
    """Lengths, records, chunks, many rows, dropout between levels, weights that are computed, double precision."""

    def ran(layer, x, **options):
        layer(x, **options)
        return layer.backend

    layer, x = nn.LSTM(4, 5), torch.randn(3, 2, 4)
    assert ran(layer, x) == "torch"
    for options in {"lengths": [3, 1]}, {"record": ["i"]}, {"checkpoint_every": 1}, {"truncate": 2}:
        assert ran(layer, x, **options) == "c"
    assert ran(layer, torch.randn(3, 9, 4)) == "c"
    assert ran(layer.double(), x.double()) == "c"
    assert ran(nn.LSTM(4, 5, 2, dropout=0.5), x) == "c"
    assert ran(nn.LSTM(4, 5, proj_size=3), x) == "c"
    computed = torch.nn.utils.parametrizations.weight_norm(nn.LSTM(4, 5), "weight_hh_l0")
    assert ran(computed, x) == "c"
    torch.nn.utils.parametrize.remove_parametrizations(computed, "weight_hh_l0")
    assert ran(computed, x) == "torch"
    found = computed(x)
    with pellucid.backend("c"):
        torch.testing.assert_close(computed(x), found)


@pytest.mark.usefixtures("torch_is_faster")
def test_a_dropout_that_is_set_later_is_not_left_to_torch():
    layer, x = nn.GRU(4, 5, 2), torch.randn(3, 2, 4)
    alike = [layer(x)[0] for _ in range(2)]
    assert layer.backend == "torch"
    assert torch.equal(*alike)
    layer.dropout = 0.5
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert layer.backend == "c"


@pytest.mark.usefixtures("torch_is_faster")
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_autocast_decides_the_type_after_calls_that_were_left_to_torch(name):
    layer, x = getattr(nn, name)(4, 5), torch.randn(2, 4) if name.endswith("Cell") else torch.randn(3, 2, 4)

    def called():
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    alone = called()
    for _ in range(2):
        layer(x)
    assert layer.backend == "torch"
    types = {"RNN": torch.bfloat16, "RNNCell": torch.bfloat16, "LSTM": torch.bfloat16}
    assert called().dtype == alone.dtype == types.get(name, torch.float32)
    assert layer.backend == "c"


def test_a_small_layer_takes_few_steps_by_torch_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(torch_recurrence, "faster", lambda *_: True)
    monkeypatch.setattr(torch_recurrence, "_chosen", {})
    layer, x = nn.GRU(4, 5), torch.randn(65, 9, 4)
    whole = layer(x)[0]
    assert layer.backend == "c"
    first, state = layer(x[:64])
    assert layer.backend == "torch"
    torch.testing.assert_close(torch.cat([first, layer(x[64:], state)[0]]), whole)
    monkeypatch.setattr(torch_recurrence, "MOST_PRODUCTS", 2 * 9 * (15 * (4 + 5) + 2 * 15))
    assert [layer(x[:steps]) and layer.backend for steps in (2, 3)] == ["torch", "c"]


@pytest.mark.usefixtures("torch_is_faster")
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu", "bias": False}), ("GRUCell", {}), ("LSTMCell", {})],
    ids=str,
)
def test_torchs_cells_compute_the_same(name, options, batched):
    class Heir(getattr(nn, name)):
        """Whose name says nothing."""

    torch.manual_seed(0)  # of second derivatives float32 keeps few digits, now and then too few
    layer, theirs = Heir(4, 5, **options), getattr(torch.nn, name)(4, 5, **options)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(*([12] if batched else []), 4, requires_grad=True)
    weights, found = [x, *layer.parameters()], []
    for backend in ("auto", "c"):
        with pellucid.backend(backend):
            new = layer(x, layer(x))
            assert layer.backend == ("torch" if backend == "auto" else "c")
            state = new if name == "LSTMCell" else (new,)
            loss = sum((s.square() * (i + 1)).sum() for i, s in enumerate(state))
            first = torch.autograd.grad(loss, weights, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), weights)
            with torch.no_grad():
                silent = layer(x)
            found.append([new, first, second, silent])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][0], theirs(x, theirs(x)))
    said = (r"\(batch 24, features 5\)", r"\(batch 12, features 5\)") if batched else (r"\(2, 5\)", r"\(features 5\)")
    with pytest.raises(RuntimeError, match=rf"the state h is {said[0]}, expected {said[1]}\.$"):
        layer(x, layer(x.detach().repeat(2, 1)))
    with pytest.raises(RuntimeError, match=r"the state h is of torch\.float64"):
        layer(x, tuple(s.double() for s in state) if name == "LSTMCell" else state[0].double())
    layer.double()
    with pytest.raises(RuntimeError, match=r"the input is of torch\.float32, the parameters are of torch\.float64"):
        layer(x)


def test_which_operator_is_faster_is_measured(monkeypatch):
    """On the first steps, with the gradients that the call has, and once."""
    asked = []
    monkeypatch.setattr(torch_recurrence, "faster", lambda *given: asked.append(given) or False)
    monkeypatch.setattr(torch_recurrence, "_chosen", {})
    layer = nn.GRU(130, 120)
    for steps in (100, 100, 5):
        layer(torch.randn(steps, 1, 130))
    assert layer.backend == "c"
    assert [given[0].split("[")[1] for given in asked] == ["64, 1, 256] 4 gradients", "8, 1, 256] 4 gradients"]
    for compute in asked[0][2:4]:
        assert compute().shape == (64, 1, 120)
