"""The tree of a model as text: two lines a layer, what it is and what it costs, then what goes in and comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pellucid.explanation.model.tree import LINES, LayerRow, ModelReport, TensorRow, Weight
from pellucid.explanation.terminal import Sheet, written
from pellucid.explanation.typesetting import columns, pad, printable, wrapped

WIDEST = 140
NAMES = 24  # columns of the names, at least, where numbers stand beside them
LISTED = 4  # tensors of a call, weights of a layer
UNITS = ("", " K", " M", " G", " T", " P")
MARK = "▸"


def text(report: ModelReport, width: int = 100, depth: int | None = None) -> str:
    """Return the report as plain text of at most ``width`` columns."""
    return "\n".join(written(width, lambda console: write(report, console, depth))) + "\n"


def write(report: ModelReport, console: Console, depth: int | None = None) -> None:
    """Write the report to a console."""
    page = _Page(report, console, min(console.width, WIDEST), shown_depth(report.root) if depth is None else depth)
    page.all()


def shown_depth(root: LayerRow) -> int:
    """Return the greatest depth down to which the layers fit into the lines of a text, at least 1."""
    depth, deepest = 1, deepest_of(root)
    while depth < deepest and sum(1 for _ in root.walk(depth + 1)) <= LINES:
        depth += 1
    return depth


def deepest_of(row: LayerRow) -> int:
    """Return how many levels of layers are inside a layer."""
    return 1 + max(map(deepest_of, row.layers)) if row.layers else 0


def short(count: int) -> str:
    """Write a number with three significant digits: 1.82 G; small ones whole."""
    size, value = 0, float(count)
    while float(f"{value:.3g}") >= 1000 and size < len(UNITS) - 1:
        size, value = size + 1, value / 1000
    return f"{count:,}" if size == 0 else f"{value:.{max(0, 3 - len(str(int(value))))}f}{UNITS[size]}"


def byte_count(count: int) -> str:
    """Write a number of bytes: 1.82 GB, 48 B."""
    written = short(count)
    return f"{written}B" if " " in written else f"{written} B"


def seconds(value: float | None) -> str:
    """Write a time."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value / size < 999.5 else f"{value / size:.0f} {unit}"
    return f"{value * 1e6:.3g} µs"


def numbers(row: LayerRow) -> tuple[str, ...]:
    """Write parameters, MACs, FLOPs, bytes and time of a layer; nothing where it has no numbers of its own."""
    if row.shared:
        return ("",) * 5
    if not row.calls and not row.layers:
        return (f"{row.parameters:,}" if row.parameters else "", "", "", "", "")
    counts = (f"{row.parameters:,}", short(row.macs), short(row.flops), byte_count(row.bytes_least))
    return (*counts, seconds(row.seconds))


def label(row: LayerRow) -> str:
    """Name a layer: ``rnn: LSTM``, with a mark if it opens."""
    name = printable(f"{row.name}: {row.class_name}" if row.name else row.class_name)
    return f"{name} {MARK}" if row.opens else name


def tensor_text(tensor: TensorRow) -> str:
    """Write a tensor with its name among several."""
    return printable(f"{tensor.name} {tensor.text}" if tensor.name else tensor.text)


def flow(row: LayerRow, words: Mapping[str, str]) -> tuple[str, str]:
    """Write what goes in and what comes out; the name of a single input says nothing."""

    def listed(tensors: Sequence[TensorRow]) -> str:
        alone = len(tensors) == 1
        parts = [printable(t.text) if alone and not t.name.count(".") else tensor_text(t) for t in tensors[:LISTED]]
        more = [words["more_tensors"].format(n=len(tensors) - LISTED)] if len(tensors) > LISTED else []
        return words["semicolon"].join([*parts, *more])

    return listed(row.inputs), listed(row.outputs)


