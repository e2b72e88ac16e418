"""Cells that only tests need: every feature of the cell contract once, and formulas that must be refused."""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F

import pellucid

SIGN = torch.tensor([1.0, -1.0, 1.0, -1.0])


@pellucid.cell
def leaky(x, h, *, U, W, b=pellucid.zeros, tau: float = 10.0):
    """The state moves slowly."""
    return h + (torch.tanh(x @ U + h @ W + b) - h) / tau


@pellucid.cell
def low_rank(x, h, *, U, M: "hidden rank", N, b=pellucid.constant(0.5)):
    return torch.tanh(x @ U + h @ M @ N + b)


@pellucid.cell
def signed(x, h, *, U, W, sign: "hidden" = pellucid.ones):
    return torch.relu(x @ U + h @ (W.abs() * sign))


@pellucid.cell
def constant_sign(x, h, *, U, W):
    return torch.tanh(x @ U + (h * SIGN.to(h.dtype)) @ W)


@pellucid.cell
def read_out(x, h, *, U, W, V: "hidden classes", d=pellucid.zeros):
    h = torch.tanh(x @ U + h @ W)
    return F.softmax(h @ V + d, -1), (h,)


@pellucid.cell
def variational(x, h, *, U, W, b=pellucid.zeros, p: float = 0.4):
    return torch.tanh(x @ U + pellucid.dropout(h, p, shared="time") @ W + b)


@pellucid.cell
def noisy(x, h, c, *, U, W, b=pellucid.zeros):
    i, g = (pellucid.dropout(x, 0.3) @ U + h @ W + b).chunk(2, -1)
    c = c + torch.sigmoid(i) * pellucid.dropout(torch.tanh(g), 0.5)
    return torch.tanh(c), c


@pellucid.cell
def zoned(x, h, c, *, U, W, b=pellucid.zeros, p: float = 0.3):
    i, g = (x @ U + h @ W + b).chunk(2, -1)
    c = pellucid.zoneout(c + torch.sigmoid(i) * torch.tanh(g), c, p)
    return pellucid.zoneout(torch.tanh(c), h, 0.1), c


@pellucid.cell
def shaken(x, h, *, U, W, s=pellucid.ones):
    z = x @ U + pellucid.noise(x @ U, 0.3, shared="time")
    return torch.tanh(z + h @ W + s * pellucid.noise(h, 0.5))


@pellucid.cell
def masked(x, seen: "input", dt: "2", /, h, *, U, W, r):
    kept = (r * dt.sum(-1, keepdim=True)).neg().exp() * h
    return torch.tanh((x * seen) @ U + kept @ W)


@pellucid.cell
def half_outside(x, h, *, U, W):  # cumsum has no C: one half of what is cut stays before the loop
    a, b = (x @ U).chunk(2, -1)
    return torch.tanh(torch.cumsum(a, -1) + h @ W) * torch.sigmoid(b)


@pellucid.cell
def attentive(x, h, *, U, W, V: "hidden hidden"):
    s = torch.exp(x @ U - (x @ U).amax(-1, keepdim=True))
    s = s / s.sum(-1, keepdim=True)
    return F.normalize(h @ W + s @ V + 0.1, dim=-1)


@pellucid.cell
def concatenated(x, h, *, W: "input+hidden 2*hidden", b=pellucid.zeros):
    z = torch.cat([x, h], -1) @ W + b
    n = h.shape[-1]
    return torch.where(z[:, :n] > 0, torch.tanh(z[:, n:]), h)


@pellucid.cell
def normalized(x, h, *, U, W, gamma=pellucid.ones, beta=pellucid.zeros):
    return torch.tanh(F.layer_norm(x @ U + h @ W, h.shape[-1:], gamma, beta))


@pellucid.cell
def no_recurrence(x, h, *, U):
    return torch.tanh(x @ U)


@pellucid.cell
def unparameterised(x, h, *, rate: float = 0.1):
    for _ in range(2):  # Python's own loops are unrolled
        h = h + rate * (x - h)
    return h if rate < 1 else x


@pellucid.cell
def counter(x, h, n, *, U, a: "hidden hidden"):
    n = 0.5 * n + 1.0
    return torch.tanh(x @ U) + F.linear(h, a) / n.exp(), n


