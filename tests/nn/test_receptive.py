"""The receptive field of a stack: against the pattern of the real gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid import nn


def seen(stack, shape, position):
    """Return the first and the last place of the input, along each axis, that have a gradient from one output.

    Several inputs, as a maximum or a kernel's sum may leave out a place of one of them.
    """
    found = torch.zeros(shape[2:], dtype=torch.bool)
    for seed in range(30):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
        y = stack(x)
        (grad,) = torch.autograd.grad(y[(0, slice(None), *position)].sum(), x)
        found |= (grad[0] != 0).any(0)
    places = found.nonzero()
    return places.min(0).values.tolist(), places.max(0).values.tolist()


def positive(stack):
    """Give a stack weights whose sums cannot vanish, and let it rest in eval."""
    with torch.no_grad():
        for parameter in stack.double().parameters():
            parameter.abs_().add_(0.1)
    return stack.eval()


def check(stack, shape):
    """Compare field and gradient at every output whose field lies inside the input; at two of them at least."""
    field = nn.receptive_field(positive(stack))
    counts = stack(torch.rand(shape, dtype=torch.float64)).shape[2:]
    inside = []
    for axis, count in enumerate(counts):
        starts = [field.offset[axis] + p * field.stride[axis] for p in range(count)]
        inside.append([p for p, a in enumerate(starts) if a >= 0 and a + field.size[axis] <= shape[2 + axis]])
    assert all(inside), "no output lies inside: the test needs a larger input"
    for position in ([places[0] for places in inside], [places[-1] for places in inside]):
        first = [o + p * s for o, p, s in zip(field.offset, position, field.stride, strict=True)]
        last = [a + n - 1 for a, n in zip(first, field.size, strict=True)]
        assert seen(stack, shape, position) == (first, last)
    return field


windows = st.fixed_dictionaries(
    {"kernel_size": st.integers(1, 3), "stride": st.integers(1, 2), "padding": st.integers(0, 1)}
)
layers = st.one_of(
    windows.map(lambda w: ("Conv1d", (2, 2), w)),
    st.integers(1, 3).map(lambda d: ("Conv1d", (2, 2), {"kernel_size": 3, "dilation": d, "padding": "causal"})),
    st.integers(1, 4).map(lambda k: ("Conv1d", (2, 2), {"kernel_size": k, "padding": "same"})),
    windows.map(lambda w: ("SeparableConv1d", (2, 2), w)),
    st.integers(1, 3).map(lambda k: ("AvgPool1d", (k,), {"stride": 2, "padding": k // 2})),
    st.just(("MaxPool1d", (2,), {"dilation": 2})),
    st.just(("TCN", (2, [2]), {"kernel_size": 2})),
    st.sampled_from([("BatchNorm1d", (2,), {}), ("GELU", (), {}), ("Dropout1d", (), {})]),
)


@given(specs=st.lists(layers, min_size=1, max_size=4))
def test_property_is_where_the_gradient_goes(specs):
    stack = torch.nn.Sequential(*(getattr(nn, name)(*args, **kwargs) for name, args, kwargs in specs))
    if not any(hasattr(layer, "receptive_field") for layer in stack):
        with pytest.raises(ValueError, match="no module of the stack has a window"):
            nn.receptive_field(stack)
        return
    check(stack, (1, 2, 100))


def test_in_space_and_in_stacks_of_stacks():
    stack = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, (3, 5), stride=(2, 1), padding=1),
        torch.nn.BatchNorm2d(2),
        torch.nn.Sequential(torch.nn.ReLU(), nn.MaxPool2d((2, 3))),
        nn.SeparableConv2d(2, 2, 3, dilation=(1, 2)),
        torch.nn.AvgPool2d(2, 1),
    )
    field = check(stack, (1, 1, 40, 60))
    assert (field.size, field.stride, field.offset) == ((17, 22), (4, 3), (-1, -1))
    assert check(nn.Conv3d(1, 1, (1, 2, 3), padding=(0, 1, 1)), (1, 1, 4, 5, 6)).size == (1, 2, 3)


def test_one_layer_s_own_property_agrees():
    for layer in (
        nn.Conv1d(2, 2, 3, dilation=4),
        nn.SeparableConv2d(2, 2, (3, 1)),
        nn.MaxPool2d((2, 3), dilation=2),
        nn.AvgPool3d(2),
        nn.ConvPool2d(2, 2, (3, 1), 2, dilation=(2, 1), pool_size=(2, 3), pool_stride=1),
        nn.TCN(2, [2, 2]),
    ):
        assert layer.receptive_field == nn.receptive_field(layer).size


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.AdaptiveAvgPool1d(2), ("AdaptiveAvgPool1d", "no fixed window", "model[:3]")),
        (nn.GRU(2, 2), ("GRU", "no fixed window")),
        (torch.nn.Flatten(), ("Flatten",)),
        (nn.TextConv(2, 2), ("TextConv",)),
        (nn.InstanceNorm1d(2), ("InstanceNorm1d", "over all places")),
        (nn.LayerNorm(9), ("LayerNorm", "several places")),
        (nn.GroupNorm(1, 2), ("GroupNorm", "several places")),
        (torch.nn.Softmax(-1), ("Softmax",)),
        (nn.ConvTranspose1d(2, 2, 3), ("ConvTranspose1d", "spreads its input")),
        (nn.Conv1d(2, 2, 3, padding="same", stride=2), ("padding='same'", "Give numbers")),
        (nn.Conv2d(2, 2, 3), ("moves along 2 axes", "before it along 1")),
    ],
)
def test_what_cannot_be_followed_is_named(module, words):
    stack = torch.nn.Sequential(nn.Conv1d(2, 2, 3), torch.nn.Sequential(torch.nn.ReLU(), module))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words follow)
        nn.receptive_field(stack)
    for word in (f'{type(module).__name__} "1.1"', *words):
        assert word in str(caught.value)


def test_a_stack_with_a_forward_of_its_own_is_not_followed():
    class Twice(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    with pytest.raises(ValueError, match=r"nn\.receptive_field: Twice has no fixed window"):
        nn.receptive_field(Twice(nn.Conv1d(2, 2, 3)))


def test_a_layer_with_dropped_weights_is_followed():
    assert check(torch.nn.Sequential(nn.DropConnect(nn.Conv1d(2, 2, 3, stride=2))), (1, 2, 9)).size == (3,)


def test_statistics_that_are_kept_move_along_no_axis():
    stack = torch.nn.Sequential(nn.Conv1d(2, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True))
    assert check(stack, (1, 2, 9)).size == (3,)


def test_through_convolutions_with_a_pooling_behind_them():
    lenet = torch.nn.Sequential(nn.ConvPool2d(1, 2, 5, padding=2), nn.ConvPool2d(2, 2, 5))
    field = check(lenet, (1, 1, 28, 28))
    assert (field.size, field.stride, field.offset) == ((16, 16), (4, 4), (-2, -2))
    one = nn.ConvPool1d(2, 2, 3, 2, 1, 2, activation=None, pool_size=3, pool_stride=2)
    field = check(torch.nn.Sequential(one, torch.nn.ReLU()), (1, 2, 60))
    assert (field.size, field.stride, field.offset) == ((9,), (4,), (-1,))


def test_an_activation_that_reads_other_places_is_named():
    stack = torch.nn.Sequential(nn.ConvPool1d(2, 2, 3, activation=nn.Softmax(-1)))
    with pytest.raises(ValueError, match=r'Softmax "0\.activation" has no fixed window'):
        nn.receptive_field(stack)
