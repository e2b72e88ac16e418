"""A formula and its gradient as one torch.fx graph, the step of a cell or a layer's rows, with their number open."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx
from torch._decomp import _core_aten_decompositions_post_autograd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.errors import FormulaError, Unsupported
from pellucid.formula import draws
from pellucid.formula.capture import Decompositions, DependsOnRows, call_by_variables, capture, out_of_sight
from pellucid.formula.einsum import RowsFirst
from pellucid.formula.rewrite import is_returning, returning
from pellucid.formula.shapes import Solution, caret_at_return, split_result
from pellucid.formula.source import Source

aten = torch.ops.aten
Result = TypeVar("Result")
ROWS = 3  # by which a formula is asked whether it knows of the batch


@dataclass(frozen=True)
class Joint:
    """Forward and backward of one step.

    The graph's placeholders are, in this order: the inputs side by side, states, parameters, draws, the gradient of the
    output and the gradients of the new states. Its results are: output, new states, and the gradients of the inputs,
    states and parameters. Rows × features everywhere; the number of rows is symbolic, features are numbers.

    ``trained`` says of every parameter whether it has a gradient: not where the formula detaches it.
    ``own_gradient`` says that the gradient is not the one of forward's operations: the formula computes something under
    torch.no_grad, or by a torch.autograd.Function.
    """

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    states: int
    parameters: int
    sites: tuple[tuple[int, str | None], ...]
    own_gradient: bool
    trained: tuple[bool, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many placeholders there are of each kind, in their order."""
        return (1, self.states, self.parameters, len(self.sites), 1, self.states)


class Given:
    """A provider of draws that hands out a list, in the order of the sites."""

    def __init__(self, values: Sequence[torch.Tensor], training: bool) -> None:
        self.training = training
        self._values = iter(values)

    def draw(self, like: torch.Tensor, shared: str | None) -> torch.Tensor:
        """Return the next numbers."""
        return next(self._values).expand_as(like)


def step(source: Source, hyperparameters: Mapping[str, Any], training: bool, values: Sequence[torch.Tensor]) -> Any:
    """Run the author's function on inputs, states, parameters and draws, in this order; return (output, states)."""
    last = len(source.inputs) + len(source.states) + len(source.parameters)
    first = len(source.inputs) + len(source.states)
    keywords = dict(zip((p.name for p in source.parameters), values[first:last], strict=True))
    with draws.provided_by(Given(values[last:], training)):
        return split_result(source, source.function(*values[:first], **keywords, **hyperparameters))