def weight_text(weight: Weight, words: Mapping[str, str]) -> str:
    """Write a parameter: its name, shape, whether it is fixed, and whose it is."""
    text = f"{weight.name} {weight.shape_text}"
    if not weight.trainable:
        text += words["fixed"]
    return printable(f"{text} {words['same'].format(path=weight.shared)}" if weight.shared else text)


class _Page(Sheet):
    def __init__(self, report: ModelReport, console: Console, width: int, depth: int) -> None:
        super().__init__(console, width, report.words)
        self.report, self.depth, self.deepest = report, depth, deepest_of(report.root)

    def all(self) -> None:
        report = self.report
        self.title(printable(report.title))
        self.line("═" * min(self.width, cell_len(report.title)))
        self.paragraph(printable(report.subject))
        self.heading("layers")
        self.tree()
        if self.depth < self.deepest:
            self.line()
            self.line(self.words["cut"].format(depth=self.depth, deepest=self.deepest))
        self.totals(report.totals)
        for key, sentences in (("counted", report.counted), ("notes", report.notes)):
            if sentences:
                self.heading(key)
            for sentence in sentences:
                self.paragraph(printable(sentence), "• ", "  ")

    # -- the tree -----------------------------------------------------------------------------------------------

    def tree(self) -> None:
        found = list(self.branches(self.report.root, "", "", self.depth))
        heads = [self.words[key] for key in ("parameters", "macs", "flops", "bytes", "time")]
        table = columns([heads, *(numbers(row) for _, _, row in found)], "rrrrr")
        right = max(map(cell_len, table))
        if NAMES + 2 + right > self.width:  # no room beside the names
            for lead, rest, row in found:
                under = [f"{head} {number}" for head, number in zip(heads, numbers(row), strict=True) if number]
                self.layer(lead, rest, row, "", self.width, under)
            return
        left = max(NAMES, min(self.width - right - 2, max(cell_len(lead + label(row)) for lead, _, row in found)))
        self.line(pad(self.words["layer"], left + 2) + table[0], "bold")
        for (lead, rest, row), cells in zip(found, table[1:], strict=True):
            self.layer(lead, rest, row, cells, left)

    def branches(self, row: LayerRow, lead: str, rest: str, depth: int) -> Iterator[tuple[str, str, LayerRow]]:
        """Return the layers with what stands before their first line and before the next ones."""
        inside = row.layers if depth > 0 else ()
        yield lead, rest + ("│ " if inside else "  "), row
        for index, layer in enumerate(inside):
            last = index == len(inside) - 1
            yield from self.branches(layer, rest + ("└─" if last else "├─"), rest + ("  " if last else "│ "), depth - 1)

    def layer(self, lead: str, rest: str, row: LayerRow, cells: str, left: int, under: Sequence[str] = ()) -> None:
        *above, name = wrapped(label(row), left, lead, rest)
        for line in above:
            self.line(line, "bold")
        if cell_len(name) > left:  # a word longer than the column
            self.line(name, "bold")
            name = rest
        self.line(Text.assemble((pad(name, left) if cells else name, "bold"), f"  {cells}".rstrip()))
        if under:
            self.paragraph(", ".join(under), rest + "  ", rest + "    ", "dim")
        for sentence in self.said(row):
            self.paragraph(sentence, rest + "  ", rest + "    ", "dim")

    def said(self, row: LayerRow) -> Iterator[str]:
        """What stands under a layer's line."""
        reads, gives = flow(row, self.words)
        if row.calls:
            calls = self.words["calls"].format(n=row.calls) + self.words["colon"] if row.calls > 1 else ""
            yield f"{calls}{reads} → {gives}"
        weights = [weight_text(weight, self.words) for weight in row.weights]
        if weights:
            more = [self.words["more_tensors"].format(n=len(weights) - LISTED)] if len(weights) > LISTED else []
            yield self.words["weights"] + self.words["colon"] + self.words["list"].join([*weights[:LISTED], *more])
        if row.formula and row.calls:
            yield row.formula
        if row.note:
            yield printable(row.note)
