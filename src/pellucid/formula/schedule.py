"""What is done once, once per input and at every step: the joint graph cut into the stages of a program.

Each value depends on parameters alone (ONCE), on the input but no state (INPUT), or on the state (STEP). The first
two are evaluated outside the loop, INPUT with time folded into the rows. Backward likewise: the loop holds only what
lies between the gradients of the new state and those of the old; everything else is linear in what the loop leaves
and right as it stands when its rows are time × batch, the weights' gradients above all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from pellucid.errors import FormulaError
from pellucid.formula.capture import free
from pellucid.formula.graph import Joint, ancestors
from pellucid.formula.program import Abstract, Program, Stage, placeholder
from pellucid.formula.source import Source

ONCE, INPUT, STEP = range(3)
aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default}  # of all steps at once they run at the machine's full rate
MOVES = {
    *(aten.split_with_sizes.default, aten.slice.Tensor, aten.select.int, aten.cat.default, aten.expand.default),
    *(aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.clone.default),
}
EQUALITIES = {aten.eq.Tensor, aten.ne.Tensor}
CHEAP = {
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.neg.default, aten.relu.default, aten.where.self, *MOVES),
    *(aten.le.Scalar, aten.lt.Scalar, aten.ge.Scalar, aten.gt.Scalar, aten.eq.Scalar, aten.ne.Scalar),
}


def nowhere(node: fx.Node) -> bool:
    """No value is computed inside the loop that can be computed outside."""
    return False


def schedule(
    source: Source, joint: Joint, in_loop: Callable[[fx.Node], bool] = nowhere, products: bool = True
) -> Program:
    """Cut the joint graph of a step into a program.

    By default the loop holds as few operations as possible, each of which is a call. Where the loop is one kernel,
    ``in_loop`` says which values with rows that can compute: all such arithmetic stands in it, where it costs nothing
    beside the memory that it would read and write outside; only products of all steps at once, and what they are made
    of, stay outside. With ``products`` those of forward's input stand in the loop too, which takes them a chunk of
    steps at a time.
    """
    _Scheduler(source, joint).regroup()
    return _Scheduler(source, joint, in_loop, products).program()


def _is_size(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), (Abstract, tuple, list)) and node.op != "get_attr"


def _together(a: Abstract, b: Abstract) -> Abstract:
    """A sum or a product of two values."""
    axes = max(a.dim(), b.dim())
    shapes = ((1,) * (axes - value.dim()) + value.shape for value in (a, b))
    dtype = torch.result_type(*(torch.empty([1] * value.dim(), dtype=value.dtype) for value in (a, b)))
    return Abstract(tuple(map(max, *shapes)), dtype, a.rows or b.rows)


class _Scheduler:
    def __init__(
        self, source: Source, joint: Joint, in_loop: Callable[[fx.Node], bool] = nowhere, products: bool = True
    ) -> None:
        self.source, self.joint, self.in_loop, self.products = source, joint, in_loop, products
        self.nodes = [n for n in joint.graph.nodes if n.op != "output"]
        placeholders = iter([n for n in self.nodes if n.op == "placeholder"])
        groups = [[next(placeholders) for _ in range(count)] for count in joint.counts]
        self.inputs, self.states, self.parameters, self.draws, self.output_grad, self.state_grads = groups
        results: list[Any] = list(next(n for n in joint.graph.nodes if n.op == "output").args[0])
        ends = (1, len(self.states), 1, len(self.states), len(self.parameters))
        starts = [sum(ends[:i]) for i in range(len(ends))]
        parts = [results[a : a + n] for a, n in zip(starts, ends, strict=True)]
        self.output, self.new_states, self.input_result, self.state_results, self.parameter_results = parts
        self._name_placeholders()
        self.kind = self._kinds()
        self.of_state_grad = self._descendants(self.state_grads)
        self.of_grad = self._descendants([*self.state_grads, *self.output_grad])
        self.forward = self._forward()

    def _name_placeholders(self) -> None:
        """Give them the author's names, which stand in what is generated."""
        self.inputs[0]._rename(free("_".join(symbol.name for symbol in self.source.inputs)))
        for nodes, symbols in ((self.states, self.source.states), (self.parameters, self.source.parameters)):
            for node, symbol in zip(nodes, symbols, strict=True):
                node._rename(free(symbol.name))
        for node in self.draws:
            node._rename("draws")
        self.output_grad[0]._rename("output_gradient")
        for node, symbol in zip(self.state_grads, self.source.states, strict=True):
            node._rename(f"{symbol.name}_gradient")

    # -- which value belongs where ------------------------------------------------------------------------------

    def _kinds(self) -> dict[fx.Node, int]:
        kinds: dict[fx.Node, int] = {}
        for node in self.nodes:
            if node.op == "get_attr" or node in self.parameters:
                kinds[node] = ONCE
            elif node in self.states or node in self.state_grads:
                kinds[node] = STEP
            elif node.op == "placeholder" or _is_size(node):
                kinds[node] = INPUT
            else:
                kinds[node] = max((kinds[a] for a in node.all_input_nodes), default=ONCE)
        return kinds

    def _descendants(self, start: Iterable[fx.Node]) -> set[fx.Node]:
        found = set(start)
        for node in self.nodes:
            if any(a in found for a in node.all_input_nodes):
                found.add(node)
        return found

    def _forward(self) -> set[fx.Node]:
        """What the results need, and the other parts of their tuples (a norm's mean comes with its result)."""
        found = ancestors([*self.output, *self.new_states])
        parts = {n for n in self.nodes if n.target is operator.getitem and n.args[0] in found}
        for node in found | parts:
            if self.kind[node] != ONCE and node.op == "call_function" and not _is_size(node):
                self._check_rows(node)
        return found | parts

    def _check_rows(self, node: fx.Node) -> None:
        """A legality check: time can be folded into the rows only of values that have rows."""
        value = node.meta.get("val")
        if isinstance(value, Abstract) and not value.rows:
            raise FormulaError(
                f"cell {self.source.name}: {node.target} gives a value without the axis of the batch "
                f"({tuple(value.shape)}), so samples would be mixed. Keep rows: reduce over the features with dim=-1, "
                f"keepdim=True.\n  in {self.source.where}"
            )

    # -- sums and products, the early parts first ---------------------------------------------------------------

    def regroup(self) -> None:
        """Reorder sums and products so that what is known before the loop is combined before the loop.

        ``x @ U + h @ W + b`` becomes ``(x @ U + b) + h @ W``; in backward, ``gradient · s · (1 − s)`` becomes
        ``gradient · (s · (1 − s))``.
        """
        for target in (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor):
            for root in [n for n in self.nodes if self._is_link(n, target)]:
                if not self._is_inner(root, target):
                    self._regroup_chain(root, target)
        self.joint.graph.eliminate_dead_code()

    def _is_link(self, node: fx.Node, target: Any) -> bool:
        return node.target is target and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)

    def _is_inner(self, node: fx.Node, target: Any) -> bool:
        """Whether a link of a chain is read by nothing but the next link, in the same half of the program."""
        user = next(iter(node.users), None)
        return user is not None and len(node.users) == 1 and self._is_link(user, target) and self._same_half(node, user)

    def _same_half(self, a: fx.Node, b: fx.Node) -> bool:
        return (a in self.of_grad) == (b in self.of_grad)

    def _regroup_chain(self, root: fx.Node, target: Any) -> None:
        leaves: list[fx.Node] = []
        todo = [root]
        while todo:
            node = todo.pop()
            if node is root or (self._is_inner(node, target) and self._is_link(node, target)):
                todo.extend(a for a in reversed(node.args) if isinstance(a, fx.Node))
            else:
                leaves.append(node)
        backward = root in self.of_grad
        late = [3 if n in self.of_state_grad else INPUT if backward else self.kind[n] for n in leaves]
        if sum(value < max(late) for value in late) < 2:
            return
        ordered = [leaf for _, leaf in sorted(zip(late, leaves, strict=True), key=lambda pair: pair[0])]
        total, operation = ordered[0], target.overloadpacket.__name__
        for leaf in ordered[1:]:
            with self.joint.graph.inserting_before(root):
                value = _together(total.meta["val"], leaf.meta["val"])
                total = self.joint.graph.create_node("call_function", target, (total, leaf), name=operation)
                total.meta["val"] = value
        root.replace_all_uses_with(total)
        name = root.name
        root._rename(f"{name}_as_written")
        total._rename(name)
        self.kind[total] = self.kind[root]  # another chain may read it
        for of in (self.of_state_grad, self.of_grad):
            if root in of:
                of.add(total)

    # -- the stages ---------------------------------------------------------------------------------------------

    def _stage(self, members: set[fx.Node], wanted: Sequence[fx.Node]) -> Stage:
        """Copy ``members`` into a graph of their own; what they take from elsewhere becomes an input."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        rows = placeholder(graph, "rows")
        taken = [a for n in self.nodes if n in members for a in n.all_input_nodes]
        outside = dict.fromkeys(n for n in (*taken, *wanted) if n not in members and not _is_size(n))
        for node in outside:
            copies[node] = placeholder(graph, node.name)
            copies[node].meta = dict(node.meta)
        for node in self.nodes:
            if _is_size(node) and node.op != "placeholder":
                is_size_of = node.target is torch.ops.aten.sym_size.int
                copies[node] = rows if is_size_of else graph.node_copy(node, copies.__getitem__)
            elif node in members:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in wanted))
        graph.eliminate_dead_code()
        return Stage(graph, tuple(n.name for n in outside), tuple(n.name for n in wanted))

    def _used_by(self, members: set[fx.Node], others: set[fx.Node], also: Iterable[fx.Node]) -> list[fx.Node]:
        """The values of ``members`` that ``others`` read, or that are wanted themselves."""
        wanted = set(also)
        return [
            n
            for n in self.nodes
            if n in members and not isinstance(n.meta.get("val"), (tuple, list))
            if n in wanted or any(user in others for user in n.users)
        ]

    def program(self) -> Program:
        """Make the six stages and name what passes between them."""
        computed = {n for n in self.nodes if n.op == "call_function" and not _is_size(n)}
        forward = {k: {n for n in self.forward & computed if self.kind[n] == k} for k in (ONCE, INPUT, STEP)}
        backward = ancestors([*self.input_result, *self.state_results, *self.parameter_results])
        backward = (backward & computed) - self.forward
        loop = backward & self.of_state_grad & ancestors(self.state_results)
        before = (backward - loop) & ancestors(loop | set(self.state_results)) - self.of_state_grad
        after = backward - loop - before
        results = [*self.output, *self.new_states]
        self._move_into_loop(forward[INPUT], forward[STEP], products=self.products)
        self._move_after_into_loop(after, loop)
        self._move_sums_into_loop(after, loop)
        self._move_into_loop(before, loop, {n for n in before if any(user in after for user in n.users)})
        again = self._computed_again(forward[INPUT] | forward[STEP], backward, loop)
        loop |= again
        backward = backward | again
        for stage in (before, loop, after):  # a part comes with its tuple, which more than one of them may compute
            stage |= {a for n in stage if n.target is operator.getitem for a in n.all_input_nodes if a in backward}

        once = self._used_by(forward[ONCE], computed - forward[ONCE], results)
        per_input = self._used_by(forward[INPUT], forward[STEP] | backward, results)
        step = self._used_by(forward[STEP], backward, results)
        saved = [n for n in per_input + step if n not in again and any(user in backward for user in n.users)]
        carried = {*self.state_results, *self.input_result, *self.parameter_results}
        loop_out = self._used_by(loop | set(self.state_grads), after, carried)
        step_wanted = list(dict.fromkeys([*results, *(n for n in step if n in saved)]))
        passed = (*saved, *self.states, *self.output)
        return Program(
            name=self.source.name,
            input=self.inputs[0].name,
            states=tuple(n.name for n in self.states),
            parameters=tuple(n.name for n in self.parameters),
            draws=tuple(n.name for n in self.draws),
            sites=self.joint.sites,
            own_gradient=self.joint.own_gradient,
            trained=self.joint.trained,
            constants=self.joint.constants,
            once=self._stage(forward[ONCE], once),
            per_input=self._stage(forward[INPUT], per_input),
            step=self._stage(forward[STEP], step_wanted),
            output=self.output[0].name,
            new_states=tuple(n.name for n in self.new_states),
            saved_folded=tuple(n.name for n in saved if n in forward[INPUT]),
            saved_steps=tuple(n.name for n in saved if n in forward[STEP])
            + tuple(n.name for n in self.states if any(user in backward for user in n.users)),
            output_gradient=self.output_grad[0].name,
            state_gradients=tuple(n.name for n in self.state_grads),
            before=self._stage(before, self._used_by(before, loop | after, carried)),
            back_step=self._stage(loop, list(dict.fromkeys([*self.state_results, *loop_out]))),
            after=self._stage(after, list(dict.fromkeys([*self.input_result, *self.parameter_results]))),
            input_gradient=self.input_result[0].name,
            old_state_gradients=tuple(n.name for n in self.state_results),
            parameter_gradients=tuple(n.name for n in self.parameter_results),
            fixed=frozenset(n.name for n in self.nodes if self.kind[n] == ONCE),
            features={n.name: n.meta["val"].shape for n in passed},
            dtypes={n.name: n.meta["val"].dtype for n in passed},
        )

    # -- the fused loop -------------------------------------------------------------------------------------------

    def _fits(self, node: fx.Node, products: bool = False, within: Iterable[fx.Node] = ()) -> bool:
        """Whether a value of all steps can as well be computed step by step inside a fused loop.

        Forward's products can, for the loop takes them a chunk of steps at a time, which stays in cache. Whole numbers,
        which no loop stores, can if only what is ``within`` reads them.
        """
        value = node.meta.get("val")
        tensors = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Abstract)]
        outside = self.kind[node] == ONCE or (node.target in PRODUCTS and not products)
        whole = any(not t.dtype.is_floating_point and t.dtype != torch.bool for t in tensors)
        there = all(t.rows for t in tensors) and (not whole or set(node.users) <= set(within))
        return not outside and there and self.in_loop(node)

    def _move_into_loop(
        self, stage: set[fx.Node], loop: set[fx.Node], read_after: Iterable[fx.Node] = (), products: bool = False
    ) -> None:
        """Leave before the loop only what has to be there, and what that is made of.

        What is ``read_after`` the loop stays: at steps that are not real the loop leaves zeros, right for gradients.
        """
        within = stage | loop
        stay = {*read_after} | {n for n in stage if not self._fits(n, products, within)}
        moved = stage - ancestors(stay)
        moved -= {n for n in moved if n.target is operator.getitem and n.args[0] not in moved}  # a part, not the tuple
        stage -= moved
        loop |= moved

    def _move_after_into_loop(self, after: set[fx.Node], loop: set[fx.Node]) -> None:
        """Take arithmetic on rows from behind the loop, as far as nothing before it has to stay behind."""
        for node in self.nodes:
            ready = node in after and node in self.of_grad and not any(a in after for a in node.all_input_nodes)
            if ready and self._fits(node):
                after.discard(node)
                loop.add(node)

    def _move_sums_into_loop(self, after: set[fx.Node], loop: set[fx.Node]) -> None:
        """Add up over all rows inside the loop, where the rows are at hand: a bias's gradient, a norm's gain's."""
        for node in self.nodes:
            if node in after and node.target is aten.sum.dim_IntList and node.args[1] == [0] and self.in_loop(node):
                needed = ancestors(node.all_input_nodes) & after
                if all(map(self._fits, needed)):
                    after -= {node, *needed}
                    loop |= {node, *needed}

    def _computed_again(self, forward: set[fx.Node], backward: set[fx.Node], loop: set[fx.Node]) -> set[fx.Node]:
        """What backward computes again instead of reading it: one cheap operation on what is saved anyway.

        Not what it compares with another number of forward, a maximum with what it is the maximum of: computed again,
        or not rounded to be saved, one of the two may be another in its last bit.
        """
        needed = {n for n in forward if any(user in backward for user in n.users)}
        compared = self._compared(backward)
        again: set[fx.Node] = set()

        def there(node: fx.Node) -> bool:
            placeholder = node.op == "placeholder" and (
                node not in self.states or any(u in backward for u in node.users)
            )
            return placeholder or self.kind[node] == ONCE or _is_size(node) or (node in needed | again)

        for node in self.nodes:
            if node in needed and not isinstance(node.meta.get("val"), (tuple, list)):
                parts = [node, *(a for a in node.all_input_nodes if node.target is operator.getitem)]
                inputs = [a for n in parts for a in n.all_input_nodes if a not in parts]
                only_loop = all(user in loop for user in node.users if user in backward)
                again_there = node not in compared and self._fits(node) and all(map(there, inputs))
                if only_loop and parts[-1].target in CHEAP and again_there:
                    needed.discard(node)
                    again.update(parts)
        return again

    def _compared(self, members: set[fx.Node]) -> set[fx.Node]:
        """What is compared for being equal, or what members and moves make that of."""
        found: set[fx.Node] = set()
        todo = [a for n in members if n.target in EQUALITIES for a in n.all_input_nodes]
        while todo:
            node = todo.pop()
            if node in members or node.target in MOVES or node.target is operator.getitem:
                todo.extend(node.all_input_nodes)
            else:
                found.add(node)
        return found
