"""The exhibit of convolutions and poolings: in Chromium, its numbers against torch's on the same settings."""

from __future__ import annotations

import itertools
import random
from math import prod

import pytest
import torch
import torch.nn.functional as F

from explaining import SENTENCE, quietly
from pages import NARROW, agree, number, opened, same, table, write
from pellucid import nn
from pellucid.explanation.page.convolution import data as exhibit
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.page.script import asset
from pellucid.explanation.page.words import words
from pellucid.nn.convolution.convolution import Convolution

HOSTILE = "<script>alert(1)</script>&\"'`</style>"

# Sets one hash after the other and reads what the page then shows.
READ = """async ([hashes, grids]) => {
  const root = document.querySelector(".exhibit");
  const cells = (grid, read) => [...grid.querySelectorAll("tr")]
    .map((row) => [...row.querySelectorAll("[data-at]")].map(read)).filter((row) => row.length);
  const found = [];
  for (const hash of hashes) {
    const changed = new Promise((resolve) => addEventListener("hashchange", resolve, { once: true }));
    location.hash = hash;
    await changed;
    const shown = { notice: root.querySelector(".notice")?.textContent ?? "", source: root.dataset.source };
    for (const key of grids) {
      const grid = root.querySelector(`[data-grid="${key}"]`);
      shown[key] = grid && cells(grid, (cell) => cell.textContent);
    }
    const input = root.querySelector('[data-grid="input"]');
    const touched = input ? [...input.querySelectorAll(".touched")] : [];
    shown.touched = touched.map((cell) => cell.dataset.at.split(",").map(Number));
    for (const place of root.querySelectorAll("[data-number]")) shown[place.dataset.number] = place.textContent;
    found.push(shown);
  }
  return found;
}"""


ASK = """hash => new Promise((done) => {
  addEventListener("hashchange", done, { once: true });
  location.hash = hash;
})"""


def asked(**settings):
    return "&".join(f"convolution.{key}={value}" for key, value in settings.items())


def read(page, settings, *grids):
    """What the page shows for each of the settings; a number keeps the hashes of equal ones apart."""
    hashes = [asked(**one) + f"&n={number}" for number, one in enumerate(settings)]
    return page.evaluate(READ, [hashes, ["output", *grids]])


def unfold(page, *keys):
    """Open what is folded; of the exhibit's parts those under the words of these keys, by default all."""
    titles = [words("convolution", "en")[key] for key in keys]
    page.evaluate(
        """titles => { for (const fold of document.querySelectorAll(".exhibit details"))
             fold.open = !titles.length || titles.includes(fold.querySelector("summary").textContent) }""",
        titles,
    )
    page.wait_for_timeout(50)


# -- convolution against torch ------------------------------------------------------------------------------------


def extended(weight, shape):
    """The page's rule for other sizes: the first entries, then from the beginning again."""
    for axis, size in enumerate(shape):
        weight = weight.index_select(axis, torch.arange(size) % weight.shape[axis])
    return weight


def drawn(rng, spatial, transposed=False):
    """Settings as the page writes them."""
    two = {}
    for axis in "hw":
        two |= {f"k{axis}": rng.randint(1, 4), f"s{axis}": rng.randint(1, 3), f"d{axis}": rng.randint(1, 3)}
        two[f"p{axis}"] = rng.randint(0, 2)
    around = ["numbers", "numbers", "same", *([] if transposed else ["valid"])]
    if spatial == 1 and not transposed:
        around += ["causal", "causal"]
    groups = rng.choice((1, 1, 2))
    return two | {
        "around": rng.choice(around),
        "mode": rng.choice(("zeros", "reflect", "replicate", "circular")),
        "groups": groups,
        "in": groups * rng.randint(1, 2),
        "out": groups * rng.randint(1, 2),
        "square": "false",
    }


