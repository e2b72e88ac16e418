"""A program as C text: one loop over time for forward, one for backward.

A thread takes a block of rows (samples) through all steps; `plan` says what is computed where.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from pellucid.formula.program import Program
from pellucid.kernel.language.layout import real_of, works
from pellucid.kernel.language.text_c import broken, indented, preamble
from pellucid.kernel.language.values import Value
from pellucid.kernel.recurrence.plan import LoopLayout, Place
from pellucid.kernel.recurrence.sweeps import Sweeps

aten = torch.ops.aten
# Beside the loop of backward these take what is saved of a step past a row's end, and a gradient of 0: saved zeros do,
# because all that is made of them is finite.
POLYNOMIAL = {
    *(aten.mm.default, aten.permute.default, aten.sum.dim_IntList, aten.view.default, aten.add.Tensor),
    *(aten.sub.Tensor, aten.mul.Tensor, aten.scalar_tensor.default, aten.full_like.default),
    *(aten.cat.default, operator.getitem, aten.sym_size.int),
}


@dataclass(frozen=True)
class Text:
    """The C text of a program and the loops in it."""

    text: str
    loops: Mapping[str, LoopLayout]


def emit(program: Program, dtype: torch.dtype, training: bool) -> Text:
    """Write a fused program: the loop "forward", and with ``training`` what it saves and the loop "backward".

    Raises:
        Unsupported: an operation has no C.
    """
    real = real_of(dtype)
    beside = (*program.before.graph.nodes, *program.after.graph.nodes)
    zeros = not training or all(node.target in POLYNOMIAL for node in beside if node.op == "call_function")
    functions = [
        _Function(work, program, real, zeros or work.name == "backward") for work in works(program, dtype, training)
    ]
    packs = sorted({f.storage[matrix] for f in functions for matrix in f.loop.matrices})
    title = f"// {program.name}: written by pellucid from the cell's formula.\n"
    body = "\n".join([*(f"DEFINE_PACK({storage})" for storage in packs), "", *(f.text() for f in functions)])
    return Text(f"{title}{preamble(real)}\n{broken(body)}", {function.name: function.loop for function in functions})


class _Function(Sweeps):
    """The C of one loop."""

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
            *indented(self._scratches()),
            *indented(self._all_parts()),
            *indented(self._packed()),
            *indented(self._fill_draws("time")),
            *(
                ["  int64_t ahead = 0; // the first step of the chunk whose input products are there"]
                if self.ahead
                else []
            ),
            "  for (int64_t step = call->begin; step < call->end; step++) {",
            "    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;",
            *indented(self._products_ahead(), 2),
            *indented(self._slots(), 2),
            *indented((f"UNUSED {self._declared(place)}" for place in self.pointers if place.made), 2),
            *(["    if (any_real(call, first, rows, t)) {"] if self.zeros else ["    {"]),
            *indented(self._fill_draws(None), 3),
            *indented(work, 3),
            "    }",
            *indented(self._finish(), 2),
            *indented(self._add_parts(), 2),
            "  }",
            "}",
            "",
        ]

    def _declared(self, place: Place) -> str:
        const = "const " if place in self.places.values() else ""
        return f"{const}{place.storage}_storage *const {place.pointer} = {place.made};"

    def _size(self, place: Place) -> str:
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
            yield f"UNUSED const struct matrix matrix_{i} = {self._matrix_text(i)};"
            place = f"(const char *)(packed_{i} + {depth} * PADDED({width}))"

    def _matrix_text(self, number: int) -> str:
        if not self.loop.direct:
            return f"{{packed_{number}, 0, 0, 0}}"
        return f"{{call->direct ? 0 : packed_{number}, {self._as_given(number)}}}"

    def _as_given(self, number: int) -> str:
        """A matrix as the caller has it: its place and its strides."""
        place = self._buffer(f"{self.loop.matrices[number]} matrix")
        return f"{place}, call->strides[{2 * number}], call->strides[{2 * number + 1}]"

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
            yield f"product(rows, {depth}, {width}, {found[0]}, {found[1]}, &matrix_{matrix}, {to}, team);"

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
            places = f"{rows}, {stride}, &matrix_{matrix}, {chunk.pointer}"
            yield f"    products(steps, call->batch, rows, {depth}, {width}, {places}, team);"
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
        """What is called from outside: how much work space it needs, and the loop over blocks on all threads."""
        name, matrices = self.name, self.lowered.matrices
        packed = [f"ROUNDED({depth} * PADDED({width}) * (int64_t)sizeof(real))" for depth, width in matrices.values()]
        scratch = [self._size(place) for place in self.scratch]
        if self.parts:
            scratch.append(f"ROUNDED(({self._part_widths()}) * (int64_t)sizeof(real))")
        panels = " + ".join(f"PADDED({width}) / PANEL" for _, width in matrices.values())
        packs = [
            "  if (calls->begin == 0 && !calls->direct)",
            f"    share(&calls->threads, {name}_pack, calls, count * ({panels}));",
        ]
        return [
            "// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.",
            f"int64_t {name}_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)",
            "{",
            f"  return {' + '.join(packed) or '0'} + threads * ({' + '.join(scratch) or '0'});",
            "}",
            "",
            *(self._pack(panels) if panels else []),
            f"static void {name}_task(const void *context, int64_t task, int64_t worker)",
            "{",
            "  const struct call *const calls = context, *const call = calls + task / blocks_of(calls);",
            "  const int64_t first = task % blocks_of(calls) * call->block, rest = call->batch - first;",
            f"  char *scratch = calls->work + {name}_work(call->block, call->chunk, worker);",
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
            "// Calls of the same sizes side by side: their blocks of rows have the scratch of the first.",
            f"void {name}(const struct call *calls, int64_t count)",
            "{",
            *(packs if panels else []),
            "  if (!calls->together)",
            f"    share(&calls->threads, {name}_task, calls, count * blocks_of(calls));",
            "  for (int64_t i = 0; calls->together && i < count; i++)",
            f"    gather(&calls->threads, {name}_together, calls + i);",
            "}",
            "",
        ]

    def _pack(self, panels: str) -> list[str]:
        """The task that packs one panel of a matrix."""
        packing: list[str] = []
        for i, (matrix, (depth, width)) in enumerate(self.lowered.matrices.items()):
            packing += [
                f"if (task < PADDED({width}) / PANEL) {{ // {matrix}",
                f"  pack_{self.storage[matrix]}({self._as_given(i)}, {depth}, {width},",
                f"    (real *)packed_{i}, task);",
                "  return;",
                "}",
                f"task -= PADDED({width}) / PANEL;",
            ]
        return [
            f"static void {self.name}_pack(const void *context, int64_t task, UNUSED int64_t worker)",
            "{",
            f"  const int64_t panels = {panels};",
            "  const struct call *const call = (const struct call *)context + task / panels;",
            "  task %= panels;",
            *indented([*self._packed(), *packing]),
            "}",
            "",
        ]
