"""A program as C text: one loop over time for forward, one for backward.

A thread takes a block of rows (samples) through all steps. A step is cut where something needs whole rows: before a
product the rows of its operand have to be there, before a reduction the columns. Between two such cuts there is one
sweep over the columns, in vector registers. What a later sweep needs is kept in scratch, or computed again where that
is as cheap as reading it.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import math
import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pellucid.kernel.lower import lower
from pellucid.kernel.program import Abstract, Program, Stage
from pellucid.kernel.values import Unsupported, Value

aten = torch.ops.aten
HEADERS = ("vector.h", "math.h", "philox.h", "columns.h", "call.h", "product.h")
STORAGE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.bool: "bool",
}

_FUNCTIONS = (
    "exp expm1 log log1p log2 log10 exp2 tanh sigmoid relu erf erfc sqrt rsqrt reciprocal sin cos tan asin acos atan "
    "sinh cosh asinh acosh atanh floor ceil round trunc sign abs softplus"
)
# How each operation on columns is written.
ARITHMETIC: dict[str, str] = {
    **{name: f"vec_{name}({{0}})" for name in _FUNCTIONS.split()},
    **{name: f"vec_{name}({{0}}, {{1}})" for name in ("maximum", "minimum", "atan2", "hypot", "fmod", "pow")},
    **{"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}"},
    **{"neg": "-{0}", "square": "{0} * {0}", "constant": "{0}", "copysign": "with_sign({0}, {1})"},
    **{"eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}"},
    **{"le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}"},
    **{"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}"},
    **{"where": "choose({0}, {1}, {2})", "from_mask": "from_mask({0})"},
}
CHEAP = set(
    "add sub mul neg square constant eq ne lt le gt ge and or xor not where from_mask relu abs copysign".split()
)
# Beside the loop of backward these take what is saved of a step past a row's end, and a gradient of 0: saved zeros do,
# because all that is made of them is finite.
POLYNOMIAL = {
    *(aten.mm.default, aten.permute.default, aten.sum.dim_IntList, aten.view.default, aten.add.Tensor),
    *(aten.sub.Tensor, aten.mul.Tensor, aten.scalar_tensor.default, aten.full_like.default),
    *(aten.cat.default, operator.getitem, aten.sym_size.int),
}
REDUCTIONS = {
    "sum": ("splat(0)", "add_columns", "sum"),
    "product": ("splat(1)", "multiply_columns", "multiplied"),
    "largest": ("splat(-INFINITY)", "larger_columns", "largest"),
    "smallest": ("splat(INFINITY)", "smaller_columns", "smallest"),
}
AS_CHEAP_AS_READING = 3  # operations
MOST_COLUMNS = 120
PART = "part"  # instead of a distance of rows: all rows are added at one place

Level = tuple[int, int]  # products passed, then reductions since
_Task = tuple[Value, "tuple[str, Any] | None", int]  # stored, or added to a reduction's total; from which column


@dataclass(frozen=True)
class Loop:
    """What a caller of an emitted loop must know."""

    name: str
    matrices: tuple[str, ...]  # packed from any strides
    inputs: tuple[str, ...]  # contiguous; (time · batch, width), or of one row
    states: tuple[str, ...]  # each a buffer of slots (batch, width), and how many slots there are
    state_storage: str
    outputs: Mapping[str, tuple[tuple[int, ...], str]]  # without the new states: axes after time and batch, storage
    totals: Mapping[str, Abstract]  # sums over all rows: (parts, width) of real numbers, added to what is there
    ahead: int  # columns of what is computed for a chunk of steps at once
    output_is_state: int | None  # the state that is the output too; its buffer may be NULL
    operations: int  # multiplications and additions of a row's step, about


@dataclass(frozen=True)
class Text:
    """The C text of a program and the loops in it."""

    text: str
    loops: Mapping[str, Loop]


def emit(program: Program, dtype: torch.dtype, training: bool) -> Text:
    """Write a fused program: the loop "forward", and with ``training`` what it saves and the loop "backward".

    Raises:
        Unsupported: an operation has no C.
    """
    real = "float64" if dtype == torch.float64 else "float32"
    wanted = (program.output, *program.new_states, *(program.saved_steps if training else ()))
    produced = tuple(name for name in dict.fromkeys(wanted) if name in program.step.outputs)
    step, own, new = program.step.only(produced), STORAGE[dtype], program.new_states
    beside = (*program.before.graph.nodes, *program.after.graph.nodes)
    zeros = not training or all(node.target in POLYNOMIAL for node in beside if node.op == "call_function")
    functions = [_Function("forward", program, step, program.states, new, own, real, program.output, zeros)]
    if training:
        states, new = program.state_gradients, program.old_state_gradients
        functions.append(
            _Function("backward", program, program.back_step, states, new, real, real, read=program.after.inputs)
        )
    packs = sorted({f.storage[matrix] for f in functions for matrix in f.loop.matrices})
    title = f"// {program.name}: written by pellucid from the cell's formula.\n"
    body = "\n".join([*(f"DEFINE_PACK({storage})" for storage in packs), "", *(f.text() for f in functions)])
    body = "\n".join(piece for line in body.split("\n") for piece in _broken(line))
    text = title + preamble(real) + "\n" + body
    return Text(text, {function.name: function.loop for function in functions})


def preamble(real: str) -> str:
    """What every kernel begins with, for arithmetic in "float32" or "float64"."""
    defines = f"#define DOUBLE {int(real == 'float64')}\n#include <math.h>\n#include <stdint.h>\n#include <string.h>\n"
    return f"{defines}\n{headers()}"


@functools.cache
def headers() -> str:
    """The headers of every kernel, one text."""
    return "\n".join(header(name) for name in HEADERS)


def header(name: str) -> str:
    """The text of one header."""
    return (importlib.resources.files("pellucid.kernel") / "c" / name).read_text()


@dataclass
class _Scope:
    """A piece of C: lines, and the names of the values at their offsets that stand in it."""

    lines: list[str] = field(default_factory=list)
    names: dict[tuple[Value, int], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    given: dict[str, str] = field(default_factory=dict)  # of a sweep: parameters and their types


@dataclass(frozen=True)
class _Place:
    """Where rows lie: a pointer of the step, how it is made, what it points to, and the distance of rows."""

    pointer: str
    made: str  # empty: the pointer is there for all steps
    storage: str
    stride: str

    @property
    def row(self) -> str:
        """The pointer to one row."""
        return f"{self.pointer}_row"


class _Function:
    """One loop over time.

    With ``zeros``, rows past their end give zeros in every output; without, only in the output of the layer. New states
    are outputs too where they are ``read`` behind the loop.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        stage: Stage,
        states: tuple[str, ...],
        new_states: tuple[str, ...],
        storage: str,
        real: str,
        output: str | None = None,
        zeros: bool = True,
        read: tuple[str, ...] = (),
    ) -> None:
        self.name, self.real, self.state_storage = name, real, storage
        self.zeros, self.output = zeros, output
        self.sites = {d: (i, *site) for i, (d, site) in enumerate(zip(program.draws, program.sites, strict=True))}
        self.lowered = lower(stage, program.draws)
        self.storage = {n: _storage(p.meta["val"].dtype) for n, p in stage.placeholders.items() if n != "rows"}
        results = stage.results
        memory = {n: v for n, v in self.lowered.inputs.items() if v.kind == "memory"}
        totals = {n: v for n, v in self.lowered.outputs.items() if v.kind == "total"}
        outputs = {
            n: v for n, v in self.lowered.outputs.items() if (n not in new_states or n in read) and n not in totals
        }
        self.widths = {s: self.lowered.outputs[n].width for s, n in zip(states, new_states, strict=True)}
        self.loop = Loop(
            name=name,
            matrices=tuple(self.lowered.matrices),
            inputs=tuple(n for n in memory if n not in states),
            states=states,
            state_storage=storage,
            outputs={
                n: (results[n].shape[1:] if results[n].rows else (v.width,), _storage(results[n].dtype))
                for n, v in outputs.items()
            },
            totals={n: results[n] for n in totals},
            ahead=0,
            output_is_state=new_states.index(output) if output in new_states else None,
            operations=sum(2 * depth * width for depth, width in self.lowered.matrices.values())
            + 20 * sum(value.width for value in self.lowered.outputs.values()),
        )
        matrices = (f"{n} matrix" for n in self.loop.matrices)
        written = (f"{n} to" for n in (*outputs, *totals))
        self.buffers = (*self.loop.inputs, *states, *written, "output", *matrices)
        self.identifiers = {_c(n) for n in self.lowered.names}
        self.compared = _compared(self.lowered.outputs.values())
        self.levels: dict[Value, Level] = {}
        self.places: dict[Value, _Place] = {}  # where a value can be read
        self.targets: dict[Value, list[_Place]] = defaultdict(list)  # where it is written
        self.ready: set[Value] = set()  # written already, at this point of the text
        self.pointers: list[_Place] = []
        self.scratch: list[_Place] = []
        self.stores: dict[Level, list[Value]] = defaultdict(list)
        self.reduces: dict[Level, list[Value]] = defaultdict(list)
        self.products: dict[int, list[Value]] = defaultdict(list)
        self.totals: dict[Level, list[Value]] = defaultdict(list)
        self.parts: dict[Value, _Place] = {}  # where the rows of a total are added up
        self.draws: list[Value] = []
        self.ahead: list[tuple[Value, _Place]] = []  # products of inputs, and where a chunk of steps of them lies
        self.sweeps: list[str] = []
        self.now_places = {state: self._slot(state, "now") for state in states}
        self.next_places: dict[str, _Place] = {}
        self.output_places: dict[str, _Place] = {}
        for value in memory.values():
            self.places[value] = self._input(value)
        for state, new_state in zip(states, new_states, strict=True):
            self.next_places[state] = self._slot(state, "next")
            self._keep(self.lowered.outputs[new_state], self.next_places[state])
        for output_name, value in outputs.items():
            self.output_places[output_name] = self._output(output_name, value)
            self._keep(value, self.output_places[output_name])
        for total_name, value in totals.items():
            self.totals[self.level(value)].append(value)
            self.parts[value] = self._place(f"{total_name}_part", "", "real", PART)
        self._plan()
        self.loop = replace(self.loop, ahead=sum(value.width for value, _ in self.ahead))

    # -- places ---------------------------------------------------------------------------------------------------

    def _place(self, pointer: str, made: str, storage: str, stride: str | int) -> _Place:
        pointer = _c(pointer)
        while pointer in self.identifiers or f"{pointer}_row" in self.identifiers:
            pointer += "_"
        self.identifiers |= {pointer, f"{pointer}_row"}
        place = _Place(pointer, made, storage, str(stride))
        self.pointers.append(place)
        return place

    def _buffer(self, name: str) -> str:
        return f"call->buffers[{self.buffers.index(name)}]"

    def _input(self, value: Value) -> _Place:
        if value.name in self.loop.states:
            return self.now_places[value.name]
        storage, buffer = self.storage[value.name], self._buffer(value.name)
        made = f"(const {storage}_storage *){buffer}"
        if not value.rows:
            return self._place(f"{value.name}_all", made, storage, 0)
        return self._place(f"{value.name}_at", f"{made} + at * {value.width}", storage, value.width)

    def _output(self, name: str, value: Value) -> _Place:
        storage = self.loop.outputs[name][1]
        made = f"({storage}_storage *){self._buffer(f'{name} to')} + at * {value.width}"
        return self._place(f"{name}_to", made, storage, value.width)

    def _slot(self, state: str, when: str) -> _Place:
        width, index = self.widths[state], self.loop.states.index(state)
        made = (
            f"({self.state_storage}_storage *){self._buffer(state)} + ({when}_{index} * call->batch + first) * {width}"
        )
        return self._place(f"{state}_{when}", made, self.state_storage, width)

    def _scratch(self, value: Value, storage: str, name: str = "kept") -> _Place:
        alone = value.width == 1 and value.kind != "product"
        place = self._place(f"{value.name}_{name}", "", storage, 1 if alone else f"PADDED({value.width})")
        self.scratch.append(place)
        return place

    def _keep(self, value: Value, place: _Place) -> None:
        """Write a value to a place as soon as it is there."""
        level = self.level(value)
        if value not in self.stores[level]:
            self.stores[level].append(value)
        self.targets[value].append(place)

    # -- the plan: what is computed where, what is kept ----------------------------------------------------------

    def level(self, value: Value) -> Level:
        """How many products, and since the last of them how many reductions, come before a value."""
        if value not in self.levels:
            level = max((self.level(v) for v in value.values), default=(0, 0))
            if value.kind == "product" and not self._of_input(value):
                level = (level[0] + 1, 0)
            elif value.kind == "reduce":
                level = (level[0], level[1] + 1)
            self.levels[value] = level
        return self.levels[value]

    def _of_input(self, product: Value) -> bool:
        """Whether a product's operand is there, as real numbers, for all steps before the loop."""
        operand = product.values[0]
        while operand.kind == "slice":
            operand = operand.values[0]
        memory = operand.kind == "memory" and operand.rows and operand.name in self.loop.inputs
        return memory and self.storage[operand.name] == self.real

    def _plan(self) -> None:
        """From the last level to the first: keep what a later level reads."""
        done: set[Level] = set()
        while todo := {*self.stores, *self.reduces, *self.totals} - done:
            level = max(todo)
            done.add(level)
            for value in self.stores[level]:
                if value.kind in ("product", "reduce", "draws"):
                    self._visit(value, level)
                for operand in value.values if value.kind not in ("product", "reduce") else ():
                    self._visit(operand, level)
            for value in (*self.reduces[level], *self.totals[level]):
                self._visit(value.values[0], level)

    def _visit(self, value: Value, level: Level) -> None:
        """See to it that a value can be had at a level."""
        own = self.level(value)
        if value.kind == "memory" or (value in self.targets and own < level):
            return
        if value.kind == "draws":
            if value not in self.places:
                self.draws.append(value)
                self.places[value] = self._scratch(value, "float32")
        elif value.kind == "product":
            if value not in self.places and self._of_input(value):
                chunk = self._scratch(value, "real", "chunk")
                made = f"{chunk.pointer} + (t - ahead) * rows * {chunk.stride}"
                self.places[value] = self._place(f"{value.name}_kept", made, "real", chunk.stride)
                self.ahead.append((value, chunk))
            elif value not in self.places:
                self.products[own[0]].append(value)
                self.places[value] = self._scratch(value, "real")
                operand = value.values[0]
                if self._in_memory(operand) is None:
                    self._keep(operand, self._scratch(operand, "real"))
        elif value.kind == "reduce":
            before = self.level(value.values[0])
            if value not in self.reduces[before]:
                self.reduces[before].append(value)
            if own[0] < level[0]:
                self._keep(value, self._scratch(value, "real"))
        elif value.kind == "math" and own < level and self._cost(value) > AS_CHEAP_AS_READING:
            self._keep(value, self._scratch(value, "bool" if value.mask else "real"))
        else:
            for operand in value.values:
                self._visit(operand, level)

    def _cost(self, value: Value) -> int:
        """Operations that compute a value from what is in memory; more than any limit where one is dear.

        So is what is compared for being equal: one of two sweeps may round a product before it is added to.
        """
        if value.kind in ("memory", "draws", "product", "reduce") or value in self.targets:
            return 0
        own = 0 if value.kind != "math" else 1 if value.operation in CHEAP and value not in self.compared else 100
        return own + sum(map(self._cost, value.values))

    def _in_memory(self, value: Value, start: int = 0) -> tuple[str, str] | None:
        """The pointer to the first of a block's rows and their distance, if a value lies there as real numbers."""
        known = [self.places[value]] if value in self.places and value.kind != "draws" else []
        for place in (*known, *self.targets.get(value, ())):
            if place.storage in ("real", self.real) and place.stride != "0":
                return place.pointer + (f" + {start}" if start else ""), place.stride
        return self._in_memory(value.values[0], start + value.start) if value.kind == "slice" else None

    # -- the text -------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The C of this loop: its sweeps, the steps of a block of rows, and the entry."""
        body = self._steps()  # writes the sweeps too
        return "\n".join([*self.sweeps, *body, *self._entry()])

    def _steps(self) -> list[str]:
        last = max([*(level[0] for level in (*self.stores, *self.reduces, *self.totals)), *self.products], default=0)
        work = [line for stage in range(last + 1) for line in (*self._products(stage), *self._rows(stage))]
        return [
            f"// All steps of rows first to first + rows - 1, {self.name}.",
            f"static void {self.name}_block(const struct call *call, int64_t first, int64_t rows, char *scratch, "
            "UNUSED struct team *team)",
            "{",
            *_indented(self._scratches()),
            *_indented(self._all_parts()),
            *_indented(self._packed()),
            *_indented(self._fill_draws("time")),
            *(
                ["  int64_t ahead = 0; // the first step of the chunk whose input products are there"]
                if self.ahead
                else []
            ),
            "  for (int64_t step = call->begin; step < call->end; step++) {",
            "    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;",
            *_indented(self._products_ahead(), 2),
            *_indented(self._slots(), 2),
            *_indented((f"UNUSED {self._declared(place)}" for place in self.pointers if place.made), 2),
            *(["    if (any_real(call, first, rows, t)) {"] if self.zeros else ["    {"]),
            *_indented(self._fill_draws(None), 3),
            *_indented(work, 3),
            "    }",
            *_indented(self._finish(), 2),
            *_indented(self._add_parts(), 2),
            "  }",
            "}",
            "",
        ]

    def _declared(self, place: _Place) -> str:
        const = "const " if place in self.places.values() else ""
        return f"{const}{place.storage}_storage *const {place.pointer} = {place.made};"

    def _size(self, place: _Place) -> str:
        """Bytes of scratch."""
        steps = "chunk * " if any(place is chunk for _, chunk in self.ahead) else ""
        return f"ROUNDED({steps}block * {place.stride} * (int64_t)sizeof({place.storage}_storage))"

    def _part_widths(self) -> str:
        """The parts of all totals, and a place for what does not count."""
        widths = [value.width for value in self.parts]
        return " + ".join(f"PADDED({width})" for width in (*widths, max(widths)))

    def _all_parts(self) -> Iterator[str]:
        if not self.parts:
            return
        yield "real *const parts = (real *)scratch;"
        yield f"memset(parts, 0, ({self._part_widths()}) * sizeof(real));"
        place = "parts"
        for value, part in self.parts.items():
            yield f"real *const {part.pointer} = {place};"
            place = f"{part.pointer} + PADDED({value.width})"
        yield f"real *const uncounted = {place};"

    def _add_parts(self) -> Iterator[str]:
        if not self.parts:
            return
        yield "if ((step - call->begin) % PART_STEPS == PART_STEPS - 1 || step + 1 == call->end) {"
        for name in self.loop.totals:
            value = self.lowered.outputs[name]
            total = f"(real *){self._buffer(f'{name} to')} + first / call->block * {value.width}"
            yield f"  add_part({total}, {self.parts[value].pointer}, {value.width});"
        yield "}"

    def _scratches(self) -> Iterator[str]:
        if self.scratch:
            yield "UNUSED const int64_t block = call->block, chunk = call->chunk;"
        for place in self.scratch:
            size = self._size(place)
            yield f"UNUSED {place.storage}_storage *const {place.pointer} = (void *)scratch;"
            yield f"scratch += {size};"

    def _packed(self) -> Iterator[str]:
        place = "call->work"
        for i, (depth, width) in enumerate(self.lowered.matrices.values()):
            yield f"UNUSED const real *const packed_{i} = (const real *)({place});"
            place = f"(const char *)(packed_{i} + {depth} * PADDED({width}))"

    def _slots(self) -> Iterator[str]:
        for i in range(len(self.loop.states)):
            yield f"const int64_t now_{i} = (t + call->backwards) % call->slots[{i}];"
            yield f"const int64_t next_{i} = (t + !call->backwards) % call->slots[{i}];"

    def _fill_draws(self, shared: str | None) -> Iterator[str]:
        for value in self.draws:
            site, width, kind = self.sites[value.name]
            if kind == shared:
                place, row = self.places[value], "first + r" if shared else "call->start * call->batch + at + r"
                yield "for (int64_t r = 0; r < rows; r++)"
                to = f"{place.pointer} + r * {place.stride}"
                yield f"  philox_uniform({to}, {width}, call->seed, {site}, (uint64_t)({row}) * {width});"

    def _products(self, stage: int) -> Iterator[str]:
        for value in self.products.get(stage, ()):
            operand = value.values[0]
            found = self._in_memory(operand)
            assert found is not None
            matrix, depth, width = self._matrix(value)
            to = self.places[value].pointer
            yield f"// {value.name} = {operand.name} @ {value.operation}"
            yield f"product(rows, {depth}, {width}, {found[0]}, {found[1]}, packed_{matrix}, {to}, team);"

    def _products_ahead(self) -> Iterator[str]:
        """Products of the input, for a chunk of steps: a matrix is read once for all of them."""
        if not self.ahead:
            return
        yield "if ((step - call->begin) % call->chunk == 0) {"
        yield "  const int64_t left = call->end - step, steps = left < call->chunk ? left : call->chunk;"
        yield "  ahead = call->backwards ? t - steps + 1 : t;"
        if self.zeros:
            yield "  if (any_real(call, first, rows, ahead)) {"
        for value, chunk in self.ahead:
            matrix, depth, width = self._matrix(value)
            rows, stride = self._input_rows(value)
            yield f"    // {value.name} = {value.values[0].name} @ {value.operation}"
            packed = f"packed_{matrix}, {chunk.pointer}"
            yield f"    products(steps, call->batch, rows, {depth}, {width}, {rows}, {stride}, {packed}, team);"
        if self.zeros:
            yield "  }"
        yield "}"

    def _matrix(self, product: Value) -> tuple[int, int, int]:
        """The number, depth and width of a product's matrix."""
        return list(self.lowered.matrices).index(product.operation), *self.lowered.matrices[product.operation]

    def _input_rows(self, product: Value) -> tuple[str, int]:
        """The pointer to the rows of the input, of which a chunk's product is taken, and their distance."""
        operand, start = product.values[0], 0
        while operand.kind == "slice":
            operand, start = operand.values[0], start + operand.start
        shift = f" + {start}" if start else ""
        buffer = self._buffer(operand.name)
        return f"(const real *){buffer} + (ahead * call->batch + first) * {operand.width}{shift}", operand.width

    def _rows(self, stage: int) -> list[str]:
        """What is done to one row after another between two products."""
        self.row = _Scope(taken=set(self.identifiers))
        self.used: dict[_Place, bool] = {}  # the places of a row, and whether they are only read
        for level in sorted(level for level in {*self.stores, *self.reduces, *self.totals} if level[0] == stage):
            self._level(level)
        if not self.row.lines:
            return []
        real_row = "const int counted = !call->lengths || t < call->lengths[first + r];"
        pointers = [real_row] if any(place.stride == PART for place in self.used) else []
        for place, reading in self.used.items():
            shift = {"0": "", PART: ""}.get(place.stride, f" + r * {place.stride}")
            where = f"counted ? {place.pointer} : uncounted" if place.stride == PART else f"{place.pointer}{shift}"
            pointers.append(f"{'const ' if reading else ''}{place.storage}_storage *const {place.row} = {where};")
        return ["for (int64_t r = 0; r < rows; r++) {", *_indented([*pointers, *self.row.lines]), "}"]

    def _finish(self) -> list[str]:
        """Rows that are past their end keep their state and give zeros; a state may be the output too."""
        lines, shared, width = [], self.loop.output_is_state, 0
        if shared is not None:
            state = self.loop.states[shared]
            width, place = self.widths[state], self.next_places[state]
            lines += [
                f"{self.state_storage}_storage *const output_to = {self._buffer('output')};",
                "if (output_to)",
                f"  memcpy(output_to + at * {width}, {place.pointer}, rows * {width} * sizeof(*output_to));",
            ]
        lines += ["if (call->lengths)", "  for (int64_t r = 0; r < rows; r++) {"]
        lines += ["    if (t < call->lengths[first + r])", "      continue;"]
        for state in self.loop.states:
            now, then = self.now_places[state].pointer, self.next_places[state].pointer
            row = f"r * {self.widths[state]}"
            lines.append(f"    memcpy({then} + {row}, {now} + {row}, {self.widths[state]} * sizeof(*{then}));")
        for name in (n for n in self.loop.outputs if self.zeros or n == self.output):
            columns, to = self.lowered.outputs[name].width, self.output_places[name].pointer
            lines.append(f"    memset({to} + r * {columns}, 0, {columns} * sizeof(*{to}));")
        if shared is not None:
            lines += [
                "    if (output_to)",
                f"      memset(output_to + (at + r) * {width}, 0, {width} * sizeof(*output_to));",
            ]
        return [*lines, "  }"]

    def _entry(self) -> list[str]:
        name, matrices = self.name, self.lowered.matrices
        packed = [f"ROUNDED({depth} * PADDED({width}) * (int64_t)sizeof(real))" for depth, width in matrices.values()]
        scratch = [self._size(place) for place in self.scratch]
        if self.parts:
            scratch.append(f"ROUNDED(({self._part_widths()}) * (int64_t)sizeof(real))")
        packing: list[str] = []
        for i, (matrix, (depth, width)) in enumerate(matrices.items()):
            strides = f"call->strides[{2 * i}], call->strides[{2 * i + 1}]"
            packing += [
                f"if (task < PADDED({width}) / PANEL) {{ // {matrix}",
                f"  pack_{self.storage[matrix]}({self._buffer(f'{matrix} matrix')}, {strides}, {depth}, {width},",
                f"    (real *)packed_{i}, task);",
                "  return;",
                "}",
                f"task -= PADDED({width}) / PANEL;",
            ]
        panels = " + ".join(f"PADDED({width}) / PANEL" for _, width in matrices.values())
        return [
            "// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.",
            f"int64_t {name}_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)",
            "{",
            f"  return {' + '.join(packed) or '0'} + threads * ({' + '.join(scratch) or '0'});",
            "}",
            "",
            *(
                [
                    f"static void {name}_pack(const void *context, int64_t task, UNUSED int64_t worker)",
                    "{",
                    "  const struct call *const call = context;",
                    *_indented([*self._packed(), *packing]),
                    "}",
                    "",
                ]
                if panels
                else []
            ),
            f"static void {name}_task(const void *context, int64_t task, int64_t worker)",
            "{",
            "  const struct call *const call = context;",
            "  const int64_t first = task * call->block, rest = call->batch - first;",
            f"  char *scratch = call->work + {name}_work(call->block, call->chunk, worker);",
            f"  {name}_block(call, first, rest < call->block ? rest : call->block, scratch, 0);",
            "}",
            "",
            f"static void {name}_together(const void *context, struct team *team)",
            "{",
            "  const struct call *const call = context;",
            f"  char *scratch = call->work + {name}_work(call->block, call->chunk, 0);",
            f"  {name}_block(call, 0, call->batch, scratch, team);",
            "}",
            "",
            f"void {name}(const struct call *call)",
            "{",
            *(
                ["  if (call->begin == 0)", f"    share(&call->threads, {name}_pack, call, {panels});"]
                if panels
                else []
            ),
            "  if (call->together)",
            f"    gather(&call->threads, {name}_together, call);",
            "  else",
            f"    share(&call->threads, {name}_task, call, (call->batch + call->block - 1) / call->block);",
            "}",
            "",
        ]

    # -- one level: sweeps over the columns -----------------------------------------------------------------------

    def _level(self, level: Level) -> None:
        stores, reduces = self.stores.get(level, []), self.reduces.get(level, [])
        added = [(value.values[0], ("total", value)) for value in self.totals.get(level, ())]
        totals = {value: self._fresh(self.row, f"{_c(value.name)}_columns") for value in reduces}
        self.row.lines += [f"vec {total} = {REDUCTIONS[value.operation][0]};" for value, total in totals.items()]
        pieces: list[tuple[Value, Any, int, int]] = [
            (value, None, start, length) for value in stores for start, length in self._pieces(value)
        ]
        for operand, reduction in (*((v.values[0], (v.operation, total)) for v, total in totals.items()), *added):
            pieces += [(operand, reduction, start, length) for start, length in self._pieces(operand)]
        groups: dict[int, list[_Task]] = defaultdict(list)
        for value, reduction, start, length in _even(pieces):
            groups[length].append((value, reduction, start))
        for length in sorted(groups, reverse=True):
            if length == 1:
                for task in groups[1]:
                    self._point(*task)
            else:
                self._sweep(length, groups[length])
            left = {value for n in groups if n < length for value, *_ in groups[n]}
            self.ready |= {value for value, reduction, _ in groups[length] if reduction is None} - left
        for value, total in totals.items():
            name = self._fresh(self.row, _c(value.name), own=True)
            self.row.lines.append(f"const vec {name} = splat({REDUCTIONS[value.operation][2]}({total}));")
            self.row.names[(value, 0)] = name

    def _pieces(self, value: Value) -> list[tuple[int, int]]:
        cuts = sorted({0, value.width, *self._cuts(value, 0, value.width)})
        return [(a, b - a) for a, b in itertools.pairwise(cuts)]

    def _cuts(self, value: Value, start: int, stop: int) -> set[int]:
        """Columns of a value between start and stop where another part of a concatenation begins."""
        if value.width == 1 or value in self.ready or value.kind in ("memory", "draws", "product", "reduce", "spread"):
            return set()
        if value.kind == "slice":
            inner = self._cuts(value.values[0], start + value.start, stop + value.start)
            return {cut - value.start for cut in inner}
        if value.kind == "cat":
            cuts, place = set(), 0
            for part in value.values:
                begin, end = max(start, place), min(stop, place + part.width)
                if begin < end:
                    cuts |= {begin, end} | {c + place for c in self._cuts(part, begin - place, end - place)}
                place += part.width
            return {cut for cut in cuts if start < cut < stop}
        return set().union(*(self._cuts(v, start, stop) for v in value.values))

    def _sweep(self, length: int, tasks: Sequence[_Task]) -> None:
        scope = _Scope(taken={*self.identifiers, "j", "n"})
        for value, reduction, start in tasks:
            result = self._evaluate(value, start, scope)
            if reduction is not None and reduction[0] == "total":
                place = self.parts[reduction[1]]
                self._use(place, scope)
                at = f"{place.row}{f' + {start}' if start else ''} + j"
                scope.lines.append(f"put_real({at}, take_real({at}, n) + {result}, n);")
                continue
            if reduction is not None:
                operation, total = reduction
                scope.given[total] = "vec *"
                scope.lines.append(f"*{total} = {REDUCTIONS[operation][1]}(*{total}, {result}, n);")
                continue
            for place in self.targets[value]:
                self._use(place, scope)
                shift = f" + {start}" if start else ""
                scope.lines.append(f"put_{place.storage}({place.row}{shift} + j, {result}, n);")
        name = f"{self.name}_columns_{len(self.sweeps)}"
        parameters = ["int64_t j", "int n", *(f"{kind}{n}" for n, kind in scope.given.items())]
        arguments = "".join(f", {'&' if kind == 'vec *' else ''}{n}" for n, kind in scope.given.items())
        self.sweeps.append(
            "\n".join([f"INLINE void {name}({', '.join(parameters)})", "{", *_indented(scope.lines), "}", ""])
        )
        self.row.lines += [
            f"for (int64_t j = 0; j + LANES <= {length}; j += LANES)",
            f"  {name}(j, LANES{arguments});",
            f"if ({length} % LANES)",
            f"  {name}({length} / LANES * LANES, {length} % LANES{arguments});",
        ]

    def _use(self, place: _Place, scope: _Scope, reading: bool = False) -> None:
        """Make a pointer to the row known where it is read or written."""
        self.used[place] = reading and self.used.get(place, True)
        if scope is not self.row:
            const = "const " if reading and scope.given.get(place.row, "const ").startswith("const ") else ""
            scope.given[place.row] = f"{const}{place.storage}_storage *"

    def _point(self, value: Value, reduction: tuple[str, Any] | None, start: int) -> None:
        """One column alone."""
        result = self._evaluate(value, start, self.row)
        if reduction is not None and reduction[0] == "total":
            place = self.parts[reduction[1]]
            self._use(place, self.row)
            self.row.lines.append(f"{place.row}[{start}] += {result}[0];")
            return
        if reduction is not None:
            operation, total = reduction
            self.row.lines.append(f"{total} = {REDUCTIONS[operation][1]}({total}, {result}, 1);")
            return
        for place in self.targets[value]:
            self._use(place, self.row)
            number = f"{result}[0] != 0" if place.storage == "bool" else f"{result}[0]"
            self.row.lines.append(f"write_{place.storage}({place.row} + {start}, {number});")

    def _evaluate(self, value: Value, start: int, scope: _Scope) -> str:
        """The name of a value's columns from ``start`` in a scope, written there where it is new."""
        if value.width == 1 and scope is not self.row:
            name = self._evaluate(value, 0, self.row)
            scope.given[name] = "ivec " if value.mask else "vec "
            return name
        name = scope.names.get((value, start), "")
        if not name:
            name = text = self._expression(value, start, scope)
            if not text.isidentifier():
                name = self._fresh(scope, _c(value.name) + (f"_{start}" if start else ""), own=not start)
                scope.lines.append(f"const {'ivec' if value.mask else 'vec'} {name} = {text};")
            scope.names[(value, start)] = name
        return name

    def _expression(self, value: Value, start: int, scope: _Scope) -> str:
        if value in self.places or value in self.ready:
            place = self.places.get(value) or self._best(self.targets[value])
            self._use(place, scope, reading=True)
            shift = f" + {start}" if start else ""
            if scope is self.row:
                return f"splat{'_bool' if value.mask else ''}(read_{place.storage}({place.row}{shift}))"
            return f"take_{place.storage}({place.row}{shift} + j, n)"
        if value.kind == "slice":
            return self._evaluate(value.values[0], start + value.start, scope)
        if value.kind == "spread":
            return self._evaluate(value.values[0], 0, scope)
        if value.kind == "cat":
            for part in value.values:
                if start < part.width:
                    return self._evaluate(part, start, scope)
                start -= part.width
        operands = [
            self._evaluate(o, start if o.width > 1 else 0, scope) if isinstance(o, Value) else _number(o)
            for o in value.operands
        ]
        return ARITHMETIC[value.operation].format(*operands)

    def _best(self, places: Sequence[_Place]) -> _Place:
        """The place that holds a value unrounded, if there is one."""
        return next((p for p in places if p.storage in ("real", self.real)), places[0])

    def _fresh(self, scope: _Scope, name: str, own: bool = False) -> str:
        """A name that is not taken; a value's own name is its own where it stands first."""
        while name in scope.taken and not (own and name not in scope.own):
            name += "_"
        scope.taken.add(name)
        scope.own.add(name)
        return name