@pellucid.cell
def indexed(x, h, *, U, W, V, g: "hidden"):
    z = torch.einsum("bi,ij->bj", x, U) + torch.einsum("...i,ji", h, W)
    return torch.tanh(z) * torch.einsum("ij,bi,bj->b", V, h, g * z).unsqueeze(-1)


@pellucid.cell
def multi_head(x, h, *, U: "input 4*width", W: "4*width hidden"):
    heads = (x @ U).unflatten(-1, (4, -1))
    mixed = torch.softmax(heads, 1) * heads
    return torch.tanh(mixed.flatten(1) @ W + h * heads.mean((1, 2)).unsqueeze(-1))


@pellucid.cell
def crowded(x, R, call, *, U, W, rows, r, output, linux, vec, self, NAN):
    """Names that torch's graphs, the loops in C and C itself have for something else."""
    n, j = (x @ U).chunk(2, -1)
    step = torch.sigmoid(n * rows + r * (R @ W))
    draws = pellucid.dropout(step, 0.3) + vec
    exp = torch.exp(-draws * draws) * output
    tanh = torch.tanh(j + self) * linux + NAN
    at = exp / (1 + exp.abs().sum(-1, keepdim=True))
    asm = call * 0.5 + at * tanh
    return torch.tanh(asm + draws), asm


@pellucid.cell
def rooted(x, h, *, U, W, V: "hidden 2"):
    """Backward divides by the output and by what it is the root of."""
    h = torch.tanh(x @ U + h @ W)
    return torch.sqrt(torch.log((h @ V).square() + 1.5)), (h,)


@pellucid.cell
def scored(x, h, *, U, W, v: "hidden 1"):
    """A product of one column is added to one of several."""
    return torch.tanh(h @ W + h @ v) + torch.tanh(x @ U)


@pellucid.cell
def shifted(x, h, c: "hidden", *, U, W: "hidden hidden"):
    """A state is read in parts, and its new value is made of another, which is not."""
    turned = torch.cat([c[:, 2:], c[:, :2]], -1)
    return torch.tanh(x @ U + turned @ W), torch.sin(h)


@pellucid.cell
def delayed(x, h, c: "hidden", d: "hidden", *, U, W: "hidden hidden"):
    """States move on to the next one, and a part of a state to another part."""
    return torch.tanh(x @ U + d @ W), h, torch.cat([c[:, :1], d[:, :-1]], -1)


@pellucid.cell
def iterated(x, h, *, U, W):
    """Every value is read several times, and so there are more ways through the formula than could be followed."""
    z = x @ U + h @ W
    y = torch.sigmoid(z)
    for _ in range(20):
        y = y * (1.5 - 0.1 * y * y * z * z)
    return torch.tanh(y)


@pellucid.layer
def weighed(x, *, v: "input 1", b: "1", g):
    """A number for every row, whose gradient is a sum over the columns, beside sums over the rows."""
    return torch.tanh(x + x @ v + b) * g


@pellucid.layer
def pieces(x, *, g=pellucid.ones):
    """Slices and concatenation of unequal pieces."""
    return torch.cat([x[..., 5:] * g, torch.tanh(x[..., :5]), x[..., 1:3].exp()], -1)


@pellucid.layer
def stepped(x, *, g, b):
    """Its gradients are 0, whatever that of the result is; one of them is a sum over rows nevertheless."""
    return torch.sign(x * g + b) * x


@pellucid.layer
def scaled_twice(x, y, *, g):
    """A parameter that two places read, of which one shifts the columns."""
    return torch.sigmoid(y * g) * torch.cat([(x * g)[:, 1:], x[:, :1]], -1)


@pellucid.layer
def shared(x, t: "1", *, s: "", b):
    """What sums over rows are added up of: entries, numbers of rows, nothing at all, and multiples."""
    return torch.tanh(x + b * s) * s - s * t + torch.sign(x - b) + x.sum(-1, keepdim=True) * s + b


@pellucid.cell
def ranged(x, h, *, W):
    """The largest and the smallest entry of those that are seen, one of which may be no number."""
    seen = torch.cat([x, h], -1)
    return torch.tanh(h @ W) + seen.amax(-1, keepdim=True) - seen.amin(-1, keepdim=True)


