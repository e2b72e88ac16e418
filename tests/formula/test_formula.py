"""What is derived from a formula before anything runs: symbols, shapes with their reasons, schedule, errors."""

from __future__ import annotations

import linecache
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

import formulas
import pellucid
from pellucid.formula.capture import DependsOnRows, capture
from pellucid.formula.einsum import einsum, parse
from pellucid.formula.program import Abstract
from pellucid.formula.shapes import solve
from pellucid.formula.source import read
from pellucid.kernel import registry
from pellucid.nn import cells


def shapes(cell, **sizes):
    layer = cell(sizes.pop("input"), sizes.pop("hidden"), **sizes)
    return {name: s.shape for name, s in layer.solution().symbols.items() if name in layer.symbol_values()}


def test_the_articles_example():
    layer = cells.rnn(256, 128)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
        "U_l0": (256, 128),
        "W_l0": (128, 128),
        "b_l0": (128,),
    }
    assert sum(p.numel() for p in layer.parameters()) == 49_280
    assert sum(p.numel() for p in pellucid.nn.RNN(256, 128).parameters()) == 49_408


@pytest.mark.parametrize(
    ("cell", "sizes", "expected"),
    [
        (formulas.low_rank, {"rank": 2}, {"U": (3, 4), "M": (4, 2), "N": (2, 4), "b": (4,)}),
        (formulas.signed, {}, {"U": (3, 4), "W": (4, 4), "sign": (4,)}),
        (formulas.read_out, {"classes": 5}, {"U": (3, 4), "W": (4, 4), "V": (4, 5), "d": (5,)}),
        (formulas.noisy, {}, {"U": (3, 8), "W": (4, 8), "b": (8,)}),
        (formulas.concatenated, {}, {"W": (7, 8), "b": (8,)}),
        (formulas.indexed, {}, {"U": (3, 4), "W": (4, 4), "V": (4, 4), "g": (4,)}),
        (formulas.counter, {}, {"U": (3, 4), "a": (4, 4)}),
        (cells.lstm, {}, {"U": (3, 16), "W": (4, 16), "b": (16,)}),
        (cells.gru, {}, {"U": (3, 12), "W": (4, 12), "b": (12,), "c": (12,)}),
        (cells.lstm_projected, {"proj": 2}, {"U": (3, 16), "W": (2, 16), "P": (4, 2), "b": (16,)}),
        (cells.indrnn, {}, {"U": (3, 4), "w": (4,), "b": (4,)}),
        (cells.lstm_coupled, {}, {"U": (3, 12), "W": (4, 12), "b": (12,)}),
    ],
    ids=lambda value: value.source.name if isinstance(value, pellucid.Cell) else "",
)
def test_shapes_are_solved(cell, sizes, expected):
    assert shapes(cell, input=3, hidden=4, **sizes) == expected