def _compared(outputs: Iterable[Value]) -> set[Value]:
    """What is compared for being equal to another value, and what that is a part of or the magnitude of."""
    found: set[Value] = set()
    seen: set[Value] = set()
    todo = [(value, False) for value in outputs]
    while todo:
        value, compared = todo.pop()
        if compared:
            found.add(value)
        inner = compared and (value.kind in ("slice", "cat", "spread") or value.operation in ("abs", "neg"))
        inner = inner or (value.operation in ("eq", "ne") and len(set(value.values)) == 2)
        if inner or value not in seen:
            seen.add(value)
            todo += [(operand, inner) for operand in value.values]
    return found


def _even(pieces: list[tuple[Value, Any, int, int]]) -> list[tuple[Value, Any, int, int]]:
    """Cut long pieces to the length of the short ones, so that one sweep takes them all, if that is few cuts."""
    lengths = {length for *_, length in pieces if length > 1}
    unit = math.gcd(*lengths) if lengths else 0
    if len(lengths) < 2 or unit < 8 or max(lengths) // unit > 8:
        return pieces
    return [
        (value, reduction, place, min(unit, length))
        for value, reduction, start, length in pieces
        for place in range(start, start + length, unit)
    ]


def _storage(dtype: torch.dtype) -> str:
    if dtype not in STORAGE:
        raise Unsupported(f"a value of {dtype}")
    return STORAGE[dtype]


