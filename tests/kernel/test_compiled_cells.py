"""Every cell in C: its numbers against the reference, its random draws, its memory and its text."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import formulas
import pellucid
from goldens import golden
from pellucid.kernel import build, registry, threads
from pellucid.kernel.language.text_c import MOST_COLUMNS, headers
from pellucid.kernel.recurrence import compiled
from pellucid.kernel.recurrence.emit_c import emit
from pellucid.nn import cells
from running import CELLS, DTYPES, HALF, TIME, amplified, check, compare, inputs, make, run

# How a call is cut: as it comes; among two threads; among more threads than rows; into blocks of a few rows, chunks and
# calls of one step; without packing the matrices.
DIVISIONS = {
    "whole": {},
    "threads": {"OPERATIONS_FOR_A_THREAD": 1},
    "help": {"OPERATIONS_FOR_A_THREAD": 1, "MEETING": 0, "OPERATIONS_WITHOUT_A_PAUSE": 1},
    "pieces": {"BLOCK": 5, "AHEAD": 1, "OPERATIONS_WITHOUT_A_PAUSE": 1},
    "direct": {"DIRECT": 1000},
}
THREADS = {"threads": 2, "help": 4}


@pytest.fixture
def divide(monkeypatch):
    """Return a function that cuts the calls that follow as a division says."""

    def cut(name: str) -> None:
        for constant, value in DIVISIONS[name].items():
            monkeypatch.setattr(threads if constant == "OPERATIONS_FOR_A_THREAD" else compiled, constant, value)
        torch.set_num_threads(THREADS.get(name, 1))

    yield cut
    torch.set_num_threads(1)


# -- every cell against the reference -------------------------------------------------------------------------------

FACTORS = {
    "hidden": (1, 7, 63, 128, 257),
    "input": (7, 1, 128, 63, 257),
    "batch": (3, 1, 33),
    "dtype": DTYPES,
    "lengths": (False, True),
    "layers": (1, 2),
    "bidirectional": (False, True),
    "division": tuple(DIVISIONS),
}


def design():
    """A row for every cell and size of the state: any two values of two factors meet in one of them."""
    shuffle, rows = random.Random(21).shuffle, []  # few seeds will do; in some a single unit is saturated
    for cell in CELLS:
        columns = {"cell": [cell] * 5, "hidden": FACTORS["hidden"]}
        for factor, values in list(FACTORS.items())[1:]:
            columns[factor] = [values[i % len(values)] for i in range(5)]
            shuffle(columns[factor])
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows


def test_the_design_lets_any_two_values_meet():
    met = {pair for row in design() for pair in itertools.combinations(row.items(), 2)}
    for (a, first), (b, second) in itertools.combinations({"cell": tuple(CELLS), **FACTORS}.items(), 2):
        assert {((a, v), (b, w)) for v in first for w in second} <= met


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r['cell']}-{r['hidden']}") for r in design()])
def test_every_cell_is_the_reference(row, divide):
    divide(row["division"])
    options = {"num_layers": row["layers"], "bidirectional": row["bidirectional"]}
    layer = make(CELLS[row["cell"]], row["input"], row["hidden"], row["dtype"], **options)
    lengths = [(TIME - i) % (TIME + 1) for i in range(row["batch"])] if row["lengths"] else None
    compare(layer, lengths, row["batch"], row["dtype"])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_sixteen_bits(cell, dtype):
    """C stores in 16 bits and computes in 32: rounding what goes in does as much, or what torch does.

    Four draws may find less than two thirds of what twenty find, and nothing beyond that is allowed here.
    """
    layer, lengths = make(CELLS[cell], 5, 21, dtype), [3, 2, 1, 0, 3, 3, 3]
    given = inputs(layer, TIME, 7)
    expected = run(layer, given, lengths, "stepwise", torch.float64)
    check(layer, given, lengths, expected, amplified(layer, given, lengths, expected, dtype, draws=20))


# -- random draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize(
    "cell",
    [formulas.variational, formulas.noisy, formulas.zoned, formulas.shaken, cells.dale],
    ids=lambda cell: cell.source.name,
)
def test_draws_are_the_same_however_the_work_is_divided(cell, lengths, divide):
    layer = make(cell, 3, 9, bidirectional=True)
    given, real = inputs(layer, 6, 33), [i % 7 for i in range(33)] if lengths else None
    expected = [run(layer, given, real, backend, torch.float64) for backend in ("naive", "stepwise")]
    torch.testing.assert_close(*expected)
    for division in DIVISIONS:
        divide(division)
        torch.testing.assert_close(run(layer, given, real, "c", torch.float64), expected[0])


# -- memory ---------------------------------------------------------------------------------------------------------

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-g")
SANITIZED = """
import os, sys
os.environ.pop("LD_PRELOAD")  # not for the compiler
import torch
from pellucid.kernel import memory, threads
from pellucid.kernel.recurrence import compiled
sys.path[:0] = sys.argv[1], os.path.dirname(sys.argv[1])
import test_compiled_cells as tests