@pytest.mark.parametrize(
    ("turn", "shape"),
    [
        (lambda U: U.permute(0, 1), (3, 4)),
        (lambda U: U.permute((1, 0)), (4, 3)),
        (lambda U: U.permute(dims=(-1, 0)), (4, 3)),
        (lambda U: U.transpose(1, 1), (3, 4)),
        (lambda U: U.transpose(dim0=-1, dim1=-2), (4, 3)),
        (lambda U: U.mT, (4, 3)),
    ],
)
def test_a_matrix_is_turned_as_it_is_asked(turn, shape):
    @pellucid.cell
    def turned(x, h, *, U, W):
        return torch.tanh(x @ turn(U) + h @ W)

    layer = turned(3, 4)
    assert layer.solution().symbols["U"].shape == shape
    assert layer(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_reasons_lead_from_the_symbol_to_a_known_size():
    solved = cells.lstm(256, 128).solution().symbols
    rows, columns = solved["U"].reasons
    assert [(r.kind, r.facts["expression"]) for r in rows] == [("product", "x @ U")]
    assert rows[0].facts["left"] == "1×256"
    assert [r.kind for r in columns][:2] == ["agree", "split"]
    assert columns[0].facts["expression"] == "x @ U + h @ W"
    assert solved["U"].dims == ("input", "4*hidden")
    assert [r.kind for r in solved["x"].reasons[1]] == ["given"]
    assert formulas.low_rank(3, 4, rank=2).solution().symbols["M"].reasons[0][0].kind == "annotated"


@pytest.mark.parametrize(
    ("function", "sizes", "words", "marked"), formulas.BROKEN, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_broken_formula_is_told_where(function, sizes, words, marked):
    with pytest.raises(pellucid.FormulaError) as caught:
        pellucid.cell(function)(3, 4, **sizes)
    message = str(caught.value)
    for word in (function.__name__, "formulas.py", *words):
        assert word in message
    *_, line, carets = message.splitlines()
    assert line[carets.index("^") : carets.rindex("^") + 1] == marked


def test_rows_that_are_mixed_without_losing_them_are_found_by_running():
    layer = pellucid.cell(formulas.sorts_batch)(3, 4)
    with pytest.raises(pellucid.FormulaError, match="other samples of the batch"):
        layer(torch.randn(5, 2, 3))


def test_a_state_of_another_kind_is_found_by_running():
    layer = pellucid.cell(formulas.spiking)(3, 4)
    with pytest.raises(pellucid.FormulaError, match=r"the new h is of torch.bool.*\.to\(h.dtype\)"):
        layer(torch.randn(5, 2, 3))


@pytest.mark.parametrize("given", [3, torch.tanh, torch.nn.GRUCell], ids=["a number", "in C", "a class"])
def test_what_is_no_function_in_python(given):
    for make in (pellucid.cell, pellucid.layer):
        with pytest.raises(TypeError, match="takes a function that is written in Python"):
            make(given)


def no_state(x, *, U):
    return x @ U


def parameter_in_front(x, h, U=pellucid.zeros):
    return x @ U + h


def star(x, h, *weights):
    return x + h


def bad_default(x, h, *, U=[1.0]):  # noqa: B006
    return x @ U + h


@pytest.mark.parametrize(
    ("function", "word"),
    [(no_state, "state entry"), (parameter_in_front, "behind the *"), (star, "names"), (bad_default, "initialiser")],
)
def test_a_signature_outside_the_contract_is_refused(function, word):
    with pytest.raises(pellucid.FormulaError, match=word.replace("*", r"\*")):
        pellucid.cell(function)


def test_constructor_arguments_are_checked():
    with pytest.raises(TypeError, match=r"unexpected argument 'taw'.*bidirectional.*tau"):
        formulas.leaky(3, 4, taw=2.0)
    with pytest.raises(pellucid.FormulaError, match="rank"):
        formulas.low_rank(3, 4)
    with pytest.raises(pellucid.FormulaError, match="hyperparameter tau is a number"):
        formulas.leaky(3, 4, tau=torch.ones(4))
    with pytest.raises(TypeError, match="input_size is a whole number"):
        formulas.leaky(3.0, 4)
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        formulas.leaky(3, 0)
    with pytest.raises(ValueError, match="dropout is a probability"):
        formulas.leaky(3, 4, dropout=2)


def program(cell, training=True, **sizes):
    layer = cell(3, 4, **sizes)
    return registry.program(layer._keys[0], training, torch.float32, "cpu")


def products(stage):
    return sum(node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) for node in stage.graph.nodes)


@pytest.mark.parametrize("cell", [cells.rnn, cells.lstm, cells.gru, formulas.leaky, formulas.normalized])
def test_the_loop_holds_one_product_each_way(cell):
    built = program(cell)
    assert (products(built.per_input), products(built.step)) == (1, 1)  # x @ U once for all steps, h @ W at each
    assert (products(built.before), products(built.back_step)) == (0, 1)  # the state's gradient @ Wᵀ
    assert products(built.after) == 3  # of U, W and the input, each once for all steps


def test_what_depends_on_parameters_alone_is_done_once():
    built = program(formulas.signed)
    assert [n.target for n in built.once.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.abs.default,
        torch.ops.aten.mul.Tensor,
    ]
    assert torch.ops.aten.abs.default not in {n.target for n in built.step.graph.nodes}


def test_a_bias_is_added_before_the_loop():
    adds = [n for n in program(cells.rnn).step.graph.nodes if n.target is torch.ops.aten.add.Tensor]
    assert len(adds) == 1


def captured(function):
    return capture(function, lambda rows: [torch.ones(rows, 3)], {})


def test_the_number_of_rows_stays_open_in_a_captured_graph():
    constant = torch.arange(3.0)
    graph, constants = captured(lambda x: (torch.cat([x, x.new_zeros(2 * x.shape[0], 3) + constant]), x[:0] + 11))
    assert [value is constant for value in constants.values()] == [True]
    both, none = next(n for n in graph.nodes if n.op == "output").args[0]
    assert both.meta["val"] == Abstract((3, 3), torch.float32, True)  # three rows for each one, of three features
    assert none.meta["val"].shape == (0, 3)
    assert [n.args[1] for n in graph.nodes if n.target is operator.mul] == [2]


def test_a_change_in_place_is_captured_as_a_new_value_unless_others_see_it():
    def alone(x):
        y = x + 1
        return (y.mul_(2) + y,)

    def shared(x):
        y = x + 1
        return (y, y.view(-1).mul_(2))

    graph, _ = captured(alone)
    assert not any(n.target._schema.is_mutable for n in graph.nodes if n.op == "call_function")
    assert fx.GraphModule(torch.nn.Module(), graph)(torch.ones(2, 3))[0].eq(8).all()
    graph, _ = captured(shared)
    assert torch.ops.aten.mul_.Tensor in {n.target for n in graph.nodes}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: (x * (22.0 / x.shape[0]),), r"takes 2\.0 for 11 samples, 1\.2+\d* for 18"),
        (lambda x: (x + 1 if x.shape[0] > 12 else x,), "other operations"),
        (lambda x: (x + 1 if x.shape[0] > 12 else x - 1,), "aten.sub.Tensor or aten.add.Tensor"),
        (lambda x: (x[1:],), r"shape \(10, 3\) for 11 samples, \(17, 3\) for 18"),
        (lambda x: (x + torch.full((3,), 1.0).mul(torch.tensor([1.0 / x.shape[0]] * 3)),), "tensor made of"),
    ],
)
def test_what_depends_on_the_number_of_rows_is_refused(function, words):
    with pytest.raises(DependsOnRows, match=words):
        captured(function)