def _indented(lines: Iterable[str], depth: int = 1) -> list[str]:
    return ["  " * depth + line for line in lines]


def _broken(line: str) -> Iterator[str]:
    """A line in pieces of at most 120 characters, as far as it can be broken behind a comma or an operator."""
    indent = len(line) - len(line.lstrip()) + 4
    while len(line) > MOST_COLUMNS and "//" not in line:
        ends = (line.rfind(mark, indent, MOST_COLUMNS) + len(mark) for mark in (", ", " = ", " + ", " ? "))
        cut = next((end for end in ends if end > indent), 0)
        if not cut:
            break
        yield line[:cut].rstrip()
        line = " " * indent + line[cut:]
    yield line


def _number(number: float | bool) -> str:
    number = float(number)
    if math.isnan(number):
        return "splat(NAN)"
    return f"splat({number!r})" if math.isfinite(number) else f"splat({'-' if number < 0 else ''}INFINITY)"


_WORDS = (
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while linux unix "
    "row rows first step t r j n at call scratch output ahead left steps chunk block team parts uncounted "
    "counted"
)


@functools.cache
def _reserved() -> frozenset[str]:
    """Names that mean something else in the headers, and words of C and of every loop."""
    code = re.sub(r"//[^\n]*", "", headers())
    called = re.findall(r"([A-Za-z_]\w*)\s*\(", code)
    defined = re.findall(r"#define\s+(\w+)", code)
    types = [word for line in re.findall(r"typedef[^\n]*", code) for word in re.findall(r"[A-Za-z_]\w*", line)]
    return frozenset((*called, *defined, *types, *_WORDS.split()))


def _c(name: str) -> str:
    """A name as a C identifier."""
    return f"{name}_" if name in _reserved() or not name.isascii() else name