def of_settings(layer, chosen, x):
    """The layer of these settings by the page's rule, in float64, and its input."""
    axes = "hw" if layer.spatial == 2 else "w"
    kernel, stride, dilation, padding = (tuple(chosen[k + axis] for axis in axes) for k in "ksdp")
    around = chosen["around"]
    known = layer.transposed is False and (around in ("numbers", "valid") or (around == "same" and set(stride) == {1}))
    kind = getattr(torch.nn if known else nn, type(layer).__name__)
    made = kind(
        chosen["in"],
        chosen["out"],
        kernel,
        stride=stride,
        dilation=dilation,
        padding=padding if around == "numbers" else around,
        groups=chosen["groups"],
        padding_mode=chosen["mode"],
        dtype=torch.float64,
    )
    each = chosen["in"] // chosen["groups"]
    kernels = extended(layer._kernels().detach().double(), (chosen["out"], each, *kernel))
    if layer.transposed:
        space = tuple(range(-layer.spatial, 0))
        kernels = kernels.flip(space).unflatten(0, (chosen["groups"], -1)).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        made.weight.copy_(kernels)
        made.bias.copy_(extended(layer.bias.detach().double(), (chosen["out"],)))
    return made, extended(x.double(), (chosen["in"], *x.shape[1:]))


