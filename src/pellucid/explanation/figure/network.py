"""The unrolled network: a column a step, arrows along time, and the weights that all steps share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pellucid.explanation.figure.measure import cut, lines, visible, widest, width
from pellucid.explanation.figure.sheet import Sheet
from pellucid.explanation.report import Arrow, Moment, Unrolled

LONGEST = 150.0  # of a name that is written whole
LINE = 14.0  # from one line of small text to the next
RISE = 34.0  # of an arrow from below


def network_sheet(network: Unrolled, room: float, words: Mapping[str, str]) -> Sheet:
    """Draw as many steps as find room, the last one always."""
    return _Drawing(network, room, words).sheet


class _Drawing:
    def __init__(self, network: Unrolled, room: float, words: Mapping[str, str]) -> None:
        self.network, self.room, self.words = network, room, words
        self.sheet = Sheet()
        self.weights = {name: cut(f"{name} {shape}", LONGEST, "size") for name, shape in network.weights}
        self.moments = list(network.moments)
        self.measure()
        self.draw()

    def on(self, arrow: Arrow) -> list[str]:
        """The weights at an arrow, with their sizes."""
        return [self.weights[name] for name in arrow.weights]

    # -- sizes --------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Find out how wide a cell and the gap between two must be, and how many steps then find room."""
        network = self.network
        self.inside = [self.weights[name] for name in network.inside]
        state_labels = [
            _width(name, arrow)
            for moment in self.moments
            for names in (moment.before, moment.after)
            for name, arrow in zip(names, network.states, strict=True)
        ]
        on_states = [weight for arrow in network.states for weight in self.on(arrow)]
        self.gap = 18 + max(max(state_labels), widest(on_states, "size"))
        columns = len(network.inputs)
        spare = self.gap - 8 if columns == 1 else 0  # one input's weights may reach under the gap
        slots = [
            max(_width(name, arrow) + 14, 2 * (widest(self.on(arrow), "size") + 12) - spare)
            for moment in self.moments
            for name, arrow in zip(moment.inputs, network.inputs, strict=True)
        ]
        outputs = [_width(moment.output, network.output) for moment in self.moments]
        name = min(width(network.cell, "name"), LONGEST)
        self.cell = max(64.0, name + 24, widest(self.inside, "size") + 16, max(outputs) + 22, max(slots) * columns)
        self.rows = [26 + LINE * len(arrow.weights) + 8 for arrow in network.states]
        self.cell_height = max(sum(self.rows), 30 + LINE * len(self.inside) + 8)
        self.rise = max(RISE, LINE * max(len(arrow.weights) for arrow in network.inputs) + 18)
        while len(self.moments) > 2 and self.whole() > self.room:
            self.moments = [*self.moments[:-2], self.moments[-1]]

    @property
    def left_out(self) -> str:
        """How many steps are not drawn."""
        count = self.network.steps - len(self.moments)
        return self.words["left_out"].format(count=f"{count:,}") if count else ""

    @property
    def hole(self) -> float:
        """The room for the steps that are left out."""
        return width(self.left_out, "small") + 16 if self.left_out else 0.0

    def whole(self) -> float:
        """The width of everything."""
        steps = len(self.moments)
        return self.gap + steps * (self.cell + self.gap) + (self.hole + self.gap if self.left_out else 0)

    # -- drawing ------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw the weights above, then one column a step."""
        bar = self.bar()
        top = bar + 52
        x = self.gap
        for index, moment in enumerate(self.moments):
            last = index == len(self.moments) - 1
            if last and self.left_out:
                self.states(x - self.gap, top, self.moments[index - 1].after, weights=False)
                middle = x + self.hole / 2
                self.sheet.text(middle, top + self.cell_height / 2 - 4, "…", "title", "middle")
                self.sheet.text(middle, top + self.cell_height / 2 + 16, self.left_out, "small", "middle")
                x += self.hole + self.gap
            self.column(x, bar, top, moment)
            x += self.cell + self.gap
        self.states(x - self.gap, top, self.moments[-1].after, weights=False)

    def bar(self) -> float:
        """Write the shared weights over the whole width; return where the bar ends."""
        if not self.weights:
            return 0.0
        content = " · ".join(self.weights.values())
        note = width(self.network.shared, "small")
        wide = self.whole()
        rows = lines(content, wide - note - 36, "size", 3)
        high = 10 + LINE * len(rows)
        self.sheet.box("panel", (0, 0, wide, high), radius=4)
        for index, row in enumerate(rows):
            self.sheet.text(10, 15 + LINE * index, row, "size")
        self.sheet.text(wide - 10, 15, self.network.shared, "small", "end")
        return high

    def column(self, x: float, bar: float, top: float, moment: Moment) -> None:
        """Draw one step: what enters from below and from the left, the cell, what leaves above."""
        sheet, middle, bottom = self.sheet, x + self.cell / 2, top + self.cell_height
        self.states(x - self.gap, top, moment.before)
        sheet.box("cell", (x, top, self.cell, self.cell_height), radius=6)
        sheet.text(middle, top + 19, cut(self.network.cell, LONGEST, "name"), "name", "middle")
        for index, weight in enumerate(self.inside):
            sheet.text(middle, top + 38 + LINE * index, weight, "size", "middle")
        if bar:
            sheet.line((x + self.cell - 5, bar), (x + self.cell - 5, top), kind="thin")
        sheet.arrow((middle, top), (middle, top - 26))
        _named(sheet, middle, top - 32, moment.output, self.network.output)
        slot = self.cell / len(moment.inputs)
        for index, (name, arrow) in enumerate(zip(moment.inputs, self.network.inputs, strict=True)):
            center = x + slot * (index + 0.5)
            sheet.arrow((center, bottom + self.rise), (center, bottom))
            for line, weight in enumerate(self.on(arrow)):
                sheet.text(center + 8, bottom + 20 + LINE * line, weight, "size")
            _named(sheet, center, bottom + self.rise + 15, name, arrow)
        if moment.token:
            token = cut(visible(moment.token), self.cell + self.gap - 16, "name")
            wide = max(26.0, width(token, "name") + 12)
            sheet.box("panel", (middle - wide / 2, bottom + self.rise + 24, wide, 24), radius=4)
            sheet.text(middle, bottom + self.rise + 40, token, "name", "middle")

    def states(self, x: float, top: float, names: Sequence[str], weights: bool = True) -> None:
        """Draw the state's arrows over one gap, each with its weights where it enters a cell."""
        y = top
        for name, arrow, high in zip(names, self.network.states, self.rows, strict=True):
            center = x + self.gap / 2
            _named(self.sheet, center, y + 14, name, arrow)
            self.sheet.arrow((x + 4, y + 21), (x + self.gap - 1, y + 21))
            for line, weight in enumerate(self.on(arrow) if weights else ()):
                self.sheet.text(center, y + 35 + LINE * line, weight, "size", "middle")
            y += high


def _width(name: str, arrow: Arrow) -> float:
    return min(LONGEST, width(name, "name")) + 6 + width(arrow.shape_text, "size")


def _named(sheet: Sheet, x: float, y: float, name: str, arrow: Arrow) -> None:
    """Write a name and its shape, together centered on x."""
    whole = _width(name, arrow)
    sheet.text(x - whole / 2, y, cut(name, LONGEST, "name"), "name")
    sheet.text(x + whole / 2, y, arrow.shape_text, "size", "end")
