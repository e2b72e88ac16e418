"""A loop over time, planned: what is computed where, what is kept for later, and where everything lies.

A step is cut where something needs whole rows: before a product the rows of its operand have to be there, before a
reduction the columns. What a later piece needs is kept in scratch, or computed again where that is as cheap as reading
it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pellucid.formula.program import Program
from pellucid.kernel.language.layout import Layout, Work, layout, storage_name
from pellucid.kernel.language.lower import lower
from pellucid.kernel.language.recomputing import AS_CHEAP_AS_READING, compared, cost_of
from pellucid.kernel.language.text_c import identifier
from pellucid.kernel.language.values import Value

PART = "part"  # instead of a distance of rows: all rows are added at one place

Level = tuple[int, int]  # products passed, then reductions since


@dataclass(frozen=True)
class LoopLayout(Layout):
    """What a caller of an emitted loop in C must know."""

    direct: bool  # whether the matrices can be read where they lie
    ahead: int  # columns of what is computed for a chunk of steps at once
    operations: int  # multiplications and additions of a row's step, about


@dataclass(frozen=True)
class Place:
    """Where rows lie: a pointer of the step, how it is made, what it points to, and the distance of rows."""

    pointer: str
    made: str  # empty: the pointer is there for all steps
    storage: str
    stride: str

    @property
    def row(self) -> str:
        """The pointer to one row."""
        return f"{self.pointer}_row"


class Plan:
    """One loop over time.

    With ``zeros``, rows past their end give zeros in every output; without, only in the output of the layer.
    """

    def __init__(self, work: Work, program: Program, real: str, zeros: bool) -> None:
        self.name, self.real, self.state_storage = work.name, real, work.storage
        self.zeros, self.output = zeros, work.output
        stage, states, new_states = work.stage, work.states, work.new_states
        self.sites = {d: (i, *site) for i, (d, site) in enumerate(zip(program.draws, program.sites, strict=True))}
        self.lowered = lower(stage, program.draws)
        self.storage = {n: storage_name(p.meta["val"].dtype) for n, p in stage.placeholders.items() if n != "rows"}
        laid_out = layout(work, self.lowered)
        self.widths = {s: self.lowered.outputs[n].width for s, n in zip(states, new_states, strict=True)}
        self.loop = LoopLayout(
            **vars(laid_out),
            direct=all(self.storage[name] == real for name in self.lowered.matrices),
            ahead=0,
            operations=sum(2 * depth * width for depth, width in self.lowered.matrices.values())
            + 20 * sum(value.width for value in self.lowered.outputs.values()),
        )
        matrices = (f"{n} matrix" for n in self.loop.matrices)
        written = (f"{n} to" for n in (*laid_out.outputs, *laid_out.totals))
        self.buffers = (*self.loop.inputs, *states, *written, "output", *matrices)
        self.identifiers = {identifier(n) for n in self.lowered.names}
        self.compared = compared(self.lowered.outputs.values())
        self.levels: dict[Value, Level] = {}
        self.places: dict[Value, Place] = {}  # where a value can be read
        self.targets: dict[Value, list[Place]] = defaultdict(list)  # where it is written
        self.ready: set[Value] = set()  # written already, at this point of the text
        self.pointers: list[Place] = []
        self.scratch: list[Place] = []
        self.visited: set[tuple[Value, Level]] = set()
        self.stores: dict[Level, list[Value]] = defaultdict(list)
        self.reduces: dict[Level, list[Value]] = defaultdict(list)
        self.products: dict[int, list[Value]] = defaultdict(list)
        self.totals: dict[Level, list[Value]] = defaultdict(list)
        self.parts: dict[Value, Place] = {}  # where the rows of a total are added up
        self.draws: list[Value] = []
        self.ahead: list[tuple[Value, Place]] = []  # products of inputs, and where a chunk of steps of them lies
        self.sweeps: list[str] = []
        self.now_places = {state: self._slot(state, "now") for state in states}
        self.next_places: dict[str, Place] = {}
        self.output_places: dict[str, Place] = {}
        self._place_buffers(dict(zip(states, new_states, strict=True)))
        self._plan()
        self.loop = replace(self.loop, ahead=sum(value.width for value, _ in self.ahead))

    # -- places ---------------------------------------------------------------------------------------------------

    def _place_buffers(self, new_states: Mapping[str, str]) -> None:
        """Say where inputs are read and outputs written, all in the memory that the caller gives."""
        outputs = self.lowered.outputs
        for value in self.lowered.inputs.values():
            if value.kind == "memory":
                self.places[value] = self._input(value)
        for state, new_state in new_states.items():
            self.next_places[state] = self._slot(state, "next")
            self._keep(outputs[new_state], self.next_places[state])
        for name in self.loop.outputs:
            self.output_places[name] = self._output(name, outputs[name])
            self._keep(outputs[name], self.output_places[name])
        for name in self.loop.totals:
            self.totals[self.level(outputs[name])].append(outputs[name])
            self.parts[outputs[name]] = self._place(f"{name}_part", "", "real", PART)

    def _place(self, pointer: str, made: str, storage: str, stride: str | int) -> Place:
        pointer = identifier(pointer)
        while pointer in self.identifiers or f"{pointer}_row" in self.identifiers:
            pointer += "_"
        self.identifiers |= {pointer, f"{pointer}_row"}
        place = Place(pointer, made, storage, str(stride))
        self.pointers.append(place)
        return place

    def _buffer(self, name: str) -> str:
        return f"call->buffers[{self.buffers.index(name)}]"

    def _input(self, value: Value) -> Place:
        if value.name in self.loop.states:
            return self.now_places[value.name]
        storage, buffer = self.storage[value.name], self._buffer(value.name)
        made = f"(const {storage}_storage *){buffer}"
        if not value.rows:
            return self._place(f"{value.name}_all", made, storage, 0)
        return self._place(f"{value.name}_at", f"{made} + at * {value.width}", storage, value.width)

    def _output(self, name: str, value: Value) -> Place:
        storage = self.loop.outputs[name][1]
        made = f"({storage}_storage *){self._buffer(f'{name} to')} + at * {value.width}"
        return self._place(f"{name}_to", made, storage, value.width)

    def _slot(self, state: str, when: str) -> Place:
        width, index = self.widths[state], self.loop.states.index(state)
        made = (
            f"({self.state_storage}_storage *){self._buffer(state)} + ({when}_{index} * call->batch + first) * {width}"
        )
        return self._place(f"{state}_{when}", made, self.state_storage, width)

    def _scratch(self, value: Value, storage: str, name: str = "kept") -> Place:
        alone = value.width == 1 and value.kind != "product"
        place = self._place(f"{value.name}_{name}", "", storage, 1 if alone else f"PADDED({value.width})")
        self.scratch.append(place)
        return place

    def _keep(self, value: Value, place: Place) -> None:
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
                made_before = value.kind in ("product", "reduce", "draws")  # any other is made where it is stored
                for needed in (value,) if made_before else value.values:
                    self._visit(needed, level)
            for value in (*self.reduces[level], *self.totals[level]):
                self._visit(value.values[0], level)

    def _visit(self, value: Value, level: Level) -> None:
        """See to it that a value can be had at a level."""
        own = self.level(value)
        if value.kind == "memory" or (value in self.targets and own < level) or (value, level) in self.visited:
            return
        self.visited.add((value, level))
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
        elif value.kind == "math" and own < level and cost_of(value, self.targets, self.compared) > AS_CHEAP_AS_READING:
            self._keep(value, self._scratch(value, "bool" if value.mask else "real"))
        else:
            for operand in value.values:
                self._visit(operand, level)

    def _in_memory(self, value: Value, start: int = 0) -> tuple[str, str] | None:
        """The pointer to the first of a block's rows and their distance, if a value lies there as real numbers."""
        known = [self.places[value]] if value in self.places and value.kind != "draws" else []
        for place in (*known, *self.targets.get(value, ())):
            if place.storage in ("real", self.real) and place.stride != "0":
                return place.pointer + (f" + {start}" if start else ""), place.stride
        return self._in_memory(value.values[0], start + value.start) if value.kind == "slice" else None