def test_a_number_is_known_only_of_what_comes_from_outside():
    scale = torch.tensor([1.0, 2.0])
    graph, _ = captured(lambda x: (x * (3 * scale).sum().item(),))
    assert [n.args[1] for n in graph.nodes if n.target is torch.ops.aten.mul.Tensor] == [9.0]
    with pytest.raises(RuntimeError, match=r"asks for a number.*torch\.where"):
        captured(lambda x: (x * (x * scale[0]).sum().item(),))


def assert_einsum(equation, *terms):
    operands = [torch.randn([2 + "bijk".index(axis) for axis in term], dtype=torch.float64) for term in terms]
    torch.testing.assert_close(einsum(equation, *operands), torch.einsum(equation, *operands))


axes = st.permutations("bijk").flatmap(lambda order: st.integers(0, 3).map(lambda count: order[:count]))


@settings(max_examples=200)
@given(terms=st.lists(axes, min_size=1, max_size=4), result=st.none() | axes)
def test_einsum_is_that_of_torch(terms, result):
    known = {letter for term in terms for letter in term}
    equation = ",".join("".join(term) for term in terms)
    if result is not None:
        equation += "->" + "".join(letter for letter in result if letter in known)
    assert_einsum(equation, *terms)


@pytest.mark.parametrize(
    ("equation", "terms"),
    [
        ("...i,ij->...j", ["bi", "ij"]),
        ("...i,ij", ["bki", "ij"]),
        ("...,...", ["bi", "i"]),
        ("b...,b->b...", ["bik", "b"]),
        ("i...->...", ["ib"]),
        ("Bi , iJ -> B J", ["bi", "ij"]),
        ("ii->i", ["kk"]),
    ],
)
def test_einsum_takes_ellipses_blanks_and_diagonals(equation, terms):
    assert_einsum(equation, *terms)


@pytest.mark.parametrize(
    ("equation", "axes"),
    [
        ("bi,ij", [2]),
        ("bi,ij->bk", [2, 2]),
        ("bii->b", [3]),
        ("bi->b", [3]),
        ("b1->b", [2]),
        ([0, 1], [2]),
        ("b...i", [1]),
    ],
)
def test_an_einsum_that_is_torchs_own_affair(equation, axes):
    assert parse(equation, axes) is None


def test_source_keeps_names_lines_and_place():
    source = read(formulas.leaky.function)
    assert [s.name for s in source.symbols] == ["x", "h", "U", "W", "b", "tau"]
    assert [s.role for s in source.symbols] == ["input", "state", *["parameter"] * 3, "hyperparameter"]
    assert source.body == ["return h + (torch.tanh(x @ U + h @ W + b) - h) / tau"]
    assert source.where.startswith(formulas.__file__)


