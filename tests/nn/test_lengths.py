"""Lengths: what is accepted, what is refused and how, and that transforms see the same mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pellucid.nn import lengths

OWNER = torch.nn.Identity()


@pytest.mark.parametrize(
    "given",
    [
        [3, 0, 5],
        (3, 0, 5),
        np.array([3, 0, 5], dtype=np.int32),
        torch.tensor([3, 0, 5]),
        torch.tensor([3, 0, 5], dtype=torch.int32),
        torch.tensor([3, 0, 5], dtype=torch.uint8),
        torch.tensor([3, 9, 0, 9, 5])[::2],
    ],
    ids=["list", "tuple", "numpy", "int64", "int32", "uint8", "strided"],
)
def test_whole_numbers_of_every_kind(given):
    checked = lengths.check(given, 3, 5, OWNER)
    assert checked.dtype == torch.int64
    assert checked.tolist() == [3, 0, 5]


def test_one_number_is_a_batch_of_one():
    assert lengths.check(4, 1, 5, OWNER).tolist() == [4]
    assert lengths.check(torch.tensor(4), 1, 5, OWNER).tolist() == [4]


def test_no_sequence_at_all():
    assert lengths.check([], 0, 5, OWNER).shape == (0,)
    assert lengths.mask(lengths.check([], 0, 5, OWNER), 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([3, 6, 1], RuntimeError, ("lengths[1] is 6", "exceeds the 5 steps")),
        ([3, 5, -1], RuntimeError, ("lengths[2] is -1", "negative")),
        ([3, 5], RuntimeError, ("shape (2,)", "batch of 3")),
        (torch.ones(3, 1, dtype=torch.long), RuntimeError, ("shape (3, 1)", "batch of 3")),
        (4, RuntimeError, ("shape ()", "batch of 3")),
        ([3.0, 5.0, 1.0], TypeError, ("torch.float32", "whole number")),
        (torch.tensor([True, True, False]), TypeError, ("torch.bool", "whole number")),
        ("335", TypeError, ("'335'", "list of integers")),
        (None, TypeError, ("None", "list of integers")),
        ([[1], [2, 3]], TypeError, ("list of integers",)),
    ],
    ids=str,
)
def test_refused(given, error, words):
    with pytest.raises(error) as caught:
        lengths.check(given, 3, 5, OWNER)
    for word in ("Identity", *words):
        assert word in str(caught.value)


def test_result_goes_where_it_is_asked_for():
    assert lengths.check([3, 0, 5], 3, 5, OWNER, device="meta").device.type == "meta"
    unreadable = torch.tensor([3, 9], device="meta")
    assert lengths.check(unreadable, 2, 5, OWNER).device.type == "meta"


def test_small_integers_are_compared_with_long_inputs():
    assert lengths.check(torch.tensor([200], dtype=torch.uint8), 1, 300, OWNER).tolist() == [200]
    with pytest.raises(RuntimeError, match="negative"):
        lengths.check(torch.tensor([-1], dtype=torch.int8), 1, 300, OWNER)


def test_mask():
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    assert lengths.mask(torch.tensor([2, 0, 3]), 3).tolist() == expected


def masked_sum(x, given):
    checked = lengths.check(given, x.shape[0], x.shape[1], OWNER, x.device)
    return torch.where(lengths.mask(checked, x.shape[1]), x, 0.0).sum(1)


def test_transforms():
    x = torch.randn(2, 3, 5)
    given = torch.tensor([[1, 5, 0], [2, 2, 3]])
    expected = torch.stack([masked_sum(a, b) for a, b in zip(x, given, strict=True)])
    torch.testing.assert_close(torch.vmap(masked_sum)(x, given), expected)
    compiled = torch.compile(masked_sum, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x[0], given[0]), expected[0])
    grad = torch.func.grad(lambda x: masked_sum(x, given[0]).sum())(x[0])
    assert torch.equal(grad, lengths.mask(given[0], 5).float())