@pellucid.cell
def divided(x, h, *, U: "input hidden", W: "hidden hidden"):
    """A column of a value that is also read as a whole."""
    z = x @ U + h @ W
    return torch.tanh(z * z[:, :1])


@pellucid.cell
def headed(x, h, *, U: "input hidden", W: "hidden hidden"):
    """A single column stands before others, and is reduced with them."""
    z = x @ U + h @ W
    z = torch.cat([z[:, :1].exp(), z[:, 1:]], -1)
    return torch.tanh(z / (1 + z.square().sum(-1, keepdim=True)))


@pellucid.cell
def fast_weights(x, h, A: "2*hidden", *, U, W, K: "hidden 2"):
    h = torch.tanh(x @ U + h @ W)
    key = torch.softmax(h @ K, -1).unsqueeze(-1)
    A = 0.9 * A.unflatten(-1, (2, -1)) + 0.5 * key @ h.unsqueeze(-2)
    return torch.tanh(A.transpose(-1, -2) @ key).squeeze(-1), A.flatten(-2)


@pellucid.cell
def best_of_two(x, h, *, U: "input 2*hidden", W, a=pellucid.constant(0.1)):
    z, _ = (F.prelu(x @ U, a) + h @ W).unflatten(-1, (-1, 2)).max(-1)
    return torch.tanh(z - 0.5 * z.min(dim=-1, keepdim=True).values)


@pellucid.cell
def rotated(x, h, *, U, A: "hidden hidden"):
    turn, one = A - A.mT, torch.eye(h.shape[-1])
    return torch.tanh(x @ U + h @ torch.linalg.solve(one + turn, one - turn))


@pellucid.cell
def neighbours(x, h, *, U, k: "1 1 3"):
    return torch.tanh(x @ U + F.conv1d(h.unsqueeze(1), k, padding=1).squeeze(1))


@pellucid.cell
def remembering(x, h, before: "input", *, U, V):
    return torch.tanh(x @ U + before @ V), x


WITHOUT_KERNEL = {best_of_two, neighbours}

# cell, extra sizes; hidden is 4, input 3
WORKING = [
    (leaky, {}),
    (low_rank, {"rank": 2}),
    (signed, {}),
    (constant_sign, {}),
    (read_out, {"classes": 5}),
    (variational, {}),
    (noisy, {}),
    (zoned, {}),
    (shaken, {}),
    (masked, {}),
    (half_outside, {}),
    (attentive, {}),
    (concatenated, {}),
    (normalized, {}),
    (no_recurrence, {}),
    (counter, {}),
    (unparameterised, {}),
    (indexed, {}),
    (multi_head, {"width": 2}),
    (crowded, {}),
    (rooted, {}),
    (scored, {}),
    (shifted, {}),
    (delayed, {}),
    (divided, {}),
    (headed, {}),
    (fast_weights, {}),
    (best_of_two, {}),
    (rotated, {}),
    (neighbours, {}),
]


def unknown_name(x, h, *, U, W):
    return torch.tanh(x @ U + h @ V)


def shapes_disagree(x, h, *, U, W):
    return torch.tanh(x @ W + h @ W)


def open_size(x, h, *, U, M, N):
    return torch.tanh(x @ U + h @ M @ N)


def open_output(x, h, *, U, C):
    h = torch.tanh(h + x @ U)
    return h @ C, (h,)


def unused(x, h, *, U, W, q):
    return torch.tanh(x @ U + h @ W)


def value_branch(x, h, *, U, W):
    z = x @ U + h @ W
    if (z > 0).all(-1):
        z = -z
    return z


def value_number(x, h, *, U, W):
    z = x @ U + h @ W
    return z * float(z[:, 0])


def state_missing(x, h, c, *, U, W):
    c = torch.tanh(x @ U + h @ W + c)
    return c


def state_grows(x, h, *, U: "input hidden", W: "hidden hidden"):
    return torch.cat([x @ U, h @ W], -1)


def column_vectors(x, h, *, U, W):
    return torch.tanh(U @ x + W @ h)


