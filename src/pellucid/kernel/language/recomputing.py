"""What may be computed again where it is read, instead of being kept in memory."""

from __future__ import annotations

from collections.abc import Container, Iterable

from pellucid.kernel.language.values import Value

CHEAP = set(
    "add sub mul neg square constant eq ne lt le gt ge and or xor not where from_mask relu abs copysign".split()
)
AS_CHEAP_AS_READING = 3  # operations


def cost_of(value: Value, free: Container[Value], dear: Container[Value], known: dict[Value, int] | None = None) -> int:
    """Operations that compute a value from what is in memory; more than any limit where one is dear.

    So is what is compared for being equal: one of two sweeps may round a product before it is added to. ``known`` are
    the costs that were found already.
    """
    known = {} if known is None else known
    if value.kind in ("memory", "draws", "number", "size", "first", "product", "reduce") or value in free:
        return 0
    if value not in known:
        own = 0 if value.kind != "math" else 1 if value.operation in CHEAP and value not in dear else 100
        known[value] = own + sum(cost_of(v, free, dear, known) for v in value.values)
    return known[value]


def compared(outputs: Iterable[Value]) -> set[Value]:
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