def test_a_formula_without_source_works_and_says_less():
    space = {}
    exec("import torch\ndef typed(x, h, *, U, W):\n    return torch.tanh(x @ U + h @ W)", space)
    layer = pellucid.cell(space["typed"])(3, 4)
    assert layer(torch.randn(2, 1, 3))[0].shape == (2, 1, 4)
    exec("def wrong(x, h, *, U, W):\n    return x @ W + h @ W", space)
    with pytest.raises(pellucid.FormulaError, match="does not fit"):
        pellucid.cell(space["wrong"])(3, 4)


def test_the_text_of_others_is_not_taken_for_the_formula(monkeypatch):
    """What `exec` makes is of "<string>", which since Python 3.13 is the text of ``python -c`` too."""
    monkeypatch.setitem(linecache.cache, "<string>", (9, None, ["import sys\n"], "<string>"))
    space = {"torch": torch}
    exec("def halves(x, h, *, U, W):\n    a, b = (x @ U + h @ W).chunk(2, -1)\n    return torch.tanh(a) * b", space)
    cell = pellucid.cell(space["halves"])
    assert (cell.source.text, cell.source.first_line) == ("", 1)
    layer = cell(3, 4)
    assert layer(torch.randn(2, 1, 3))[0].shape == (2, 1, 4)
    assert pellucid.explain(layer, torch.randn(2, 3)).check.agrees


def test_sizes_that_only_agree_by_value_are_checked_by_value():
    def highway(x, h, *, W):
        return x + torch.tanh(h @ W)

    cell = pellucid.cell(highway)
    assert cell(4, 4).solution().symbols["W"].shape == (4, 4)
    with pytest.raises(pellucid.FormulaError, match="state h is 1×4, but what is returned for it is 1×3"):
        cell(3, 4)


def test_the_same_name_defined_twice_is_two_cells():
    def make(scale):
        @pellucid.cell
        def scaled(x, h, *, U):
            return torch.tanh(scale * (x @ U)) + 0 * h

        return scaled

    first, second = make(1.0)(2, 2), make(3.0)(2, 2)
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 1, 2)
    assert not torch.allclose(first(x)[0], second(x)[0])


def test_a_trained_tensor_from_outside_is_refused():
    outside = torch.nn.Linear(3, 4)

    def borrowed(x, h, *, W):
        return torch.tanh(x @ outside.weight.t() + h @ W)

    with pytest.raises(pellucid.FormulaError, match=r"requires a gradient, shape \(4, 3\)"):
        pellucid.cell(borrowed)(3, 4)(torch.randn(2, 1, 3))


def test_solve_is_pure():
    source = read(formulas.leaky.function)
    sizes = {"input": 3, "hidden": 4}
    assert solve(source, sizes, {"tau": 1.0}) == solve(source, sizes, {"tau": 1.0})


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_formula_is_traced_while_torch_looks_for_nan():
    """Fresh ones: what has been traced before is not traced again."""

    @pellucid.cell
    def fresh(x, h, *, U, W):
        return torch.tanh(x @ U + h @ W) * 0.75

    @pellucid.layer
    def beside(x, *, gamma=pellucid.ones):
        return torch.tanh(x) * gamma * 0.75

    for layer in (fresh(3, 4), beside(3)):
        with torch.autograd.detect_anomaly():
            output = layer(torch.ones(5, 2, 3, requires_grad=True))
            (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
            assert torch.is_anomaly_enabled()


def test_a_lambda_may_stand_anywhere():
    """In the head of a loop, which is no statement by itself; beside a function that is another one."""
    for function in [lambda x: 2 * x]:
        assert pellucid.layer(function)(3)(torch.ones(1, 3)).tolist() == [[2, 2, 2]]

    def followed(function=lambda x: 3 * x):
        return pellucid.layer(function)(3)(torch.ones(1, 3)).tolist()

    assert followed() == [[3, 3, 3]]


def test_a_text_may_be_indented_less_than_its_function():
    @pellucid.cell
    def told(x, h, *, U, W):
        kept = """a text
of another indentation"""
        return torch.tanh(x @ U + h @ W) if kept else h

    assert told.source.body[-1] == "return torch.tanh(x @ U + h @ W) if kept else h"
    assert told(3, 4)(torch.ones(2, 1, 3))[0].shape == (2, 1, 4)
