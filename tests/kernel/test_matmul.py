"""Products of all steps at once: every layout and size against float64, shared among threads, in memory of NaN."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.kernel import matmul, memory, threads

SIZES = (1, 2, 5, 6, 7, 16, 63, 64, 65, 145, 256, 257, 300, 520)


@pytest.fixture(params=[1, 2, 3])
def sharing(request, monkeypatch):
    monkeypatch.setattr(threads, "OPERATIONS_FOR_A_THREAD", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def lay(rows, columns, layout, dtype, seed):
    """A matrix as it may come: row by row, column by column, a part of a larger one, or with gaps both ways."""
    generator = torch.Generator().manual_seed(seed)
    shape, cut = {
        "rows": ((rows, columns), lambda m: m),
        "columns": ((columns, rows), lambda m: m.t()),
        "part": ((rows + 2, columns + 3), lambda m: m[1:-1, 2:-1]),
        "gaps": ((2 * rows, 3 * columns), lambda m: m[::2, ::3]),
    }[layout]
    return cut(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def pairs(shapes, layouts, dtype):
    """Two matrices for every (rows, depth, width)."""
    first, second = layouts
    return [(lay(m, k, first, dtype, 1), lay(k, n, second, dtype, 2)) for m, k, n in shapes]


def check(pairs):
    dtype = pairs[0][0].dtype
    with memory.poison():
        found = matmul.multiply([((a, False), (b.t(), True)) for a, b in pairs])
    for (a, b), result in zip(pairs, found, strict=True):
        assert result.dtype == dtype
        assert result.is_contiguous()
        # Each of the products that are summed is rounded, and the sum after it.
        allowed = 2 * torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs()) * max(1, a.shape[1]) ** 0.5
        assert ((result.double() - a.double() @ b.double()).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layouts", list(itertools.product(("rows", "columns", "part", "gaps"), repeat=2)), ids="-".join
)
def test_every_layout(sharing, layouts, dtype):
    check(pairs(((145, 257, 65), (7, 300, 63), (6, 16, 64), (1, 5, 1)), layouts, dtype))


@settings(max_examples=40, deadline=None)
@given(*(st.sampled_from(SIZES) for _ in range(3)), *(st.sampled_from(("rows", "columns")) for _ in range(2)))
def test_every_size(rows, depth, width, first, second):
    check(pairs([(rows, depth, width)], (first, second), torch.float32))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_nothing_to_multiply(shape):
    rows, depth, width = shape
    (result,) = matmul.multiply([((torch.randn(rows, depth), False), (torch.randn(depth, width), False))])
    assert torch.equal(result, torch.zeros(rows, width))


def test_nan_and_infinity_come_out():
    a, b = torch.ones(7, 300), torch.ones(300, 65)
    a[3, 299], b[0, 64] = torch.nan, torch.inf
    (result,) = matmul.multiply([((a, False), (b, False))])
    torch.testing.assert_close(result, a @ b, equal_nan=True)