CONVOLUTIONS = {
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3), (2, 9)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, (2, 3)), (2, 5, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3), (2, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, (2, 3)), (2, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_on_random_settings(browser, tmp_path, name):
    torch.manual_seed(1)
    layer, shape = CONVOLUTIONS[name][0](), CONVOLUTIONS[name][1]
    x = torch.randint(-5, 6, shape).float()
    path = write(quietly(layer, x), tmp_path / "page.html")
    rng = random.Random(name)
    count = 205 if name in ("Conv1d", "Conv2d") else 50
    settings = [drawn(rng, layer.spatial, layer.transposed) for _ in range(count)]
    for one in settings:
        one |= {"o": rng.randrange(one["out"]), "step": 3 * rng.randrange(12)}
    checked = 0
    with opened(browser, path) as page:
        shown = read(page, settings, "entries-0", "weights-0", "products-0", "subtotals")
    for one, found in zip(settings, shown, strict=True):
        try:
            made, own = of_settings(layer, one, x)
            y = made(own)
        except (RuntimeError, ValueError):
            assert "No output" in found["notice"], one
            assert found["output"] is None
            continue
        assert "No output" not in found["notice"], one
        positions = list(itertools.product(*map(range, y.shape[1:])))
        at = min(one["step"] // 3, len(positions) - 1)
        assert agree(found["sum"], y[(one["o"], *positions[at])].item())
        rows = y if layer.spatial == 1 else y[one["o"]]
        if max(rows.shape) <= 14:
            same(found["output"], rows)
        window(layer, one, made, own, positions[at], found)
        checked += 1
    assert checked > count / 2


def window(layer, one, made, x, position, found):
    """The page's window against `window_at`: what it reads, with what that is multiplied, and what lights up."""
    if not isinstance(made, Convolution):
        kind = getattr(nn, type(made).__name__)
        sizes = (made.in_channels, made.out_channels, made.kernel_size, made.stride, made.padding, made.dilation)
        ours = kind(*sizes, made.groups, padding_mode=made.padding_mode, dtype=torch.float64)
        ours.load_state_dict(made.state_dict())
        made = ours
    view = made.window_at(x, position, one["o"])
    entries, kernel = (t.detach().reshape(t.shape) for t in (view.entries, view.kernel))
    if layer.spatial == 2:
        entries, kernel = entries[0], kernel[0]
    same(found["entries-0"], entries)
    same(found["weights-0"], kernel)
    same(found["products-0"], entries * kernel)
    if layer.spatial == 1:
        same(found["subtotals"], (view.entries * view.kernel).sum(1, keepdim=True).detach())
        assert {row for row, _ in found["touched"]} == set(view.channels) or len(found["touched"]) == 0
    if layer.transposed:
        return
    inside = {
        tuple(c.tolist())
        for c, out in zip(view.coordinates.flatten(0, -2), view.padding.flatten(), strict=True)
        if not out
    }
    lit = {tuple(at[1:] if layer.spatial == 1 else at) for at in found["touched"]}
    size = x.shape[1:]
    lit_inside = {at for at in lit if all(0 <= p < n for p, n in zip(at, size, strict=True))}
    before = [made._placement(axis, n)[0] for axis, n in enumerate(size)]
    spans = [
        max((p - 1) * s - b + r, n) + max(b, 0)
        for p, s, b, r, n in zip(
            [line.positions for line in made._lines(x)], made.stride, before, made.reach, size, strict=True
        )
    ]
    if max(spans) <= 14:  # all of the input stands there
        assert lit_inside == inside
        assert len(found["touched"]) == prod(made.kernel_size) * (len(view.channels) if layer.spatial == 1 else 1)


def test_first_numbers_are_the_layers_own(browser, tmp_path):
    torch.manual_seed(2)
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(2, 2, 5, 5)
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
        assert page.get_attribute(".exhibit", "data-source") == "python"
        same(table(page, "output"), layer(x)[0, 0])
        view = layer.window_at(x, (0, 0))
        same(table(page, "products-1"), (view.entries * view.kernel)[1].detach())
        page.evaluate("location.hash = 'convolution.kernel=mean'")
        page.wait_for_selector('.exhibit[data-source="page"]')
        mean = F.conv2d(x[:1], torch.full((1, 2, 3, 3), 1 / 18), layer.bias[:1], padding=1)
        same(table(page, "output"), mean[0, 0])
        page.click(".source button")
        same(table(page, "output"), layer(x)[0, 0])


def test_edited_cells(browser, tmp_path):
    torch.manual_seed(3)
    layer, x = nn.Conv2d(1, 1, 2), torch.randint(0, 9, (1, 4, 4)).float()
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html"), asked(edit="true")) as page:
        page.fill('[data-key="input:edit:1,2"]', "-7")
        page.press('[data-key="input:edit:1,2"]', "Enter")
        page.fill('[data-key="kernel:edit:0,1"]', "2.5")
        page.press('[data-key="kernel:edit:0,1"]', "Tab")
        changed, weight = x.clone(), layer.weight.detach().clone()
        changed[0, 1, 2], weight[0, 0, 0, 1] = -7, 2.5
        expected = F.conv2d(changed.double(), weight.double(), layer.bias.double())[0]
        same(table(page, "output"), expected)
        address = page.url
        page.fill('[data-key="input:edit:0,0"]', "no number")
        page.press('[data-key="input:edit:0,0"]', "Enter")
        assert table(page, "input")[0][0] == str(int(x[0, 0, 0]))
        page.goto(address)
        page.reload()
        same(table(page, "output"), expected)  # the address holds the changes


def test_groups_that_do_not_divide_are_mended_in_words(browser, tmp_path):
    path = write(quietly(nn.Conv2d(4, 4, 3), torch.randn(4, 5, 5)), tmp_path / "page.html")
    with opened(browser, path, asked(groups=3, out=6)) as page:
        assert "groups = 3 does not divide 4 in channels and 6 out channels" in page.inner_text(".notice")
        assert page.input_value('[data-setting="groups"]') == "2"


# -- the way back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("loss", ["sum", "squares"])
def test_gradient_of_the_input(browser, tmp_path, name, loss):
    torch.manual_seed(4)
    layer, shape = CONVOLUTIONS[name][0](), CONVOLUTIONS[name][1]
    x = torch.randint(-5, 6, shape).float()
    rng = random.Random(name + loss)
    settings = [drawn(rng, layer.spatial, layer.transposed) | {"loss": loss} for _ in range(20)]
    checked = 0
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
        unfold(page, "backward")
        for one in settings:
            one["pixel"] = rng.randrange(one["in"] * prod(shape[1:]))
        shown = read(page, settings, "backward", "gradients")
    for one, found in zip(settings, shown, strict=True):
        try:
            made, own = of_settings(layer, one, x)
            y = made(own.requires_grad_())
        except (RuntimeError, ValueError):
            continue
        total = y.sum() if loss == "sum" else y.square().sum() / 2
        (gradient,) = torch.autograd.grad(total, own)
        pixel = one["pixel"]
        if "gradient" in found:
            assert agree(found["gradient"], gradient.flatten()[pixel].item())
        else:
            assert gradient.flatten()[pixel] == 0  # no window reads it
        same(found["backward"], gradient if layer.spatial == 1 else gradient[pixel // prod(shape[1:])])
        checked += 1
    assert checked > 10


def test_first_gradient_is_pythons(browser, tmp_path):
    torch.manual_seed(4)
    for layer in (nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d(2)):
        x = torch.randn(2, 5, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        with opened(browser, write(quietly(layer, x.detach()), tmp_path / "page.html")) as page:
            unfold(page, "backward")
            assert page.get_attribute(".exhibit", "data-source") == "python"
            same(table(page, "backward"), gradient[0])


def test_the_way_back_is_the_transposed_convolution(browser, tmp_path):
    torch.manual_seed(5)
    layer, x = nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(2, 5, 5)
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html"), asked(loss="squares")) as page:
        unfold(page)
        y = layer(x)
        same(table(page, "backward"), F.conv_transpose2d(y, layer.weight, stride=2, padding=1)[0].detach())
        page.click('[data-key="pixels:0,1"]')
        assert "x[0, 0, 1] is used" in page.inner_text(".exhibit")


# -- equal views, the receptive field -----------------------------------------------------------------------------


def test_three_equal_views(browser, tmp_path):
    torch.manual_seed(6)
    for name, (make, shape) in CONVOLUTIONS.items():
        layer, x = make(), torch.randint(-5, 6, shape).float()
        rng = random.Random(name)
        settings = [drawn(rng, layer.spatial, layer.transposed) | {"step": 3 * rng.randrange(9)} for _ in range(12)]
        with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
            unfold(page, "equal")
            shown = read(page, settings, "im2col", "column", "sparse")
        for one, found in zip(settings, shown, strict=True):
            if "No output" in found["notice"]:
                continue
            assert found["equal_window"] == found["equal_product"] == found["equal_sparse"]
            assert number(found["gap"].removeprefix("max |Δ| = ")) < 1e-12
            made, own = of_settings(layer, one, x)
            if not layer.transposed:
                left = (
                    F.unfold if layer.spatial == 2 and one["around"] == "numbers" and one["mode"] == "zeros" else None
                )
                if left and one["groups"] == 1 and made(own)[0].numel() <= 14:
                    laid = left(own[None], made.kernel_size, made.dilation, made.padding, made.stride)[0].T
                    if laid.shape[0] <= 8 and laid.shape[1] <= 27:
                        same(found["im2col"], laid)


def test_pointing_at_a_tap_lights_it_everywhere(browser, tmp_path):
    torch.manual_seed(7)
    with opened(browser, write(quietly(nn.Conv2d(1, 1, 2), torch.randn(1, 4, 4)), tmp_path / "page.html")) as page:
        unfold(page)
        page.hover('[data-key="kernel:1,0"]')
        page.wait_for_selector('[data-key="im2col:0,2"].lit')
        lit = page.eval_on_selector_all(".cell.lit", "cells => cells.map(cell => cell.dataset.key)")
        grids = {key.split(":")[0] for key in lit}
        assert grids == {"input", "kernel", "entries-0", "weights-0", "products-0", "im2col", "column", "sparse"}
        assert "input:1,0" in lit
        page.hover('[data-key="output:2,1"]')
        page.wait_for_selector('[data-key="output:2,1"].active')
        assert page.eval_on_selector_all("[data-grid=input] .touched", "cells => cells.map(c => c.dataset.at)") == [
            "2,1",
            "2,2",
            "3,1",
            "3,2",
        ]


def seen(layers):
    """Which places of a long input reach one output, by torch's gradient."""
    stack = torch.nn.Sequential(*(torch.nn.Conv1d(1, 1, k, s, dilation=d, bias=False) for k, s, d in layers)).double()
    for module in stack:
        torch.nn.init.ones_(module.weight)
    size = nn.receptive_field(stack).size[0]
    x = torch.zeros(1, 1, size, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stack(x)[0, 0, 0], x)
    return gradient[0, 0].long().tolist()


def test_receptive_field(browser, tmp_path):
    rng = random.Random(8)
    stacks = [[(3, 1, 2)] * 3, [(3, 1, 1), (3, 1, 2), (3, 1, 5)]]
    stacks += [
        [(rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 4)) for _ in range(rng.randint(1, 4))] for _ in range(60)
    ]
    with opened(browser, write(quietly(nn.Conv1d(1, 1, 3), torch.randn(1, 9)), tmp_path / "page.html")) as page:
        unfold(page, "stack")
        for layers in stacks:
            text = " ".join(".".join(map(str, layer)) for layer in layers)
            page.evaluate(
                ASK,
                asked(stack=text) + f"&n={rng.random()}",
            )
            expected = seen(layers)
            assert page.inner_text('[data-number="reach"]') == str(len(expected))
            if len(expected) <= 64:
                found = page.eval_on_selector_all(
                    f'[data-level="{len(layers)}"]', "boxes => boxes.map(box => Number(box.dataset.times))"
                )
                assert found == expected
        page.get_by_role("button", name="2, 2, 2").click()
        assert "7 of the 13 places are read" in page.inner_text(".exhibit")
        page.get_by_role("button", name="1, 2, 5").click()
        assert "All 17 places are read" in page.inner_text(".exhibit")
        page.get_by_role("button", name="add a layer").click()
        assert page.inner_text('[data-number="reach"]') == "27"
        page.get_by_role("button", name="remove layer 1").click()
        assert page.inner_text('[data-number="reach"]') == "25"


# -- pooling ------------------------------------------------------------------------------------------------------

POOLS = {
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (2, 6, 7)),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (2, 9)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_on_random_settings(browser, tmp_path, name):
    torch.manual_seed(9)
    layer, shape = POOLS[name][0](), POOLS[name][1]
    x = torch.randn(shape)
    rng = random.Random(name)
    settings = []
    for _ in range(110 if "2d" in name else 50):
        one = {}
        for axis in "hw":
            kernel = rng.randint(1, 4)
            one |= {f"k{axis}": kernel, f"s{axis}": rng.randint(1, 3), f"p{axis}": rng.randint(0, kernel // 2)}
            one |= {f"d{axis}": rng.randint(1, 2) if "Max" in name else 1}
        flags = {key: str(rng.random() < 0.5).lower() for key in ("ceil", "counted")}
        settings.append(one | flags | {"square": "false", "o": rng.randrange(2), "step": 3 * rng.randrange(12)})
        settings[-1]["loss"] = rng.choice(("sum", "squares"))
    checked = 0
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
        unfold(page, "backward")
        shown = read(page, settings, "entries-0", "backward")
    for one, found in zip(settings, shown, strict=True):
        axes = "hw" if layer.spatial == 2 else "w"
        sizes = {
            word: tuple(one[k + axis] for axis in axes)
            for k, word in {"k": "kernel_size", "s": "stride", "p": "padding"}.items()
        }
        own = {"ceil_mode": one["ceil"] == "true"}
        if "Max" in name:
            own["dilation"] = tuple(one["d" + axis] for axis in axes)
        else:
            own["count_include_pad"] = one["counted"] == "true"
        made = getattr(torch.nn, name)(**sizes, **own)
        leaf = x.double().clone().requires_grad_()
        try:
            y = made(leaf)
        except RuntimeError:
            assert "No output" in found["notice"], one
            continue
        assert "No output" not in found["notice"], one
        same(found["output"], y[one["o"]].reshape(-1, y.shape[-1]).detach())
        positions = list(itertools.product(*map(range, y.shape[1:])))
        at = positions[min(one["step"] // 3, len(positions) - 1)]
        view = getattr(nn, name)(**sizes, **own).window_at(x.double(), at, one["o"])
        entries = view.entries[view.coordinates.min(-1).values >= 0].tolist()
        texts = [text for row in found["entries-0"] for text in row if text]
        assert all(itertools.starmap(agree, zip(texts, entries, strict=True)))
        total = y.sum() if one["loss"] == "sum" else y.square().sum() / 2
        (gradient,) = torch.autograd.grad(total, leaf)
        same(found["backward"], gradient[:1].squeeze(0) if layer.spatial == 2 else gradient)
        checked += 1
    assert checked > len(settings) / 2


def test_adaptive_pooling(browser, tmp_path):
    torch.manual_seed(10)
    x = torch.randn(1, 6, 7)
    for kind in ("Max", "Avg"):
        layer = getattr(nn, f"Adaptive{kind}Pool2d")((2, 3))
        settings = [{"rows": rows, "columns": columns} for rows in range(1, 7) for columns in range(1, 8)]
        with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
            shown = read(page, settings)
        for one, found in zip(settings, shown, strict=True):
            same(found["output"], getattr(torch.nn, f"Adaptive{kind}Pool2d")((one["rows"], one["columns"]))(x)[0])


def test_every_cell_has_a_name(browser, tmp_path):
    for layer in (nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 1, 3, padding=1), nn.ConvTranspose2d(1, 1, 2, 2)):
        with opened(browser, write(quietly(layer, torch.randn(1, 1, 5, 5)), tmp_path / "page.html")) as page:
            unfold(page)
            names = "cells => cells.map(cell => cell.getAttribute('aria-label') ?? cell.textContent)"
            found = page.eval_on_selector_all("[role=gridcell]", names)
            assert found
            assert not [name for name in found if name.strip(" ·") != name or not name]


# -- texts and networks -------------------------------------------------------------------------------------------


def test_text_convolution(browser, tmp_path):
    torch.manual_seed(11)
    layer = nn.TextConv(4, 3, (2, 3))
    report = quietly(layer, list("一只猫坐在垫子上"), lang="en")
    x = report.origin.explained.x
    with opened(browser, write(report, tmp_path / "page.html")) as page:
        assert page.get_attribute(".exhibit", "data-source") == "python"
        for index, width in enumerate((2, 3)):
            features = F.relu(F.conv1d(x.mT, getattr(layer, f"weight_{width}").mT, getattr(layer, f"bias_{width}")))[0]
            same(table(page, f"features-{index}"), features.detach())
        same(table(page, "kept"), layer(x).detach())
        assert page.inner_text("[data-grid=input] th .token").startswith("一")
        for out, width in itertools.product(range(3), range(2)):
            page.evaluate("hash => { location.hash = hash }", asked(o=out, width=width, kernel="mean"))
            page.wait_for_function(
                "w => document.querySelectorAll('[data-grid=kernel] tr:last-child .cell').length === w", arg=width + 2
            )
            same(
                table(page, "kept"),
                torch.cat(
                    [
                        F.relu(
                            F.conv1d(x.mT, torch.full((1, 4, w), 1 / (4 * w)), None)
                            + getattr(layer, f"bias_{w}")[:, None]
                        ).amax(-1)
                        for w in (2, 3)
                    ],
                    -1,
                ).detach(),
            )


def test_short_sentence(browser, tmp_path):
    layer = nn.TextConv(4, 2, (2, 5))
    report = quietly(layer, "ab", lang="en")
    with opened(browser, write(report, tmp_path / "page.html"), asked(width=1)) as page:
        same(table(page, "kept"), layer(report.origin.explained.x).detach())
        assert "one window, continued with zeros" in page.inner_text(".exhibit")


def test_network(browser, tmp_path):
    layer = nn.TCN(2, (2, 3, 3), kernel_size=2)
    with opened(browser, write(quietly(layer, SENTENCE), tmp_path / "page.html")) as page:
        assert page.inner_text('[data-number="reach"]') == str(layer.receptive_field[0])


@pytest.mark.parametrize("options", [{}, {"lengths": [4, 6]}])
def test_batches_and_lengths(browser, tmp_path, options):
    torch.manual_seed(12)
    layer, x = nn.Conv1d(2, 2, 3, padding="causal"), torch.randn(2, 2, 6)
    with opened(browser, write(quietly(layer, x, **options), tmp_path / "page.html")) as page:
        length = options.get("lengths", [6])[0]
        same(table(page, "output"), layer(x[0, :, :length]).detach())


@pytest.mark.parametrize("make", [lambda: nn.SeparableConv2d(2, 3, 3), lambda: nn.ConvPool2d(2, 3, 3)])
def test_convolutions_inside_others(browser, tmp_path, make):
    torch.manual_seed(13)
    layer, x = make(), torch.randn(2, 6, 6)
    inner = layer.depthwise if isinstance(layer, nn.SeparableConv2d) else layer.convolution
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
        same(table(page, "output"), inner(x)[0].detach())
        assert page.inner_text(".notice")


def test_output_size_of_a_transposed_convolution(browser, tmp_path):
    torch.manual_seed(19)
    layer, x = nn.ConvTranspose2d(1, 1, 3, stride=2), torch.randn(1, 3, 3)
    report = quietly(layer, x, output_size=(8, 7))
    with opened(browser, write(report, tmp_path / "page.html")) as page:
        same(table(page, "output"), layer(x, (8, 7))[0].detach())
        assert "+ e = (3 − 1)·2 − 2·0 + 1·(3 − 1) + 1 + 1 = 8" in page.inner_text(".exhibit")
        page.evaluate(ASK, asked(kernel="mean"))
        mean = F.conv_transpose2d(x, torch.full((1, 1, 3, 3), 1 / 9), layer.bias, stride=2, output_padding=(1, 0))
        same(table(page, "output"), mean[0].detach())


NAMES = [f"{kind}{n}d" for kind in ("convtranspose", "separableconv", "convpool") for n in (1, 2)]
NAMES += [f"{kind}pool{n}d" for kind in ("adaptivemax", "adaptiveavg") for n in (1, 2)]


@pytest.mark.parametrize("name", [*NAMES, "textconv", "tcn"])
def test_every_name(browser, tmp_path, name):
    with opened(browser, write(quietly(name), tmp_path / "page.html"), "lang=zh") as page:
        assert page.get_attribute(".exhibit", "data-source") == "python"
        unfold(page)
        text = page.inner_text(".exhibit")
        assert "undefined" not in text
        assert "NaN" not in text


# -- what is large, odd or hostile ----------------------------------------------------------------------------------


def test_large_input_is_shown_in_part(browser, tmp_path):
    torch.manual_seed(14)
    layer, x = nn.Conv2d(64, 8, 3, padding=1), torch.randn(1, 64, 60, 120)
    report = quietly(layer, x)
    path = write(report, tmp_path / "page.html")
    assert path.stat().st_size < 1.3e6
    with opened(browser, path) as page:
        top, left = page.evaluate(
            "document.querySelector('[data-grid=output] .cell').dataset.at.split(',').map(Number)"
        )
        assert (top, left) == (0, 0)
        first = exhibits_of(report)[0].data["first"]
        y = layer(x)[0]
        part = y[0, first[0] : first[0] + 8, first[1] : first[1] + 8].detach()
        same(table(page, "output"), part)
        assert "showing 8 of 120" in page.inner_text(".exhibit")
        assert page.locator('[data-setting="kw"]').count() == 0
        page.evaluate("hash => { location.hash = hash }", asked(kernel="edge", step=30))
        page.wait_for_selector('.exhibit[data-source="page"]')
        edge = torch.tensor([-1.0, 0.0, 1.0]).expand(1, 64, 3, 3)
        expected = F.conv2d(x.double(), edge.double(), layer.bias[:1].double(), padding=1)[0, 0]
        same(table(page, "output"), expected[first[0] : first[0] + 8, first[1] : first[1] + 8].detach())


def test_pictures_larger_than_the_grid(browser, tmp_path):
    torch.manual_seed(15)
    layer, x = nn.Conv2d(1, 2, 5), torch.rand(1, 1, 28, 28)
    y = layer(x)[0, 0].detach()
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html"), asked(step=3 * (24 * 20 + 13))) as page:
        pinned = page.get_attribute("[data-grid=output] .active", "data-at")
        assert pinned == "20,13"
        assert agree(page.inner_text("[data-grid=output] .active"), y[20, 13].item())
        assert "showing 9 of 28" in page.inner_text(".exhibit")
        page.locator(".picture svg").nth(1).click(position={"x": 3, "y": 3})
        assert page.get_attribute("[data-grid=output] .pinned", "data-at") == "0,0"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(browser, tmp_path, value):
    torch.manual_seed(16)
    x = torch.randn(1, 4, 4)
    x[0, 1, 1] = value
    for layer in (nn.Conv2d(1, 1, 2), nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1)):
        with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
            unfold(page)
            own = layer(x)[0].flatten().tolist()
            texts = [text for row in table(page, "output") for text in row]
            for text, one in zip(texts, own, strict=True):
                odd = {"nan": one != one, "inf": one == float("inf"), "−inf": one == -float("inf")}
                assert odd[text] if text in odd else agree(text, one)


def test_nothing_to_show():
    assert exhibit.convolution(quietly(nn.Conv3d(1, 1, 2), torch.randn(1, 3, 3, 3)).origin.explained) is None
    assert exhibits_of(quietly(nn.MaxPool3d(2), torch.randn(1, 4, 4, 4))) == ()
    assert exhibits_of(quietly(nn.Conv2d(1, 1, 2), torch.randn(0, 1, 3, 3))) == ()


def test_hostile_tokens(browser, tmp_path):
    report = quietly(nn.Conv1d(2, 1, 2), torch.randn(2, 3), tokens=[HOSTILE, "‮ab", "👩‍👧"])
    with opened(browser, write(report, tmp_path / "page.html")) as page:
        assert HOSTILE in page.inner_text("[data-grid=input]")


def test_unknown_activation_leaves_pythons_numbers(browser, tmp_path):
    layer = nn.TextConv(3, 2, (2,), activation=torch.special.i0)
    report = quietly(layer, torch.randn(1, 5, 3))
    with opened(browser, write(report, tmp_path / "page.html")) as page:
        same(table(page, "kept"), layer(report.origin.explained.x).detach())
        assert "uses i0" in page.inner_text(".notice")
        assert page.locator('[data-setting="edit"]').count() == 0


# -- keys, languages, sizes -----------------------------------------------------------------------------------------


def test_keyboard_alone(browser, tmp_path):
    torch.manual_seed(17)
    layer, x = nn.Conv2d(2, 2, 2), torch.randint(0, 9, (2, 4, 4)).float()
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html")) as page:
        unfold(page)
        controls = page.eval_on_selector_all(
            ".exhibit [data-setting]:not([hidden] *)",
            "nodes => nodes.filter(n => n.offsetParent).map(n => n.dataset.setting)",
        )
        reached = set()
        for _ in range(120):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("document.activeElement.dataset.setting ?? document.activeElement.dataset.key ?? ''")
            )
        assert set(controls) <= reached
        assert {
            "kw",
            "sw",
            "dw",
            "pw",
            "square",
            "around",
            "mode",
            "in",
            "out",
            "groups",
            "picture",
            "kernel",
            "edit",
        } <= reached
        assert {"output:0,0", "kernel:0,0", "stack:add"} <= reached
        page.focus('[data-setting="sw"]')
        page.keyboard.press("ArrowRight")
        assert "convolution.sw=2" in page.url
        assert "convolution.sh=2" in page.url
        same(table(page, "output"), F.conv2d(x, layer.weight, layer.bias, stride=2)[0].detach())
        page.keyboard.press("ArrowLeft")
        page.focus('[data-key="output:0,0"]')
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert page.get_attribute("[data-grid=output] .active", "data-at") == "1,1"
        assert page.evaluate("document.activeElement.dataset.key") == "output:1,1"
        page.keyboard.press("Enter")
        assert page.get_attribute("[data-grid=output] .pinned", "data-at") == "1,1"
        assert "convolution.step=12" in page.url
        page.keyboard.press("ArrowRight")  # pinned: walking on moves nothing
        assert page.get_attribute("[data-grid=output] .pinned", "data-at") == "1,1"
        page.keyboard.press("Escape")
        assert page.locator("[data-grid=output] .pinned").count() == 0
        page.focus(".exhibit")
        page.keyboard.press("ArrowRight")
        assert "convolution.step=13" in page.url
        assert page.get_attribute(".phases .now", "aria-current") == "step"
        page.keyboard.press(" ")
        page.wait_for_function("location.hash.includes('convolution.step=14')")
        page.keyboard.press(" ")


def test_both_languages(browser, tmp_path):
    torch.manual_seed(18)
    layer, x = nn.Conv2d(2, 2, 2), torch.randn(2, 4, 4)
    with opened(browser, write(quietly(layer, x), tmp_path / "page.html"), asked(sw=2, square="false")) as page:
        unfold(page)
        english = table(page, "output")
        page.click('[data-speak="zh"]')
        unfold(page)
        assert table(page, "output") == english
        text = page.inner_text(".exhibit")
        assert words("convolution", "zh")["equal"] in text
        assert words("convolution", "en")["equal"] not in text
        assert "undefined" not in text
        assert "{" not in text
        page.locator('[data-setting="kw"]:visible').focus()
        page.keyboard.press("ArrowRight")
        assert "convolution.kw=3" in page.url


def test_words_are_there_and_used():
    english, chinese = words("convolution", "en"), words("convolution", "zh")
    assert english.keys() == chinese.keys()
    names = ("view", "choices", "grids", "worked", "backward", "equal", "stack", "text")
    source = "".join(asset(f"convolution/{name}.js") for name in names)
    built = ("error_", "legend_", "do_", "reduce_", "phase_", "size_", "axis_", "around_", "mode_", "picture_", "line_")
    built += ("kernel_", "index_", "inside_", "idea_", "loss_", "mended_", "backward_")
    for key in english:
        assert f'"{key}"' in source or key.startswith(built), key


def test_narrow(browser, tmp_path):
    for layer, x in ((nn.Conv2d(2, 3, 3, padding=1), torch.randn(2, 9, 9)), (nn.Conv1d(8, 3, 3), torch.randn(8, 30))):
        with opened(browser, write(quietly(layer, x), tmp_path / "page.html"), viewport=NARROW) as page:
            unfold(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_numbers_that_are_not_finite_agree_with_themselves(browser, tmp_path):
    x = torch.tensor([[[[float("nan"), 1, 2], [float("inf"), 0, 3], [1, 2, 3]]]])
    report = quietly(nn.Conv2d(1, 1, 2), x)
    with opened(browser, report.save(tmp_path / "page.html"), "lang=en") as page:
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        said = page.inner_text(".exhibit").partition("All three ways give the same 4 outputs: max |Δ| = ")[2]
        assert number(said.split()[0]) < 1e-6
    report = quietly(nn.LayerNorm(3), torch.tensor([[float("nan"), 1, 2], [1, 2, 3], [4, 2, 1]]))
    with opened(browser, report.save(tmp_path / "page.html"), "lang=en") as page:
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        page.get_by_text("Nothing has changed: max |Δ| = 0.").wait_for()