torch.set_num_threads(2)
memory.set_limit(0)  # every tensor from malloc, with red zones behind its last element
memory.ALIGNMENT = 1  # torch's memory is aligned; the work space has not a byte to spare
threads.OPERATIONS_FOR_A_THREAD, compiled.MEETING, compiled.BLOCK, compiled.DIRECT = 1, 0, 7, 4
for cell in sys.argv[2:]:
    layer = tests.make(tests.CELLS[cell], 5, 21, torch.float32)
    for lengths in (None, [4 - i % 5 for i in range(33)]):
        given = tests.inputs(layer, 4, len(lengths or [0]))
        tests.run(layer, given, lengths, "c", torch.float32)
    print(cell, flush=True)
import test_matmul
for layouts in ("rows", "columns"), ("columns", "rows"):
    shapes = ((145, 257, 65), (7, 300, 63), (1, 5, 1))
    test_matmul.check(test_matmul.pairs(shapes, layouts, torch.float32))
print("products", flush=True)
import windowing
windowing.sweep()
print("windows", flush=True)
"""


# Cells that have between them all that is written in a loop: compiling takes seconds there.
WATCHED = ("lstm_projected", "gru_original", "layernorm_lstm", "slstm", "cfc", "dale")


def sanitizer() -> str | None:
    """The library of AddressSanitizer, which has to be there before all others."""
    command = build.compiler()
    if command is None:
        return None
    said = subprocess.run([*command, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    return said.stdout.strip() if os.path.isabs(said.stdout.strip()) else None


def sanitized(names, folder):
    """Run cells in a process of their own, whose kernels watch over memory and arithmetic."""
    environment = {
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PELLUCID_CFLAGS": " ".join(SANITIZERS),
        "PELLUCID_CACHE": str(folder),
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, "-c", SANITIZED, str(Path(__file__).parent), *names],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sanitizer() is None, reason="the compiler has no AddressSanitizer")
def test_nothing_is_touched_outside_or_undefined(tmp_path):
    done = sanitized(WATCHED, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [*WATCHED, "products", "windows"]


# -- the text -------------------------------------------------------------------------------------------------------


def written(key, dtype=torch.float32):
    """The text of a training step."""
    return emit(registry.program(key, True, dtype, "cpu", fused=True), dtype, training=True).text


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "layernorm_lstm", "leaky"])
def test_golden(name):
    """The whole text without the headers."""
    text = written(make(CELLS[name], 40, 24, torch.float32)._keys[0])
    assert text.count(headers()) == 1
    text = text.replace(headers(), "// (the headers)\n")
    assert text == golden(f"{name}.c", text)


@pytest.mark.parametrize(
    ("cell", "computed"),
    [
        (cells.lstm_peephole, {"i": "vec_sigmoid", "f": "vec_sigmoid", "new_c": "mul", "new_h": "sigmoid"}),
        (formulas.counter, {"new_n": "mul"}),
        (formulas.crowded, {"step_": "vec_sigmoid", "asm_": "mul"}),
    ],
    ids=lambda value: value.source.name if isinstance(value, pellucid.Cell) else "",
)
def test_values_bear_the_names_of_the_authors_variables(cell, computed):
    """A variable that takes the name of a state is its new value."""
    forward = (
        written(make(cell, 40, 24, torch.float32)._keys[0]).replace(headers(), "").split("int64_t forward_work")[0]
    )
    for name, beginning in computed.items():
        assert len(re.findall(rf"const vec {name} = {beginning}", forward)) == 1, name


def test_what_is_recorded_bears_its_name_too():
    layer = make(cells.lstm_peephole, 40, 24, torch.float32)
    x = torch.randn(3, 2, 40)
    found = []
    for backend in ("naive", "c"):
        with pellucid.backend(backend):
            found.append(layer(x, record=("i",)))
    torch.testing.assert_close(found[1], found[0])
    assert ((found[1][2]["i"] > 0) & (found[1][2]["i"] < 1)).all()
    text = written(registry.recording_keys(layer._keys[0], ("i",))[0])
    assert "const vec i = vec_sigmoid" in text
    assert "const vec new_c = " in text


@pytest.mark.parametrize("name", CELLS)
def test_lines_are_no_longer_than_an_authors_may_be(name):
    dtype = torch.bfloat16  # the longest name
    text = written(make(CELLS[name], 200, 300, dtype)._keys[0], dtype)
    assert [line for line in text.splitlines() if len(line) > MOST_COLUMNS] == []