def mixes_batch(x, h, *, U, W):
    z = x @ U + h @ W
    return z - z.mean(0)


def sorts_batch(x, h, *, U: "input hidden", W):
    z = x @ U + h @ W
    return torch.sort(z, 0).values


def matrix_of_each(x, h, A: "16", *, U):
    return torch.tanh(x @ U + A.unflatten(-1, (4, 4)) @ h), A


def in_place(x, h, *, U, W):
    h += x @ U
    return torch.tanh(h @ W)


def in_place_method(x, h, *, U, W):
    return (x @ U).add_(h @ W)


def uneven_chunk(x, h, *, U: "input 5", W: "5 hidden"):
    a, b = (x @ U).chunk(2, -1)
    return h + a @ W + b @ W


def too_many_indices(x, h, *, b: "hidden"):
    return h + b[:, 1:]


def open_state(x, h, c, *, U):
    return h + c[:, 1:].sum(-1, keepdim=True) + x @ U, c


def star_forgotten(x, h, U, W):
    return torch.tanh(x @ U + h @ W)


def spiking(x, h, *, U, W):
    return (x @ U + h @ W) > 0


def einsum_over_the_batch(x, h, *, U, W):
    return x @ U + torch.einsum("bi,bj,jk->bk", h, h, W) + torch.einsum("bi,ij->j", h, W)


def einsum_disagrees(x, h, *, U, W):
    return torch.einsum("bi,ij->bj", x, U) + torch.einsum("bi,ij->bj", h, W) + torch.einsum("bi,ij->bj", x, W)


def state_of_several(x, state, *, U, W):
    h, c = state
    return torch.tanh(x @ U + h @ W), c


def nothing_returned(x, h, *, U, W):
    h = torch.tanh(x @ U + h @ W)


def draws_by_torch(x, h, *, U, W):
    return torch.bernoulli(torch.sigmoid(x @ U + h @ W))


def by_numpy(x, h, *, U, W):
    return np.tanh(x @ U + h @ W)


def axis_lost(x, h, *, U, W, v: "hidden"):
    return torch.tanh(x @ U + h @ W) * (h @ v)


def state_of_two_axes(x, h, M: "hidden hidden", *, U):
    return torch.tanh(x @ U + (M @ h.unsqueeze(-1)).squeeze(-1)), 0.9 * M


def state_of_no_axis(x, h, n: "", *, U, W):
    return torch.tanh(x @ U + h @ W) * n, n


def chosen(x, h, *, U, W):
    return x @ U + F.one_hot((h @ W).argmax(-1), 4)


def rolls_the_batch(x, h, *, U):
    return x @ U + h.roll(1, 0)


