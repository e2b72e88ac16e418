"""The step of a cell and its gradient as one torch.fx graph, with the rows of the batch left open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from pellucid.errors import FormulaError
from pellucid.formula import draws
from pellucid.formula.shapes import Solution, split_result
from pellucid.formula.source import Source

Result = TypeVar("Result")
ROWS_HINT = 37  # what the tracer takes for the open number of rows


@dataclass(frozen=True)
class Joint:
    """Forward and backward of one step.

    The graph's placeholders are, in this order: input, states, parameters, draws, the gradient of the output and the
    gradients of the new states. Its results are: output, new states, and the gradients of input, states and
    parameters. Rows × features everywhere; the number of rows is symbolic, features are numbers.
    """

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    inputs: int
    states: int
    parameters: int
    sites: tuple[tuple[int, str | None], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many placeholders there are of each kind, in their order."""
        return (self.inputs, self.states, self.parameters, len(self.sites), 1, self.states)


class Given:
    """A provider of draws that hands out a list, in the order of the sites."""

    def __init__(self, values: Sequence[torch.Tensor], training: bool) -> None:
        self.training = training
        self._values = iter(values)

    def draw(self, like: torch.Tensor, shared: str | None) -> torch.Tensor:
        """Return the next numbers."""
        return next(self._values).expand_as(like)


def step(source: Source, hyperparameters: Mapping[str, Any], training: bool, values: Sequence[torch.Tensor]) -> Any:
    """Run the author's function on input, states, parameters and draws, in this order; return (output, states)."""
    first = len(source.inputs) + len(source.states)
    last = first + len(source.parameters)
    keywords = dict(zip((p.name for p in source.parameters), values[first:last], strict=True))
    with draws.provided_by(Given(values[last:], training)):
        result = source.function(*values[:first], **keywords, **hyperparameters)
    return split_result(source, result)


def in_plain_torch(function: Callable[[], Result]) -> Result:
    """Call a function as if nothing surrounded the call: in a thread of its own, which has none of the caller's
    transforms, fake tensors, default device, autocast, inference mode or disabled gradients."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
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
    sites = solution.sites if training else ()
    try:
        _check_rows(source, solution, hyperparameters, training, dtype, device)
        module = _trace(source, solution, hyperparameters, training, dtype, device)
    except FormulaError:
        raise
    except Exception as error:
        where = source.caret_at(error.__traceback__)
        raise FormulaError(f"cell {source.name}: {type(error).__name__}: {error}\n{where}") from error
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise FormulaError(
                f"cell {source.name}: {node.target} changes a tensor in place. A formula makes new values: write "
                f"c = c + i * g, not c += i * g.\n  in {source.where}"
            )
    constants = {n.name: getattr(module, str(n.target)) for n in module.graph.nodes if n.op == "get_attr"}
    for constant in constants.values():
        if constant.requires_grad:
            raise FormulaError(
                f"cell {source.name}: it uses a tensor from outside that requires a gradient, shape "
                f"{tuple(constant.shape)}, which would never be trained. Make it a parameter of the formula (a keyword "
                f"argument), or detach it.\n  in {source.where}"
            )
    return Joint(module.graph, constants, 1, len(source.states), len(source.parameters), sites)


def _trace(
    source: Source,
    solution: Solution,
    hyperparameters: Mapping[str, Any],
    training: bool,
    dtype: torch.dtype,
    device: torch.device | str,
) -> fx.GraphModule:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(shape: Sequence[int], rows: bool, dtype: torch.dtype = dtype) -> torch.Tensor:
        kinds = [DimDynamic.DUCK if rows and axis == 0 else DimDynamic.STATIC for axis in range(len(shape))]
        context: StatelessSymbolicContext = StatelessSymbolicContext(dynamic_sizes=kinds)
        real = torch.empty(tuple(shape), dtype=dtype, device="cpu" if device == "meta" else device)
        return mode.from_tensor(real, symbolic_context=context)

    rows = [fake((ROWS_HINT, solution.symbols[s.name].shape[-1]), True) for s in (*source.inputs, *source.states)]
    weights = [fake(solution.symbols[p.name].shape, False) for p in source.parameters]
    noise = [fake((ROWS_HINT, size), True, torch.float32) for size, _ in (solution.sites if training else ())]
    cotangents = [fake((ROWS_HINT, size), True) for size in (solution.output, *solution.state_sizes(source))]
    primals = len(rows) + len(weights)

    def joint(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        drawn = values[primals : primals + len(noise)]

        def forward(*inner: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output, states = step(source, hyperparameters, training, (*inner, *drawn))
            return (output, *states)

        results, vjp, *_ = torch.func.vjp(forward, *values[:primals])
        return (*results, *vjp(tuple(values[primals + len(noise) :])))

    decompositions: Any = dict(core_aten_decompositions())
    decompositions[torch.ops.aten.native_layer_norm_backward.default] = _layer_norm_backward
    with mode:  # new tensors of open size (zeros for a slice's gradient) are fake too
        module = make_fx(torch.func.functionalize(joint), decomposition_table=decompositions)(
            *rows, *weights, *noise, *cotangents
        )
    module.graph.eliminate_dead_code()
    return module


def _layer_norm_backward(
    gradient: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Sequence[bool]
) -> Any:
    """The gradient of the input apart from those of weight and bias: sums over rows, which can leave the loop."""
    if not mask[1] and not mask[2]:
        return NotImplemented  # the operation itself stays
    backward = torch.ops.aten.native_layer_norm_backward.default
    of_x = backward(gradient, x, shape, mean, rstd, weight, bias, [True, False, False])[0] if mask[0] else None
    rows = tuple(range(x.dim() - len(shape)))
    of_weight = (gradient * (x - mean) * rstd).sum(rows) if weight is not None and mask[1] else None
    return of_x, of_weight, gradient.sum(rows) if bias is not None and mask[2] else None


def _check_rows(
    source: Source,
    solution: Solution,
    hyperparameters: Mapping[str, Any],
    training: bool,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Run three rows together and one by one: a cell must not know of the batch."""
    if torch.device(device).type == "meta":
        return  # no values to compare
    generator = torch.Generator().manual_seed(0)
    tolerance = 100 * torch.finfo(dtype).eps

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    rows = [draw(3, solution.symbols[s.name].shape[-1]) for s in (*source.inputs, *source.states)]
    shapes = [solution.symbols[p.name].shape for p in source.parameters]
    weights = [draw(*s) / (s[0] if len(s) > 1 else 1) for s in shapes]  # products of about 1, whatever the size
    noise = [draw(3, size) for size, _ in (solution.sites if training else ())]

    def run(pick: slice) -> list[torch.Tensor]:
        values = [*(r[pick] for r in rows), *weights, *(n[pick] for n in noise)]
        output, states = step(source, hyperparameters, training, values)
        return [output, *states]

    with torch.no_grad():
        together = run(slice(None))
        for row in range(3):
            for all_rows, one in zip(together, run(slice(row, row + 1)), strict=True):
                if not torch.allclose(all_rows[row : row + 1], one, rtol=tolerance, atol=tolerance, equal_nan=True):
                    raise FormulaError(
                        f"cell {source.name}: a sample's result depends on the other samples of the batch. The batch "
                        f"is invisible to a cell: reduce, sort and index over the features (dim=-1) only.\n"
                        f"  in {source.where}"
                    )