def apart(x: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
    """Cut what stands side by side into the inputs of the formula."""
    return x.split(list(sizes), -1) if len(sizes) > 1 else [x]


def output_size(source: Source, solution: Solution, hyperparameters: Mapping[str, Any]) -> int:
    """Run one step on zeros and return the columns of its output."""
    rows = [torch.zeros(2, solution.symbols[s.name].shape[-1]) for s in (*source.inputs, *source.states)]
    weights = [torch.zeros(solution.symbols[p.name].shape) for p in source.parameters]
    return step(source, hyperparameters, False, [*rows, *weights])[0].shape[-1]


def in_plain_torch(function: Callable[[], Result]) -> Result:
    """Call a function as if nothing surrounded the call: in a thread of its own, which has none of the caller's
    transforms, fake tensors, default device, autocast, inference mode or disabled gradients; nor does torch look for
    NaN, which a user may have asked for in all threads, in gradients that have no numbers."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.autograd.set_detect_anomaly(False):
                outcome.append(function())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=work, name="pellucid-trace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def trace(
    source: Source,
    solution: Solution,
    hyperparameters: Mapping[str, Any],
    training: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Joint:
    """Trace one step and the product of its Jacobian with gradients; to be called `in_plain_torch`.

    Raises:
        FormulaError: torch cannot trace the formula, or it mixes the rows of the batch.
    """
    tracing = _Tracing(source, solution, hyperparameters, training, dtype, torch.device(device))
    with _told(source):
        tracing.check_rows()
        graph, constants, own_gradient, trained = tracing.joint()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise FormulaError(
                f"{source.title}: {node.target} changes a tensor in place. A formula makes new values: write "
                f"c = c + i * g, not c += i * g.\n  in {source.where}"
            )
    for constant in constants.values():
        if constant.requires_grad:
            raise FormulaError(
                f"{source.title}: it uses a tensor from outside that requires a gradient, shape "
                f"{tuple(constant.shape)}, which would never be trained. Make it a parameter of the formula (a keyword "
                f"argument), or detach it.\n  in {source.where}"
            )
    return Joint(graph, constants, len(source.states), len(source.parameters), tracing.sites, own_gradient, trained)


def trace_forward(
    source: Source, solution: Solution, hyperparameters: Mapping[str, Any], training: bool, dtype: torch.dtype
) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """Trace the result of a formula without a state, of its inputs one by one, parameters and draws; to be called
    `in_plain_torch`.

    Raises:
        FormulaError: torch cannot trace the formula.
        Unsupported: its gradient cannot be derived from the graph.
    """
    tracing = _Tracing(source, solution, hyperparameters, training, dtype, torch.device("cpu"))
    with _told(source):
        return tracing.forward()


def check_rows(source: Source, solution: Solution, hyperparameters: Mapping[str, Any]) -> None:
    """Run a formula on rows together and one by one, in training; to be called `in_plain_torch`.

    Raises:
        FormulaError: the formula cannot be run, or a row's result depends on other rows.
    """
    with _told(source):
        _Tracing(source, solution, hyperparameters, True, torch.float32, torch.device("cpu")).check_rows()


@contextlib.contextmanager
def _told(source: Source) -> Iterator[None]:
    """Let whatever is wrong with a formula be a FormulaError."""
    try:
        yield
    except (FormulaError, Unsupported):
        raise
    except DependsOnRows as error:
        raise FormulaError(
            f"{source.title}: what it computes depends on the number of samples in the batch: {error}. The batch "
            f"is invisible to a {source.kind}: take sizes of the features (shape[-1]) only.\n  in {source.where}"
        ) from error
    except Exception as error:
        where = source.caret_at(error.__traceback__)
        raise FormulaError(f"{source.title}: {type(error).__name__}: {error}\n{where}") from error


@dataclass(frozen=True)
class _Tracing:
    source: Source
    solution: Solution
    hyperparameters: Mapping[str, Any]
    training: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def sites(self) -> tuple[tuple[int, str | None], ...]:
        """The random draws that take place."""
        return self.solution.sites if self.training else ()

    @property
    def row_sizes(self) -> list[int]:
        """The features of the inputs together and of every state entry."""
        return [sum(self.solution.input_sizes(self.source)), *self.solution.state_sizes(self.source)]

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """The shape of every parameter."""
        return [self.solution.symbols[p.name].shape for p in self.source.parameters]

    def run(self, values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the author's function once; return output and new states."""
        inputs = apart(values[0], self.solution.input_sizes(self.source))
        with RowsFirst():
            output, states = step(self.named, self.hyperparameters, self.training, [*inputs, *values[1:]])
        for symbol, state in zip(self.source.states, states, strict=True):
            if isinstance(state, torch.Tensor) and not state.is_floating_point():
                raise FormulaError(
                    f"{self.source.title}: the new {symbol.name} is of {state.dtype}, but a state is kept in the type "
                    f"of the input. Convert it, as in (h > 0).to(h.dtype).\n{caret_at_return(self.source)}"
                )
        return (output, *states)

    @functools.cached_property
    def named(self) -> Source:
        """The formula; what it computes is called by its variables while it is captured."""

        def call(result: Any, values: Mapping[str, Any]) -> Any:
            call_by_variables(self.source, values)
            return result

        whole = self.source.tree is not None and not is_returning(self.source)
        return returning(self.source, call) if whole else self.source

    def values(self, rows: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Draw input and states, parameters and draws, always the same, for so many rows."""
        generator = torch.Generator().manual_seed(0)
        device = "cpu" if self.device.type == "meta" else self.device

        def draw(*shape: int, dtype: torch.dtype = self.dtype) -> torch.Tensor:
            drawn = torch.promote_types(dtype, torch.float32)
            return torch.rand(shape, generator=generator, dtype=drawn).to(device, dtype)

        weights = [draw(*shape) for shape in self.weight_shapes]
        weights = [w.div_(len(w)) if w.dim() > 1 else w for w in weights]  # for products of about 1
        given = [draw(rows, size) for size in self.row_sizes]
        return given, weights, [draw(rows, size, dtype=torch.float32) for size, _ in self.sites]

    def joint(self) -> tuple[fx.Graph, dict[str, torch.Tensor], bool, tuple[bool, ...]]:
        """Trace the step together with the product of its Jacobian; say what are `Joint.own_gradient` and `trained`."""
        results = (self.solution.output, *self.solution.state_sizes(self.source))
        primals, sites = len(self.row_sizes) + len(self.weight_shapes), len(self.sites)
        own: list[bool] = []
        trained: list[bool] = []

        def joint(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outcome = self.run(values[: primals + sites])
            own.append(out_of_sight())
            of = values[:primals]
            graded = Graded.apply(*outcome, *values[primals + sites :])
            found = torch.autograd.grad(graded, of, allow_unused=True) if graded.requires_grad else [None] * primals
            trained[:] = [g is not None for g in found[len(self.row_sizes) :]]
            return (*outcome, *(torch.zeros_like(v) if g is None else g for v, g in zip(of, found, strict=True)))

        def arguments(rows: int) -> list[torch.Tensor]:
            given, weights, noise = self.values(rows)
            primal = [value.requires_grad_() for value in (*given, *weights)]
            return [*primal, *noise, *(torch.ones(rows, size).to(given[0]) for size in results)]

        graph, constants = capture(joint, arguments, decompositions(), detached=True)
        _detach_in_forward_alone(graph, len(results))
        return graph, constants, any(own), tuple(trained)

    def forward(self) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
        """Trace the result alone, of inputs that stand apart; operations stay whole, for theirs are the gradients."""
        sizes = self.solution.input_sizes(self.source)

        def forward(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with RowsFirst():
                return (step(self.named, self.hyperparameters, self.training, values)[0],)

        def arguments(rows: int) -> list[torch.Tensor]:
            (inputs,), weights, noise = self.values(rows)
            return [value.requires_grad_() for value in (*apart(inputs, sizes), *weights)] + noise

        return capture(forward, arguments, {}, differentiated=True)

    def check_rows(self) -> None:
        """Run three rows, again with other numbers in all but one of them, and each by itself.

        A formula must not know of the batch. One row by itself is compared roughly: torch rounds products of one row
        and of three in different ways, which a norm over nearly equal features makes any size.
        """
        if self.device.type == "meta":
            return  # no values to compare
        rows, weights, noise = self.values(ROWS)

        def given(change: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
            return [*map(change, rows), *weights, *map(change, noise)]

        together = given(lambda values: values)
        changed = [given(functools.partial(_but_for, row)) for row in range(ROWS)]
        alone = [given(functools.partial(_only, row)) for row in range(ROWS)]
        with torch.no_grad():
            with _NoDraws(self.named):
                whole = self.run(together)
            in_company = zip(whole, *map(self.run, changed), strict=True)
            by_itself = zip(whole, *map(self.run, alone), strict=True)
            if not all(self._is_by_rows(*values) for values in in_company) or not all(
                self._is_about(*values) for values in by_itself
            ):
                raise FormulaError(
                    f"{self.source.title}: a sample's result depends on the other samples of the batch. The batch is "
                    f"invisible to a {self.source.kind}: reduce, sort and index over the features (dim=-1) only.\n"
                    + self._meeting(together, changed, alone)
                )

    def _is_by_rows(self, together: torch.Tensor, *changed: torch.Tensor) -> bool:
        """Whether every row of a value, or one without rows, is the same where the other rows are others."""
        tolerance = 100 * torch.finfo(self.dtype).eps
        has_rows = together.dim() and len(together) == ROWS
        return all(
            other.shape == together.shape
            and self._are_close(*((together[row], other[row]) if has_rows else (together, other)), tolerance)
            for row, other in enumerate(changed)
        )

    def _is_about(self, together: torch.Tensor, *alone: torch.Tensor) -> bool:
        """Whether a value of all rows is roughly that of each alone."""
        one = torch.cat(alone) if together.dim() and together.shape != alone[0].shape else torch.stack(alone)
        whole = together if together.shape == one.shape else together.expand_as(one)
        return self._are_close(whole, one, torch.finfo(self.dtype).eps ** (1 / 3))

    def _are_close(self, a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
        return torch.allclose(a.to(self.dtype), b.to(self.dtype), tolerance, tolerance, equal_nan=True)

    def _meeting(
        self,
        together: Sequence[torch.Tensor],
        changed: Sequence[Sequence[torch.Tensor]],
        alone: Sequence[Sequence[torch.Tensor]],
    ) -> str:
        """Quote the author's expression in which rows meet first."""

        def watched(values: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, str]]:
            inputs = apart(values[0], self.solution.input_sizes(self.source))
            with _Watch(self.source) as watch, RowsFirst():
                step(self.source, self.hyperparameters, self.training, [*inputs, *values[1:]])
            return watch.seen

        for (value, place), *runs in zip(watched(together), *map(watched, [*changed, *alone]), strict=False):
            others = [other for other, _ in runs]
            try:
                if not self._is_by_rows(value, *others[:ROWS]) or not self._is_about(value, *others[ROWS:]):
                    return place
            except RuntimeError:  # shapes that are not those of rows
                return place
        return f"  in {self.source.where}"


def _only(row: int, values: torch.Tensor) -> torch.Tensor:
    return values[row : row + 1]


def _but_for(row: int, values: torch.Tensor) -> torch.Tensor:
    """Other numbers between 0 and 1 in all rows but one."""
    changed = 1 - values
    changed[row] = values[row]
    return changed


def ancestors(start: Iterable[Any]) -> set[fx.Node]:
    """The nodes among these, and all that they are computed from."""
    found, todo = set[fx.Node](), [n for n in start if isinstance(n, fx.Node)]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def _detach_in_forward_alone(graph: fx.Graph, results: int) -> None:
    """Let what follows the first results, the gradient, which nothing differentiates, read what was detached itself.

    Forward may be differentiated once more, operation by operation; torch detaches in backward what it has saved.
    """
    output = next(n for n in graph.nodes if n.op == "output")
    forward = ancestors(output.args[0][:results])
    for node in graph.nodes:
        if node.target is aten.detach.default:
            for user in list(node.users):
                if user not in forward and user is not output:
                    user.replace_input_with(node, node.args[0])
    graph.eliminate_dead_code()


class _NoDraws(TorchDispatchMode):
    """Refuses random numbers that a formula draws by itself."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped it would have to be imported."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise FormulaError(
                f"{self.source.title}: this draws random numbers by {func.overloadpacket}, {draws.INSTEAD}.\n"
                + self.source.caret_here()
            )
        return func(*args, **(kwargs or {}))


class _Watch(TorchFunctionMode):
    """Keeps what a formula computes, each with the author's expression that does."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.seen: list[tuple[torch.Tensor, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values = [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        self.seen += [(value.clone(), self.source.caret_here()) for value in values]
        return result


class Graded(torch.autograd.Function):
    """A number whose gradient is the one given for each result; torch.autograd.grad(results, ..., gradients) would
    import sympy."""

    @staticmethod
    def forward(ctx: Any, *values: torch.Tensor) -> torch.Tensor:
        """Take the results, then their gradients."""
        ctx.given = values[len(values) // 2 :]
        return values[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        """Return the gradients that were given."""
        return (*ctx.given, *[None] * len(ctx.given))


@functools.cache
def decompositions() -> Decompositions:
    """torch's own into its core operations; ours where those of every other cell would import sympy, and one more."""
    return {
        **_core_aten_decompositions_post_autograd(),
        aten.native_layer_norm_backward.default: _layer_norm_backward,
        aten.split.Tensor: _split,
        aten.sgn.default: aten.sign.default,
        aten.sigmoid_backward.default: _in_float(lambda g, y: g * (y * (1 - y))),
        aten.tanh_backward.default: _in_float(lambda g, y: g * (1 - y * y)),
        aten.gelu_backward.default: _gelu_backward,
        # torch's own chooses between the whole numbers 1, 0 and −1, which no loop of rows holds.
        aten.log_sigmoid_backward.default: lambda g, x, buffer: g * torch.sigmoid(-x),
    }


def _in_float(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Compute in float32 what is stored shorter."""

    def computed(*values: torch.Tensor) -> torch.Tensor:
        dtype = values[0].dtype
        return function(*(v.float() for v in values)).to(dtype) if dtype.itemsize < 4 else function(*values)

    return computed


def _gelu_backward(gradient: torch.Tensor, x: torch.Tensor, *, approximate: str = "none") -> Any:
    """The slope of the exact one is one operation, as its value is."""
    if approximate == "none":
        return NotImplemented
    return _core_aten_decompositions_post_autograd()[aten.gelu_backward.default](gradient, x, approximate=approximate)


def _split(x: torch.Tensor, size: int, dim: int = 0) -> Any:
    length = x.shape[dim]
    sizes = [min(size, length - start) for start in range(0, length, size)] if size else [0]
    return aten.split_with_sizes(x, sizes, dim)


def _layer_norm_backward(
    gradient: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Sequence[bool]
) -> Any:
    """The gradient of the input apart from those of weight and bias: sums over rows, which can leave the loop."""
    if not mask[1] and not mask[2]:
        return NotImplemented  # the operation itself stays
    backward = aten.native_layer_norm_backward.default
    of_x = backward(gradient, x, shape, mean, rstd, weight, bias, [True, False, False])[0] if mask[0] else None
    rows = tuple(range(x.dim() - len(shape)))
    of_weight = (gradient * (x - mean) * rstd).sum(rows) if weight is not None and mask[1] else None
    return of_x, of_weight, gradient.sum(rows) if bias is not None and mask[2] else None