# function, extra sizes, words of the message, the part of the line under which the carets stand
BROKEN = [
    (unknown_name, {}, ("'V' is not defined",), "V"),
    (shapes_disagree, {}, ("1×4 and 3×", "hidden 4", "input 3"), "h @ W"),
    (open_size, {}, ("axis 1 of M stays open", 'M: "hidden rank"', "rank=16"), "M"),
    (open_output, {}, ("axis 1 of C stays open", 'C: "hidden rank"', "rank=16"), "C"),
    (unused, {}, ("the shape of q stays open", "Remove it"), "q"),
    # Since Python 3.12 the mark is that of the condition.
    (value_branch, {}, ("torch.where",), "(z > 0).all(-1)" if sys.version_info >= (3, 12) else "if (z > 0).all(-1):"),
    (value_number, {}, ("float()",), "float(z[:, 0])"),
    (state_missing, {}, ("c is not returned", "return h, c"), "return c"),
    (state_grows, {}, ("a state entry keeps its shape",), "return torch.cat([x @ U, h @ W], -1)"),
    (column_vectors, {}, ("write x @ U, not U @ x",), "U @ x"),
    (star_forgotten, {}, ("U stands before the *, so it is a state", "move it behind the *"), "x @ U"),
    (mixes_batch, {}, ("the batch", "dim=-1"), "z.mean(0)"),
    (matrix_of_each, {}, ("(M @ v.unsqueeze(-1)).squeeze(-1)",), "A.unflatten(-1, (4, 4)) @ h"),
    (in_place, {}, ("in place", "c = c + i * g"), "h += x @ U"),
    (in_place_method, {}, ("in place", "use add"), "(x @ U).add_(h @ W)"),
    (too_many_indices, {}, ("2 indices into 1×4, which has 1 axes",), "b[:, 1:]"),
    (einsum_over_the_batch, {}, ("samples would be mixed", "bi,ij->j"), 'torch.einsum("bi,ij->j", h, W)'),
    (einsum_disagrees, {}, ("input 3 against hidden 4",), 'torch.einsum("bi,ij->bj", x, W)'),
    (open_state, {}, ("still open", 'c: "hidden"'), "c[:, 1:]"),
    (state_of_several, {}, ("an argument for each, def state_of_several(x, h, c, *, U, W)",), "h, c"),
    (nothing_returned, {}, ("nothing came back", "Write return h"), "x"),
    (draws_by_torch, {}, ("random numbers", "pellucid.noise"), "torch.bernoulli(torch.sigmoid(x @ U + h @ W))"),
    (by_numpy, {}, ("numpy's tanh", "use torch.tanh"), "np.tanh(x @ U + h @ W)"),
    (axis_lost, {}, ("against the batch", ".unsqueeze(-1)"), "torch.tanh(x @ U + h @ W) * (h @ v)"),
    (state_of_two_axes, {}, ("2 axes", 'M: "hidden*hidden"', "M.unflatten(-1, (rows, columns))"), 'M: "hidden hidden"'),
    (state_of_no_axis, {}, ("0 axes", 'n: "1"'), 'n: ""'),
    (chosen, {}, ("(index.unsqueeze(-1) == torch.arange(4)).to(h.dtype)",), "F.one_hot((h @ W).argmax(-1), 4)"),
    (rolls_the_batch, {}, ("dim=0 is the batch",), "h.roll(1, 0)"),
    (uneven_chunk, {}, ("1×5 cannot be split into 2 equal parts",), "(x @ U).chunk(2, -1)"),
]


