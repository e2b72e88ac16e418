"""Dropout: values, draws, threshold, mask and result, entry under entry."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pellucid.explanation.figure.grid import HIGH, NARROWEST, number_text, swatch
from pellucid.explanation.figure.measure import cut, lines, widest
from pellucid.explanation.figure.sheet import Sheet, flowing
from pellucid.explanation.report import Rows
from pellucid.explanation.typesetting import decimals

MOST = 12  # entries that are drawn at most


def rows_sheet(rows: Rows, room: float, words: Mapping[str, str]) -> Sheet:
    """Draw the five rows; what is dropped is dashed and stays empty-handed, what is kept is hatched."""
    dropped = ~np.asarray(rows.mask.numbers, bool).ravel()
    labels = [rows.values.name, rows.draws.name, rows.threshold_label, rows.mask.name, rows.result.name]
    margin = min(200.0, widest(labels, "name")) + 14
    draws = rows.draws.numbers.ravel()
    compared = [("<" if d else "≥") for d in dropped]
    values = (rows.values.numbers, draws, rows.mask.numbers.astype(int), rows.result.numbers)
    x, drawn, mask, result = ([number_text(float(n), decimals(v)) for n in v.ravel()[:MOST]] for v in values)
    table = [x, drawn, compared[:MOST], mask, result]
    wide = max(NARROWEST, widest([n for row in table for n in row], "number") + 12)
    fitting = max(1, min(MOST, int((room - margin) // wide)))
    sheet = Sheet()
    for index, (label, row) in enumerate(zip(labels, table, strict=True)):
        y = index * (HIGH + 10)
        sheet.text(0, y + 16, cut(label, 200, "name"), "name")
        boxes = [(margin + column * wide, y, wide, HIGH) for column in range(min(fitting, len(row)))]
        kept = [box for box, out in zip(boxes, dropped, strict=False) if not out]
        gone = [box for box, out in zip(boxes, dropped, strict=False) if out]
        if index < 2:
            sheet.box("plain", *boxes)
        elif index > 2:
            sheet.box("cool", *kept)
            sheet.hatch("hatch", *kept)
            sheet.box("dashed", *gone)
        for column, text in enumerate(row[:fitting]):
            sheet.text(margin + (column + 0.5) * wide, y + 16, text, "number", "middle")
    y = sheet.height + 16
    total = len(dropped)
    if total > min(fitting, MOST):
        shown = words["showing"].format(shown=min(fitting, MOST), total=f"{total:,}")
        sheet.text(0, y + 8, shown, "small")
        y += 20
    for line in lines(rows.note, max(300.0, min(room, max(sheet.width, 460.0))), "text"):
        sheet.text(0, y + 8, line, "text")
        y += 18
    legend = [swatch("touched", rows.legend["kept"]), swatch("padding", rows.legend["dropped"])]
    sheet.put(0, y, flowing(legend, room, 16))
    return sheet
