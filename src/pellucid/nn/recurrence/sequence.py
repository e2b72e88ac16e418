"""A cell over sequences: levels, directions, lengths, packed input, and the checks of what comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pellucid.errors import FormulaError, label, mismatch, refuse_others, shape_text
from pellucid.formula.drop import dropping
from pellucid.formula.record import recordable
from pellucid.formula.shapes import Solution
from pellucid.kernel import random, registry
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.recurrence import launch
from pellucid.kernel.recurrence.call import Call
from pellucid.kernel.recurrence.chunks import Division
from pellucid.nn import lengths as real
from pellucid.nn.component import Running

if TYPE_CHECKING:
    from pellucid.nn.recurrence.cell import Cell

State = Tensor | tuple[Tensor, ...]

# The attributes by which a layer's shapes, and of torch.nn's names its formula, are decided.
DECIDING = {*"mode nonlinearity input_size hidden_size proj_size num_layers bidirectional".split()}


class Options(NamedTuple):
    """What a call asks for beside output and last state."""

    record: tuple[str, ...]
    division: Division


class SequenceLayer(Running, torch.nn.Module):
    """What every recurrent layer shares; a subclass says which cell runs and where its parameters are.

    Conventions are torch.nn's: input (time, batch, features), or (batch, time, features) with ``batch_first``, or
    (time, features) for one sequence; state (layers × directions, batch, size) for each entry.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    bidirectional: bool
    dropout: float
    _hidden_axes: ClassVar[int] = 0  # ahead of what the caller has given
    _another_dtype: ClassVar[type[Exception]] = ValueError  # what an input of another type than the weights' raises
    _keys: list[str]
    _parameter_shapes: list[list[tuple[int, ...]]]  # of the first level, and of those above, as the solutions are
    _solutions: list[Solution]
    _state_sizes: tuple[int, ...]

    def __setattr__(self, name: str, value: Any) -> None:
        """Let what is set after the constructor decide too."""
        super().__setattr__(name, value)
        if name in DECIDING and "_solutions" in self.__dict__:
            self._prepare()

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the formula's parameters of one level and direction, in its row convention: U is input × hidden."""
        raise NotImplementedError

    def _weight(self, name: str) -> Any:
        """A parameter, or what computes one, by its name."""
        known = self._parameters.get(name)  # torch.nn.Module looks there last, and slowly
        if known is not None:
            return known
        try:
            return getattr(self, name)
        except AttributeError:
            made = ", ".join(f"{option}={vars(self)[option]}" for option in sorted(DECIDING & vars(self).keys()))
            raise RuntimeError(
                f"{label(self)} has no {name}, which it needs with {made}. A layer has the parameters that it was made "
                "with: make another one."
            ) from None

    def trained(self, level: int = 0) -> set[str]:
        """The formula's parameters that have a gradient in a level."""
        return registry.trained(self._keys[min(level, 1)])

    @property
    def _keeps_types(self) -> tuple[bool, ...]:
        """Of the output and every state entry whether it is of the given state's type under autocast on the CPU."""
        return ()

    def solution(self, level: int = 0) -> Solution:
        """The solved shapes of a level, with their reasons."""
        return self._solutions[min(level, 1)]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The numbers of the formula; torch.nn's have none."""
        return {}

    def _solve(self, sizes: Mapping[str, int], hyperparameters: Mapping[str, Any], version: int = 0) -> None:
        """Solve the shapes of the first level and of those above, which read the output of the one below."""
        self._solutions, self._keys, self._parameter_shapes = [], [], []
        inner = dict(sizes)
        for level in range(min(self.num_layers, 2)):
            try:
                solution = self.cell.solve(tuple(inner.items()), tuple(hyperparameters.items()), version)
            except FormulaError as error:
                if level == 0:
                    raise
                of = "both directions of the level below return" if self.bidirectional else "the level below returns"
                raise FormulaError(
                    f"{error}\n  This is of the levels above the first: they read {inner['input']} features, what {of}."
                ) from error
            self._solutions.append(solution)
            self._check_levels(inner)
            self._keys.append(registry.key(self.cell.name_of(version), inner, hyperparameters))
            self._parameter_shapes.append([solution.symbols[p.name].shape for p in self.cell.source.parameters])
            inner = {**inner, "input": solution.output * self._directions}
        self._state_sizes = self._solutions[0].state_sizes(self.cell.source)

    def _check_levels(self, sizes: Mapping[str, int]) -> None:
        """Every level reads the same further inputs, and its states are as large as those of the first."""
        source = self.cell.source
        symbols = [(symbol, "further input") for symbol in source.inputs[1:]]
        symbols += [(symbol, "state") for symbol in source.states]
        for symbol, what in symbols:
            first, *rest = (solution.symbols[symbol.name].shape[-1] for solution in self._solutions)
            if any(other != first for other in rest):
                raise FormulaError(
                    f"{source.name}: the levels above the first read {sizes['input']} features, so the {what} "
                    f"{symbol.name} would have {rest[0]} there instead of {first}. Make layers of one level and call "
                    "one after another."
                )

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    # -- running ------------------------------------------------------------------------------------------------

    def run(
        self,
        x: Tensor | PackedSequence,
        state: State | None,
        lengths: real.Lengths | None,
        record: Sequence[str] = (),
        checkpoint_every: int | None = None,
        truncate: int | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the layer; the forward of every subclass. ``further`` are the inputs after the first, by name."""
        if not isinstance(x, PackedSequence):
            refuse_others(self, x)
        options = Options(self._recorded(record), self._division(checkpoint_every, truncate))
        if isinstance(x, PackedSequence):
            return self._run_packed(x, state, lengths, options, further or {})
        if x.dim() not in (2, 3):
            raise ValueError(
                f"{label(self)}: the input has {x.dim()} axes, shape {shape_text(x.shape)}. It is {self._axes_text()} "
                f"for a batch, or (time, features) for one sequence."
            )
        if x.layout is torch.sparse_coo:  # which torch's cells read too
            x = x.to_dense()
        batched = x.dim() == 3
        self._check_features(x, batched)
        x = self._side_by_side(x, further or {}, self._axes(batched))
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1).contiguous()  # kept for backward: what came may be written to, as in torch.nn
        states = self._states(x, state, batched)
        if lengths is not None:
            lengths = real.check(lengths, x.shape[1], x.shape[0], self, x.device)
        output, last, recorded = self._levels(x, states, lengths, options)
        if not batched:
            output, last = output.squeeze(1), tuple(s.squeeze(1) for s in last)
            recorded = {name: value.squeeze(2) for name, value in recorded.items()}
        elif self.batch_first:
            output = output.transpose(0, 1)
            recorded = {name: value.transpose(1, 2) for name, value in recorded.items()}
        result = (output, last[0] if len(last) == 1 else last)
        return (*result, recorded) if record else result

    def _run_packed(
        self,
        x: PackedSequence,
        state: State | None,
        lengths: real.Lengths | None,
        options: Options,
        further: Mapping[str, Any],
    ) -> tuple[PackedSequence, State]:
        if options.record:
            raise ValueError(
                f"{label(self)}: record= gives values of padded steps; pass a padded tensor with lengths= instead of a "
                "PackedSequence (torch.nn.utils.rnn.pad_packed_sequence makes both)"
            )
        if lengths is not None:
            raise ValueError(f"{label(self)}: a PackedSequence brings its own lengths; pass it without lengths=")
        padded, given = pad_packed_sequence(x)
        self._check_features(padded, True)
        further = {name: self._padded(name, value, given) for name, value in further.items()}
        padded = self._side_by_side(padded, further, ("time", "batch", "features"))
        states = self._states(padded, state, True)
        output, last, _ = self._levels(padded, states, given.to(padded.device), options)
        if x.sorted_indices is not None:
            output = output.index_select(1, x.sorted_indices)
            given = given[x.sorted_indices.cpu()]
        packed = pack_padded_sequence(output, given).data
        result = PackedSequence(packed, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return result, last[0] if len(last) == 1 else last

    def _levels(
        self, x: Tensor, states: Sequence[Tensor], lengths: Tensor | None, options: Options
    ) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
        """All levels and directions; x is (time, batch, features), the inputs side by side."""
        given = states
        x, states, cast = self._autocast(x, states)
        further = x[..., self.input_size :] if x.shape[-1] > self.input_size else None
        last: list[list[Tensor]] = [[] for _ in states]
        recorded: dict[str, list[Tensor]] = {name: [] for name in options.record}
        for level in range(self.num_layers):
            if lengths is not None:  # padding may hold anything, NaN too: it must not reach a sum over time
                x = real.fill(x, lengths)
            outputs = []
            for output, new, values in self._level(x, states, level, lengths, cast, options):
                outputs.append(output)
                for entry, value in zip(recorded.values(), values, strict=True):
                    entry.append(value)
                for entry, value in zip(last, new, strict=True):
                    entry.append(value)
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
            if level + 1 < self.num_layers and self.training and self.dropout > 0:
                draws = random.uniform(x.shape, random.draw_seed(), device=x.device)
                x = dropping(self.dropout)(x, draws, self.dropout)
            if level + 1 < self.num_layers and further is not None:
                x = torch.cat([x, further], -1)
        top = {name: self._together(name, values) for name, values in recorded.items()}
        ends = [torch.stack(e) if len(e) > 1 else e[0].unsqueeze(0) for e in last]
        if cast is not None and x.is_cpu and self._keeps_types:
            results = zip((x, *ends), (given[0], *given), self._keeps_types, strict=True)
            x, *ends = [value.to(state.dtype) if kept else value for value, state, kept in results]
        return x, tuple(ends), top

    def _together(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """What was recorded of all levels and directions, (levels · directions, time, batch, features)."""
        sizes = [value.shape[-1] for value in values]
        if len({*sizes}) > 1:
            raise ValueError(
                f"{label(self)}: record={name!r} has {' and '.join(map(str, sizes))} features in the levels and "
                f"directions of the layer, which one tensor cannot hold. Record what has as many in each, or make a "
                f"layer of one level for each."
            )
        return torch.stack(list(values))

    def _level(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        level: int,
        lengths: Tensor | None,
        cast: torch.dtype | None,
        options: Options,
    ) -> list[tuple[Tensor, list[Tensor], Sequence[Tensor]]]:
        """Output, last state and recorded values of each direction; states are (levels · directions, batch, size)."""
        calls, of_calls = [], []
        draws = self.training and self.solution(level).sites
        for reverse in (False, True)[: self._directions]:
            own = [s[level * self._directions + reverse] for s in states]
            values = self.symbol_values(level, reverse)
            parameters = [values[p.name] for p in self.cell.source.parameters]
            if cast is not None:
                parameters = [p.to(cast) for p in parameters]
            self._check_memory(x, own, parameters, level)
            of_calls.append(own)
            calls.append(Call(x, parameters, lengths, random.draw_seed() if draws else None, reverse))
        key = self._keys[min(level, 1)]
        if options.record:
            key, columns = registry.recording_keys(key, options.record)
        results, ran = launch.recurrence(key, self.training, calls, of_calls, options.division)
        if ran:
            self._was_run_by(ran)
        if not options.record:
            return [(output, last, ()) for output, last in results]
        parts = [output.split(columns, -1) for output, _ in results]
        return [(output, last, values) for (output, *values), (_, last) in zip(parts, results, strict=True)]

    def _autocast(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], torch.dtype | None]:
        """Under autocast the whole layer runs in its type, as a matrix product does; float64 stays."""
        dtype = autocast_dtype(x)
        if dtype is None or x.dtype == torch.float64:
            return x, states, None
        return x.to(dtype), [s.to(dtype) for s in states], dtype

    # -- checks -------------------------------------------------------------------------------------------------

    def _side_by_side(self, x: Tensor, further: Mapping[str, Any], axes: Sequence[str]) -> Tensor:
        """Return all inputs of the formula along the features, the first one first; x has ``axes``."""
        source = self.cell.source
        if not further and len(source.inputs) == 1:
            return x
        names = [symbol.name for symbol in source.inputs[1:]]
        missing = [name for name in names if further.get(name) is None]
        unknown = [name for name in further if name not in names]
        if missing or unknown:
            fault = f"the input {missing[0]} is missing" if missing else f"unexpected argument {unknown[0]!r}"
            call = ", ".join(("x", *(f"{name}=..." for name in names)))
            raise TypeError(f"{label(self)}: {fault}. What its formula reads is given as layer({call})")
        values = [x]
        for name, size in zip(names, self.solution().input_sizes(source)[1:], strict=True):
            value, expected = further[name], (*x.shape[:-1], size)
            refuse_others(self, value, f"input {name}")
            whole = value.unsqueeze(-1) if size == 1 and value.dim() == x.dim() - 1 else value
            if tuple(whole.shape) != expected:
                short = f", or without the last axis {shape_text(expected[:-1], axes[:-1])}" if size == 1 else ""
                raise RuntimeError(
                    f"{label(self)}: the input {name} is {shape_text(value.shape, axes)}, expected "
                    f"{shape_text(expected, axes)}{short}"
                )
            if value.dtype != x.dtype and not (value.is_floating_point() and autocast_dtype(x) is not None):
                raise ValueError(
                    f"{label(self)}: the input {name} is of {value.dtype}, the first input is of {x.dtype}. Convert "
                    f"it: {name}.to({x.dtype})."
                )
            values.append(whole)
        return torch.cat(values, -1) if len(values) > 1 else x

    def _padded(self, name: str, value: Any, lengths: Tensor) -> Tensor:
        """A further input of packed sequences, padded."""
        if not isinstance(value, PackedSequence):
            raise TypeError(f"{label(self)}: x is a PackedSequence, so {name} must be one too, of the same lengths")
        padded, given = pad_packed_sequence(value)
        if not torch.equal(given, lengths):
            raise RuntimeError(
                f"{label(self)}: the sequences of {name} have lengths {given.tolist()}, those of x {lengths.tolist()}"
            )
        return padded

    def _recorded(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names that a call wants recorded, checked."""
        if not names:
            return ()
        if isinstance(names, str):
            names = (names,)
        known = recordable(self.cell.source)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{label(self)}: record has no {unknown[0]!r}; its formula computes {', '.join(known)}")
        return tuple(dict.fromkeys(names))

    def _division(self, checkpoint_every: int | None, truncate: int | None) -> Division:
        for name, steps in (("checkpoint_every", checkpoint_every), ("truncate", truncate)):
            if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
                raise ValueError(f"{label(self)}: {name} is a number of steps from 1, not {steps!r}")
        if checkpoint_every and truncate and truncate % checkpoint_every:
            raise ValueError(
                f"{label(self)}: the gradient is cut where a checkpoint is, so truncate={truncate} must be a multiple "
                f"of checkpoint_every={checkpoint_every}"
            )
        return Division(checkpoint_every or 0, truncate or 0)

    def _check_memory(self, x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor], level: int) -> None:
        """Check what a kernel would take for granted."""
        shapes = self._parameter_shapes[min(level, 1)]
        if [p.shape for p in parameters] != shapes:
            symbols = zip(self.cell.source.parameters, parameters, shapes, strict=True)
            name, value, solved = next((s.name, p, n) for s, p, n in symbols if p.shape != n)
            raise RuntimeError(
                f"{label(self)}: {name} of its formula is {shape_text(value.shape)} in level {level}, but its sizes "
                f"want {shape_text(solved)}. Make another layer of these sizes."
            )
        device, dtype = x.device, x.dtype
        for tensors, what in ((states, "state"), (parameters, "weights")):
            for tensor in tensors:
                if tensor.dtype != dtype or tensor.device != device:
                    raise RuntimeError(f"{label(self)}: the input is {mismatch(x, tensor, what)}")

    def _axes_text(self) -> str:
        return "(batch, time, features)" if self.batch_first else "(time, batch, features)"

    def _axes(self, batched: bool) -> tuple[str, ...]:
        if not batched:
            return ("time", "features")
        return ("batch", "time", "features") if self.batch_first else ("time", "batch", "features")

    def _check_features(self, x: Tensor, batched: bool) -> None:
        if x.shape[-1] != self.input_size:
            axes, shape = self._axes(batched)[self._hidden_axes :], x.shape[self._hidden_axes :]
            found = [n for n, size in zip(axes[:-1], shape[:-1], strict=True) if size == self.input_size]
            if found:
                fix = f"The {found[0]} axis has that size: move it to the end, x.transpose(...)."
            elif batched and not self.batch_first and not self._hidden_axes:
                fix = f"Is it (batch, time, features)? Then pass batch_first=True, and input_size={x.shape[-1]}."
            else:
                fix = f"Make the layer with input_size={x.shape[-1]}, or give it {self.input_size} features."
            raise RuntimeError(
                f"{label(self)}: the input is {shape_text(shape, axes)}, but input_size is {self.input_size}. {fix}"
            )
        own = [*self._parameters.values()][:1]
        dtype = own[0].dtype if own and own[0] is not None else next((p.dtype for p in self.parameters()), x.dtype)
        if x.dtype != dtype and not (x.is_floating_point() and autocast_dtype(x) is not None):
            cure, of_layer = f"input.to({dtype})", f"layer.to({x.dtype})"
            if x.is_complex():
                parts = f"torch.view_as_real(x).flatten(-2), {2 * self.input_size}"
                cure = f"{of_layer} or give it both parts as features, {parts}"
            elif x.is_floating_point():
                cure = f"{cure} or {of_layer}"
            raise self._another_dtype(
                f"{label(self)}: the input is of {x.dtype}, the parameters are of {dtype}. Convert one of them: {cure}."
            )

    def _states(self, x: Tensor, state: State | None, batched: bool) -> list[Tensor]:
        """Return the initial state as (layers × directions, batch, size) for each entry; zeros where none is given."""
        rows = self.num_layers * self._directions
        if state is None:
            return [x.new_zeros((rows, x.shape[1], size)) for size in self._state_sizes]
        names = [symbol.name for symbol in self.cell.source.states]
        entries = (state,) if isinstance(state, Tensor) else tuple(state)
        if len(entries) != len(names):
            raise RuntimeError(
                f"{label(self)}: the state has {len(names)} entries, but {len(entries)} were given. "
                f"Pass {'a tensor' if len(names) == 1 else 'a tuple'} ({', '.join(names)})."
            )
        axes = ("layers × directions", "batch", "features") if batched else ("layers × directions", "features")
        checked, hidden = [], self._hidden_axes
        for name, entry, size in zip(names, entries, self._state_sizes, strict=True):
            refuse_others(self, entry, f"state {name}")
            expected = (rows, x.shape[1], size) if batched else (rows, size)
            if tuple(entry.shape) != expected:
                given, wanted = (shape_text(s[hidden:], axes[hidden:]) for s in (entry.shape, expected))
                more = "" if hidden else " The batch is the second axis of a state, with batch_first too."
                raise RuntimeError(f"{label(self)}: the state {name} is {given}, expected {wanted}.{more}")
            if entry.dtype != x.dtype and autocast_dtype(x) is None:
                raise RuntimeError(
                    f"{label(self)}: the state {name} is of {entry.dtype}, the input is of {x.dtype}. Convert it: "
                    f"state.to({x.dtype})."
                )
            checked.append(entry if batched else entry.unsqueeze(1))
        return checked
