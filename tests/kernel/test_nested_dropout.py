"""Row programs of the dropouts: their masks are the reference's, however they are computed, and independent."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from pellucid.kernel import memory, random
from pellucid.kernel.rows import nested, nested_c
from pellucid.nn.dropout import dropout
from row_programs import LAYOUTS, few, lay, rounded_once

DROPOUTS = [
    ("Dropout", {}, (7, 33, 5), ()),
    ("Dropout1d", {}, (7, 9, 65), (2,)),
    ("Dropout2d", {}, (5, 9, 4, 7), (2, 3)),
    ("Dropout3d", {}, (5, 9, 4, 3, 2), (2, 3, 4)),
    ("LockedDropout", {}, (6, 5, 33), (0,)),
    ("LockedDropout", {"batch_first": True}, (5, 6, 33), (1,)),
    ("DropPath", {}, (65, 3, 2), (1, 2)),
    ("AlphaDropout", {}, (7, 33, 5), ()),
    ("FeatureAlphaDropout", {}, (7, 9, 5), (2,)),
]
dropouts = pytest.mark.parametrize(
    ("name", "options", "shape", "shared"), DROPOUTS, ids=[f"{d[0]}{'-bf' * bool(d[1])}" for d in DROPOUTS]
)


def by_definition(layer, x: torch.Tensor, seed: int, call: int, shared: tuple[int, ...], p: float) -> torch.Tensor:
    """The layer's formula of the reference's uniform numbers."""
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    draws = random.uniform(shape, torch.tensor(seed), stream=torch.tensor(call))
    return layer.formula(x=x, draws=draws, p=p)


@dropouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_is_the_reference_s(ran, threads, monkeypatch, name, options, shape, shared, dtype):
    """For every number of threads, layout and backend, in forward and backward."""
    monkeypatch.setattr("pellucid.kernel.threads.OPERATIONS_FOR_A_THREAD", 1)
    monkeypatch.setattr(nested_c, "ENTRIES_OF_A_PART", 64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = by_definition(getattr(nn, name)(0.3, **options), x.double(), 5, 0, shared, 0.3)
    scale = by_definition(getattr(nn, name)(0.3, **options), x.double() + 1, 5, 0, shared, 0.3) - wanted
    for number, layout in itertools.product((1, 2, 3), LAYOUTS[:5]):
        threads(number)
        nested._bound.clear()
        layer = getattr(nn, name)(0.3, seed=5, **options)
        given = lay(x, layout, 1).detach().requires_grad_()
        with memory.poison():
            y = layer(given)
            y.sum().backward()
        assert ran.take() == ["forward", "backward"]
        rounded_once(y.detach(), wanted, 1e-6)
        rounded_once(given.grad, scale, 1e-6)
    with pellucid.backend("stepwise"):
        y = getattr(nn, name)(0.3, seed=5, **options)(x)
    assert not ran
    rounded_once(y, wanted, 0.1 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(y == 0, wanted == 0)


@few
@given(data=st.data())
def test_numbers_do_not_depend_on_how_they_are_split(ran, data):
    """A tensor's mask, piece by piece from offsets."""
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 3, 17, 64, 1030]))
    x = torch.ones(rows, columns)
    seed = data.draw(st.integers(0, 2**63 - 1))
    y = nn.Dropout(0.4, seed=seed)(x)
    cut = data.draw(st.integers(0, x.numel()))
    pieces = [random.uniform((count,), seed, offset=first) for first, count in ((0, cut), (cut, x.numel() - cut))]
    assert torch.equal(y.flatten() != 0, torch.cat(pieces) >= 0.4)
    assert len(ran) == 1
    ran.clear()


@dropouts
def test_second_call_p_0_p_1_and_inplace(ran, name, options, shape, shared):
    x = torch.randn(shape)
    layer = getattr(nn, name)(0.3, seed=5, **options)
    layer(x)
    torch.testing.assert_close(layer(x), by_definition(layer, x, 5, 1, shared, 0.3), rtol=1e-6, atol=1e-6)
    assert layer.eval()(x) is x
    assert getattr(nn, name)(0.0, **options)(x) is x
    assert ran.take() == ["inference"] * 2
    assert not getattr(nn, name)(1.0, **options)(x).any()
    given = x.clone()
    y = getattr(nn, name)(0.3, True, seed=5, **options)(given)
    assert y is given
    torch.testing.assert_close(y, by_definition(layer.train(), x, 5, 0, shared, 0.3), rtol=1e-6, atol=1e-6)


def chi_square(counts: torch.Tensor, chances: torch.Tensor) -> float:
    """Pearson's statistic, and how many standard deviations it lies above its mean."""
    wanted = counts.sum() * chances
    statistic, freedom = float(((counts - wanted) ** 2 / wanted).sum()), counts.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("small", [0, 2**30], ids=["kernel", "default"])
def test_independence_by_chi_square(monkeypatch, p, small):
    """Rate, neighbours in a row, in a column and at longer distances, calls, layers of other seeds; seeds are fixed."""
    monkeypatch.setattr(dropout, "FEW_COINS", small)
    x = torch.ones(256, 512)
    first, other = nn.Dropout(p, seed=11), nn.Dropout(p, seed=12)
    kept = [layer(x) != 0 for layer in (first, first, other)]
    chances = torch.tensor([p, 1 - p], dtype=torch.float64)
    pairs = {f"at distance {d}": (kept[0].flatten()[:-d], kept[0].flatten()[d:]) for d in (1, 2, 3, 4, 8, 512, 1024)}
    pairs |= {"of calls": (kept[0], kept[1]), "of layers": (kept[0], kept[2])}
    assert chi_square(torch.bincount(kept[0].flatten().long()).double(), chances) < 8
    for what, (a, b) in pairs.items():
        counts = torch.bincount((a.long() * 2 + b).flatten(), minlength=4).double()
        assert chi_square(counts, torch.outer(chances, chances).flatten()) < 8, what
    rows = kept[0].sum(1).double()  # a row's count is binomial
    assert abs(float(((rows - 512 * (1 - p)) ** 2 / (512 * p * (1 - p))).sum()) - 256) < 6 * math.sqrt(512)
    runs = torch.bincount((kept[0].reshape(-1, 8).long() * 2 ** torch.arange(8)).sum(1), minlength=256).double()
    ones = torch.tensor([bin(pattern).count("1") for pattern in range(256)], dtype=torch.float64)
    patterns = (1 - p) ** ones * p ** (8 - ones)
    often = patterns * runs.sum() > 5
    counts, chances = (
        torch.cat([t[often], t[~often].sum().reshape(1)]) if not often.all() else t for t in (runs, patterns)
    )
    assert chi_square(counts, chances) < 6