# Pieces of random formulas: each is hidden wide, made of pieces that are hidden (4) wide.
LEAVES = ["h", "c", "x @ U", "h @ W", "c @ W.t()", "(h * g) @ W", "F.linear(h, W, b)", "g * h + b", "h @ (W.abs() * g)"]
LEAVES += ["F.layer_norm(x @ U, (4,), g, b) @ W"]
ONE = [
    "torch.tanh({})",
    "torch.sigmoid({})",
    "torch.relu({})",
    "F.gelu({})",
    "F.softplus({})",
    "torch.exp(-({}) ** 2)",
    "torch.softmax({}, -1)",
    "F.layer_norm({}, (4,), g, b)",
    "F.normalize(({}) + 1, dim=-1)",
    "torch.clamp({}, -1, 1)",
    "({}).pow(2).sum(-1, keepdim=True).add(1).rsqrt() * h",
    "torch.logsumexp({}, -1, keepdim=True) - c",
    "torch.std({}, -1, keepdim=True) + b",
    "torch.cat([({})[:, 2:], h[:, :2]], -1)",
    "pellucid.dropout({}, 0.3)",
    "pellucid.dropout({}, 0.3, shared='time')",
    "h + pellucid.noise({}, 0.3)",
]
FURTHER = [
    "F.silu({})",
    "F.hardsigmoid({})",
    "F.hardswish({})",
    "F.celu({})",
    "F.mish({})",
    "F.logsigmoid({})",
    "F.softsign({})",
    "F.tanhshrink({})",
    "F.softplus({}, beta=2.0)",
    "F.log_softmax({}, -1)",
    "F.glu(torch.cat([{}, h], -1), -1)",
    "F.pad(({})[:, 1:], (0, 1))",
    "F.pad({}, (2, -2), value=0.5)",
    "F.rms_norm({}, (4,), g)",
    "F.threshold({}, 0.1, 0.0)",
    "({}).mean(-1, keepdim=True) * h",
    "({}).var(-1, keepdim=True, unbiased=False) + h",
    "({}).norm(dim=-1, keepdim=True) + h",
    "torch.log(({}).abs() + 1)",
    "torch.log1p(({}).abs()).sqrt()",
    "torch.sin({}) + torch.atan({})",
    "torch.sign({}) * h + torch.floor({})",
    "torch.minimum({}, h) + torch.clamp_min({}, 0.1)",
    "torch.lerp({}, h, torch.sigmoid(g))",
    "torch.addcmul({}, h, c)",
    "(({}) > 0).to(h.dtype) * h",
    "torch.where((({}) > 0) & (h < 0.3), h, c)",
    "({}).pow(3) + (({}).abs() + 1) ** 1.5",
    "h * ({})[:, :1] + torch.unbind({}, -1)[0].unsqueeze(-1)",
    "torch.erf({}) + ({}).detach()",
    "torch.masked_fill({}, h > 0, 0.0)",
    "h * torch.tensor(2.0, dtype=h.dtype) + torch.outer(g, b).sum() * ({})",
    "({} @ g).tanh().unsqueeze(-1) * h + torch.mv({}, b).unsqueeze(-1)",
    "torch.matmul({}, W) + F.linear({}, W) + torch.addmm(h, {}, W, beta=0.5, alpha=2.0)",
    "torch.einsum('bi,ij->bj', {}, W) + torch.einsum('ij,bi', W, {})",
    "torch.einsum('...i,ji,...j->...', {}, W, h).unsqueeze(-1) * torch.einsum('bi, i -> bi', {}, g)",
    "torch.einsum('bi,bi,ij->bj', {}, h, W) + torch.einsum('bi,i->b', {}, g).unsqueeze(-1)",
    "torch.einsum('ij,jk,bi->bk', W, W, {}) + torch.tensordot({}, W, dims=1) + torch.inner({}, W)",
    "({}).norm(1, -1, True) + h",
    "({}).chunk(2, -1)[1].repeat(1, 2)",
    "({}).unflatten(-1, (2, 2)).mT.flatten(-2)",
]
FURTHER += [  # what torch calls arguments, and where else it takes them
    "torch.cat(torch.chunk({}, chunks=2, dim=-1)[::-1], axis=-1) + torch.cat(tensors=[{}], dim=1)",
    "torch.softmax(input={}, dim=-1) + F.linear(input={}, weight=W)",
    "torch.hstack([({})[:, :2], torch.split(({}), split_size_or_sections=2, dim=-1)[0]])",
    "({}) / (1 + ({}).std(-1, False, True)) - ({}).var(-1, keepdim=True, correction=0)",
    "({}).mean(axis=-1, keepdims=True) + torch.matmul(input={}, other=W) + torch.mm({}, mat2=W)",
    "torch.cat(torch.tensor_split({}, (1,), dim=-1)[::-1], -1) + (h @ W).view_as({})",
    "({}) + torch.zeros(h.shape[0], 4, dtype=h.dtype)",
]
NO_KERNEL = [  # in the formula or in its gradient
    "torch.cumsum({}, -1)",
    "torch.flip({}, (-1,))",
    "torch.roll({}, 1, -1)",
    "torch.sort({}, -1).values",
    "({}).unflatten(-1, (2, 2)).flip(-2).flatten(-2)",
]
TWO = ["({}) + ({})", "({}) - ({})", "({}) * ({})", "({}) / (1 + ({}) ** 2)", "torch.maximum({}, {})"]
TWO += ["torch.where(({}) > 0, {}, g * c)", "pellucid.zoneout({}, {}, 0.3)"]


def written(new_h: str, new_c: str, output: str | None, name: str = "random_formula") -> pellucid.Cell:
    """Make a cell of expressions, as if its author had written them."""
    result = "new_h, new_c" if output is None else "y, (new_h, new_c)"
    lines = [
        f"def {name}(x, h, c: 'hidden', *, U: 'input hidden', W: 'hidden hidden', b: 'hidden', g: 'hidden'):",
        f"    new_h = {new_h}",
        f"    new_c = torch.tanh({new_c})",
        *([] if output is None else [f"    y = {output}"]),
        f"    return {result}",
    ]
    space = {"torch": torch, "F": F, "pellucid": pellucid}
    exec("\n".join(lines), space)
    return pellucid.cell(space[name])
