"""Random numbers: the published vectors, one sequence however it is cut, and even statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.kernel import random
from pellucid.kernel.random import draw_seed, philox, round_keys, uniform

ONES = 0xFFFFFFFF

# The known-answer vectors that the authors of Philox publish with Random123 (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_vectors(counter, key, words):
    made = philox([torch.tensor(c) for c in counter], round_keys(*map(torch.tensor, key)))
    assert tuple(int(word) for word in made) == words


def test_uniform_lays_counter_and_key_out_as_documented():
    counter, key = (0x243F6A88, 0x85A308, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    words = philox([torch.tensor(c) for c in counter], round_keys(*map(torch.tensor, key)))
    seed, stream = key[0] | key[1] << 32, counter[2] | counter[3] << 32
    block = counter[0] | counter[1] << 32
    drawn = uniform((4,), seed, stream=stream, offset=4 * block, dtype=torch.float64)
    assert (drawn * 2**32).long().tolist() == [int(word) for word in words]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    seed=st.integers(-(2**63), 2**63 - 1),
    start=st.sampled_from([0, 1, 2, 3, 4, 2**33 + 5]),
)
def test_any_split_gives_the_same_numbers(sizes, seed, start):
    whole = uniform((sum(sizes),), seed, offset=start)
    parts, offset = [], start
    for size in sizes:
        parts.append(uniform((size,), seed, offset=offset))
        offset += size
    assert torch.equal(torch.cat(parts), whole)


def test_chunks_and_threads_do_not_show(monkeypatch):
    whole = uniform((1001,), 7)
    monkeypatch.setattr(random, "_chunk", lambda device: 16)
    assert torch.equal(uniform((1001,), 7), whole)
    assert torch.equal(uniform((998,), 7, offset=3), whole[3:])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(uniform((1001,), 7), whole)
    finally:
        torch.set_num_threads(threads)


def test_shape_only_arranges():
    assert torch.equal(uniform((3, 0, 2), 1), torch.empty(3, 0, 2))
    assert uniform((), 1).shape == ()
    assert torch.equal(uniform((3, 4, 5), 1).flatten(), uniform((60,), 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_rounds_the_same_draw_down(dtype):
    fine, drawn = uniform((100_000,), 3, dtype=torch.float64), uniform((100_000,), 3, dtype=dtype)
    assert drawn.dtype == dtype
    assert drawn.min() >= 0
    assert drawn.max() < 1
    below = fine - drawn.double()
    assert below.min() >= 0
    assert below.max() < torch.finfo(dtype).eps


def test_seed_of_64_bits_and_streams_all_differ():
    first = uniform((64,), 0)
    others = [uniform((64,), 1), uniform((64,), 2**32), uniform((64,), -1), uniform((64,), 0, stream=1)]
    others.append(uniform((64,), 0, stream=2**32))
    for other in others:
        assert (first == other).sum() <= 1
    assert torch.equal(uniform((64,), -1), uniform((64,), 2**64 - 1))
    assert torch.equal(uniform((64,), torch.tensor(5), stream=torch.tensor(9)), uniform((64,), 5, stream=9))


def test_the_numbers_are_even():
    """Moments and cells of 10^6 draws, each within what chance allows once in ten million."""
    count, cells = 1_000_000, 64
    drawn = uniform((count,), 12, dtype=torch.float64)
    deviations = 5.33
    assert abs(drawn.mean() - 0.5) < deviations * math.sqrt(1 / 12 / count)
    assert abs(drawn.var() - 1 / 12) < deviations * math.sqrt(1 / 180 / count)
    neighbours = (drawn[:-1] - 0.5) @ (drawn[1:] - 0.5) / (count - 1)
    assert abs(neighbours) < deviations / 12 / math.sqrt(count)
    filled = torch.histc(drawn, cells, 0, 1)
    free = cells - 1
    chi_square = float(((filled - count / cells) ** 2).sum() / (count / cells))
    spread = 2 / (9 * free)  # Wilson and Hilferty 1931: the cube root of chi-square is nearly normal
    assert abs((chi_square / free) ** (1 / 3) - (1 - spread)) < deviations * math.sqrt(spread)


def test_draw_seed_follows_torchs_generator():
    torch.manual_seed(4)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(4)
    assert torch.equal(draw_seed(), first)
    assert first.dtype == torch.int64
    assert not torch.equal(first, second)
    assert torch.equal(draw_seed(torch.Generator().manual_seed(4)), first)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_vmap(randomness):
    def function(x):
        seed = draw_seed()
        return uniform((5,), seed) + x, seed

    torch.manual_seed(0)
    drawn, seeds = torch.func.vmap(function, randomness=randomness)(torch.zeros(3))
    seeds = seeds.expand(3)
    for row, seed in zip(drawn, seeds, strict=True):
        assert torch.equal(row, uniform((5,), seed))
    assert torch.equal(drawn[0], drawn[1]) == (randomness == "same")


def test_vmap_over_chunks(monkeypatch):
    monkeypatch.setattr(random, "_chunk", lambda device: 4)
    drawn = torch.func.vmap(lambda seed: uniform((50,), seed))(torch.arange(3))
    assert torch.equal(drawn, torch.stack([uniform((50,), seed) for seed in range(3)]))


def test_compiles_whole_with_changing_sizes():
    compiled = torch.compile(
        lambda n, seed: uniform((n, 3), seed, offset=1), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n in (4, 9):
        assert torch.equal(compiled(n, torch.tensor(6)), uniform((n, 3), 6, offset=1))


def test_draw_seed_compiles():
    compiled = torch.compile(lambda x: x + draw_seed(), fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first = compiled(torch.zeros((), dtype=torch.int64))
    torch.manual_seed(1)
    assert torch.equal(first, draw_seed())


def test_refusals():
    with pytest.raises(TypeError, match=r"floating.*int64"):
        uniform((2,), 0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"offset.*-1"):
        uniform((2,), 0, offset=-1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_same_bits_on_the_gpu(dtype, monkeypatch):
    drawn = uniform((1001,), 7, dtype=dtype, stream=3)
    assert torch.equal(uniform((1001,), 7, dtype=dtype, stream=3, device="cuda").cpu(), drawn)
    monkeypatch.setattr(random, "_chunk", lambda device: 16)
    assert torch.equal(uniform((1001,), torch.tensor(7), dtype=dtype, stream=3, device="cuda").cpu(), drawn)
