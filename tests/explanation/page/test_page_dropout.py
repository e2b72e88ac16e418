"""The dropout exhibit in Chromium: what it shows equals the layer, at every setting, to the digits shown."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pellucid
from explaining import quietly
from pages import NARROW, agree, number, opened, same, table, write
from pellucid import nn
from pellucid.explanation.page.arrays import as_json
from pellucid.explanation.page.dropout import coins, net
from pellucid.explanation.page.dropout.data import GRADIENTS
from pellucid.explanation.page.dropout.sheet import Sheet
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.page.script import asset, script
from pellucid.formula.drop import drop, dropping
from pellucid.kernel.random import uniform
from pellucid.nn.dropout.alpha_dropout import drop_alpha
from pellucid.nn.dropout.drop_block import drop_block

SEED = 11
FOLDER = Path(pellucid.__file__).parent / "explanation" / "page" / "dropout"


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


# Each member with an input; of all the lines of the input the page shows these.
LAYERS = {
    "Dropout": (lambda **o: nn.Dropout(0.3, **o), torch.arange(1.0, 7.0)),
    "Dropout1d": (lambda **o: nn.Dropout1d(0.4, **o), draw(2, 3, 4)),
    "Dropout2d": (lambda **o: nn.Dropout2d(0.5, **o), draw(2, 3, 3, 3)),
    "Dropout3d": (lambda **o: nn.Dropout3d(0.3, **o), draw(2, 4, 2, 2, 2)),
    "LockedDropout": (lambda **o: nn.LockedDropout(0.3, **o), draw(3, 2, 5)),
    "DropPath": (lambda **o: nn.DropPath(0.5, **o), draw(4, 3, 2)),
    "AlphaDropout": (lambda **o: nn.AlphaDropout(0.2, **o), draw(2, 6)),
    "FeatureAlphaDropout": (lambda **o: nn.FeatureAlphaDropout(0.4, **o), draw(2, 3, 4)),
    "DropBlock2d": (lambda **o: nn.DropBlock2d(0.3, block_size=2, **o), draw(2, 2, 4, 5)),
}
ENTRYWISE = [name for name in LAYERS if name != "DropBlock2d"]

# Set one hash after another; after each, read the grids and texts that are asked for.
THROUGH = """async ([hashes, grids, texts, parts]) => {
  for (const part of parts) document.querySelector(`[data-part="${part}"]`).open = true;
  const written = (cell) => cell.querySelector("input")?.value ?? cell.textContent;
  const read = (key) => [...document.querySelectorAll(`[data-grid="${key}"] tr`)]
    .map(row => [...row.querySelectorAll("[data-at]")].map(written)).filter(row => row.length);
  const found = [];
  for (const hash of hashes) {
    const changed = new Promise(done => addEventListener("hashchange", () => setTimeout(done), { once: true }));
    location.hash = hash;
    await changed;
    found.push({
      ...Object.fromEntries(grids.map(key => [key, read(key)])),
      ...Object.fromEntries(texts.map(key => [key, [...document.querySelectorAll(key)].map(node => node.textContent)])),
    });
  }
  return found;
}"""


def written(tmp_path: Path, layer, *inputs: Tensor) -> Path:
    return write(quietly(layer, *inputs), tmp_path / "page.html")


def hash_of(index: int, **settings: object) -> str:
    return "&".join([f"n={index}", *(f"dropout.{key}={value}" for key, value in settings.items())])


def formula_of(name: str, p: float):
    if p == 1:
        return dropping(1.0)
    return drop_alpha if "Alpha" in name else drop


# -- random numbers ---------------------------------------------------------------------------------------------------


def test_the_page_draws_the_same_bits(browser):
    chance = random.Random(1)
    cases = []
    for _ in range(300):
        seed, stream = (
            chance.choice([chance.randrange(-(2**63), 2**64), chance.randrange(100)]),
            chance.randrange(2**64),
        )
        cases.append(
            (
                seed,
                chance.choice([stream, 0, 2**32 - 1]),
                chance.choice([chance.randrange(40), chance.randrange(2**40)]),
            )
        )
    context = browser.new_context()
    page = context.new_page()
    text = (
        "const modules = {};\n"
        + asset("core/philox.js").replace("export ", "")
        + "\nwindow.drawing = { uniform, later };"
    )
    page.add_script_tag(content=text)
    given = [
        [coins.words64(seed), coins.words64(stream), index, steps] for steps, (seed, stream, index) in enumerate(cases)
    ]
    drawn = page.evaluate(
        """cases => cases.map(([seed, stream, index, steps]) =>
             drawing.uniform(index, seed, drawing.later(stream, steps)))""",
        given,
    )
    context.close()
    for steps, ((seed, stream, index), value) in enumerate(zip(cases, drawn, strict=True)):
        expected = uniform((1,), seed, stream=(stream + steps) % 2**64, offset=index)
        assert value == expected.item()


def test_draws_of_some_coins_are_those_of_all():
    every = [uniform((3, 5), 7, stream=2**63 - 1 + call).flatten() for call in range(3)]
    assert torch.equal(coins.draws_at(range(15), (7, 2**63 - 1), 3), torch.stack(every))


# -- the first numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENTRYWISE)
def test_first_numbers_are_the_layers(name, tmp_path, browser):
    make, x = LAYERS[name]
    layer = make(seed=SEED)
    path = written(tmp_path, layer, x)
    sheet = Sheet(x.shape, layer.drawn_shape(x))
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    with opened(browser, path) as page:
        assert page.get_attribute("#exhibit-0", "data-source") == "python"
        (shown,) = page.evaluate(
            THROUGH, [["n=1"], ["x", "y", "sheet", "crowd", "grad", "arrived"], ["[data-masks]"], ["crowd", "backward"]]
        )
        entry = page.evaluate("""document.querySelector('[data-grid="y"] .chosen').dataset.at.split(",")[1]""")
    line, own = sheet.of(x)[:1], sheet.of(y)
    same(shown["x"], line)
    same(shown["y"], own[:1])
    if sheet.rows > 1:
        same(shown["sheet"], own)
    assert shown["[data-masks]"] == ["1", "10", "100", "1000"]
    again = make(seed=SEED)
    calls = torch.stack([sheet.of(again(x)).flatten().double() for _ in range(1000)])[:, int(entry)]
    for n, row in zip((1, 10, 100, 1000), shown["crowd"], strict=True):
        assert agree(row[0], float(calls[:n].mean()))
    gradient = torch.zeros_like(y)
    columns = sheet.columns
    gradient.view(sheet.height, sheet.width)[0, :columns] = torch.tensor([[number(t) for t in shown["grad"][0]]])
    (arrived,) = torch.autograd.grad(y, leaf, gradient)
    same(shown["arrived"], sheet.of(arrived)[:1])


def test_first_numbers_of_drop_block(tmp_path, browser):
    make, x = LAYERS["DropBlock2d"]
    path, y = written(tmp_path, make(seed=SEED), x), make(seed=SEED)(x)
    again = make(seed=SEED)
    calls = torch.stack([again(x).double()[0, 0] for _ in range(1000)])
    with opened(browser, path) as page:
        (shown,) = page.evaluate(THROUGH, [["n=1"], ["x", "y", "mask", "draws", "crowd"], ["[data-masks]"], ["crowd"]])
        at = page.evaluate("""document.querySelector('[data-grid="y"] .active').dataset.at.split(",").map(Number)""")
    same(shown["x"], x[0, 0])
    same(shown["y"], y[0, 0])
    same(shown["mask"], (y[0, 0] != 0).double())
    same(shown["draws"], uniform((2, 2, 3, 4), SEED)[0, 0])
    for n, row in zip(map(int, shown["[data-masks]"]), shown["crowd"], strict=True):
        assert agree(row[0], float(calls[:n, at[0], at[1]].mean()))


def test_a_layer_without_a_seed_is_shown_as_it_ran(tmp_path, browser):
    torch.manual_seed(9)
    x = draw(5)
    path = written(tmp_path, nn.Dropout(0.5), x)
    y = nn.Dropout(0.5)(x)  # asks torch's generator for the same seed, as an explanation leaves it untouched
    with opened(browser, path) as page:
        same(table(page, "y"), y[None])
        assert "torch" in page.inner_text("#exhibit-0")


@pytest.mark.parametrize("own", [{}, {"seed": 4}, {"generator": True}], ids=["torch", "seed", "generator"])
def test_every_language_tells_of_the_same_draws(own):
    if "generator" in own:
        own = {"generator": torch.Generator().manual_seed(1)}
    layer, x = nn.Dropout(0.5, **own), torch.arange(1.0, 7.0)
    report = quietly(layer, x)
    layer(x)
    state = torch.get_rng_state()
    chinese = report.translations()[1]
    (exhibit,) = exhibits_of(report)
    drawn = [r.steps[0].parts[2].numbers for r in (report, chinese)]
    assert drawn[0].tolist() == drawn[1].tolist() == exhibit.data["draws"][0].tolist()
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn afterwards is left alone
    assert layer.calls == (1 if "seed" in own else 0)


# -- every setting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENTRYWISE)
def test_recomputed_numbers_are_torchs(name, tmp_path, browser):
    make, x = LAYERS[name]
    layer = make(seed=SEED)
    sheet, drawn = Sheet(x.shape, layer.drawn_shape(x)), layer.drawn_shape(x)
    chance = random.Random(name)
    columns, settings = sheet.columns, []
    for _ in range(26):
        p = chance.choice([0, 1, round(chance.random(), 2), round(chance.random(), 2)])
        call, mode = chance.randrange(1000), chance.choice(["train", "train", "train", "eval"])
        row = chance.randrange(sheet.rows)
        edits = {row * columns + chance.randrange(columns): round(chance.uniform(-9, 9), 2) for _ in range(2)}
        forced = {row * columns + chance.randrange(columns): round(chance.random(), 2)} if chance.random() < 0.4 else {}
        grad = {row * columns + chance.randrange(columns): round(chance.uniform(-2, 2), 1)}
        settings.append((p, call, mode, row * columns, edits, forced, grad))

    def typed(changes: dict[int, float]) -> str:
        return ",".join(f"{place}:{value}" for place, value in changes.items())

    hashes = [
        hash_of(
            i, p=p, call=call, mode=mode, entry=entry, x=typed(edits), draws=f"{call}|{typed(forced)}", grad=typed(grad)
        )
        for i, (p, call, mode, entry, edits, forced, grad) in enumerate(settings)
    ]
    keys = ["x", "y", "mask", "sheet", "grad", "arrived"]
    parts = ["backward", "crowd"] if name == "Dropout" else ["backward"]
    texts = ["#worked .recomputed", "#variance-exact", "#variance-measured"]
    with opened(browser, written(tmp_path, layer, x)) as page:
        pages = page.evaluate(THROUGH, [hashes, keys, texts, parts])
    for (p, call, mode, entry, edits, forced, grad), shown in zip(settings, pages, strict=True):
        training = mode == "train"
        values = sheet.of(x).double().flatten()
        values[list(edits)] = torch.tensor(list(edits.values()), dtype=torch.float64)
        exact = values.reshape(sheet.rows, columns).requires_grad_()
        every = sheet.of(uniform(drawn, SEED, stream=call).expand(x.shape)).double().flatten()
        every[list(forced)] = torch.tensor(list(forced.values()), dtype=torch.float64)
        draws = every.reshape(exact.shape) if training else torch.zeros_like(exact)
        y = formula_of(name, p if training else 0.0)(exact, draws, p if training else 0.0)
        line = entry // columns
        same(shown["x"], exact.detach()[line : line + 1])
        same(shown["y"], y.detach()[line : line + 1])
        if sheet.rows > 1:
            same(shown["sheet"], y.detach())
        if training:
            same(shown["mask"], (draws >= p)[line : line + 1].double())
        assert agree(shown["#worked .recomputed"][-1].split("= ")[-1], y[line, 0].item())
        gradient = torch.tensor((1.0, -0.5, 0.8, 0.3, -1.2, 0.6, -0.9, 0.4), dtype=torch.float64).repeat(20)[
            : exact.numel()
        ]
        gradient[list(grad)] = torch.tensor(list(grad.values()), dtype=torch.float64)
        (arrived,) = torch.autograd.grad(y, exact, gradient.reshape(exact.shape))
        same(shown["grad"], gradient.reshape(exact.shape)[line : line + 1])
        same(shown["arrived"], arrived[line : line + 1])
        if name != "Dropout" or p == 1:
            continue
        assert agree(shown["#variance-exact"][0], p / (1 - p) * float(values[entry]) ** 2)
        many = torch.stack([uniform(drawn, SEED, stream=k)[entry] for k in range(1000)]).double()
        measured = drop(values[entry].expand(1000), many, p).var(correction=0) if p else torch.zeros(())
        assert agree(shown["#variance-measured"][0], float(measured))


def test_recomputed_drop_block_is_torchs(tmp_path, browser):
    make, x = LAYERS["DropBlock2d"]
    chance = random.Random(4)
    settings, hashes = [], []
    for index in range(26):
        p = chance.choice([0, 1, round(chance.random(), 2), round(chance.random() / 3, 2)])
        call, mode, plane = chance.randrange(1000), chance.choice(["train", "train", "eval"]), chance.randrange(4)
        settings.append((p, call, mode, plane))
        hashes.append(hash_of(index, p=p, call=call, mode=mode, plane=plane, entry=7))
    with opened(browser, written(tmp_path, make(seed=SEED), x)) as page:
        pages = page.evaluate(THROUGH, [hashes, ["y", "mask", "arrived"], [], ["backward"]])
    for (p, call, mode, plane), shown in zip(settings, pages, strict=True):
        layer = make(seed=SEED).train(mode == "train")
        layer.p = p
        exact = x.double().requires_grad_()
        draws = (
            uniform(layer.drawn_shape(x), SEED, stream=call) if layer.training else torch.zeros(layer.drawn_shape(x))
        )
        bound = layer._symbol_values(exact, draws.double(), float(p) if layer.training else 0.0)
        y = drop_block(**bound)
        same(shown["y"], y.detach().reshape(4, 4, 5)[plane])
        ones = drop_block(**(bound | {"x": torch.ones_like(exact)}))
        same(shown["mask"], (ones != 0).double().reshape(4, 4, 5)[plane])
        gradient = torch.tensor(GRADIENTS, dtype=torch.float64).repeat(10).reshape(x.shape)
        (arrived,) = torch.autograd.grad(y, exact, gradient)
        same(shown["arrived"], arrived.reshape(4, 4, 5)[plane, 1:2])


# -- the small network, and masks by shape ----------------------------------------------------------------------------


def test_thinned_networks_and_their_average(tmp_path, browser):
    chance = random.Random(6)
    settings = [
        (chance.choice([0, 0.5, round(chance.random(), 2), 1]), round(chance.uniform(-2, 2), 1)) for _ in range(26)
    ]
    acts = [chance.choice(["linear", "tanh", "relu"]) for _ in settings]
    hashes = [hash_of(i, p=p, input=x, act=act) for i, ((p, x), act) in enumerate(zip(settings, acts, strict=True))]
    grids = ["net-average", "net-scaled", "net-gap"]
    read = ["[data-net]", "[data-mc]", "[data-part=nets] .group"]
    with opened(browser, written(tmp_path, nn.Dropout(0.3, seed=1), torch.ones(3))) as page:
        pages = page.evaluate(THROUGH, [["n=first", *hashes], grids, read, ["nets", "mc"]])
    U, V = (torch.tensor(w, dtype=torch.float64) for w in (net.U, net.V))
    for ((p, x), act), shown in zip([((0.3, 1.0), "linear"), *zip(settings, acts, strict=True)], pages, strict=True):
        h = torch.tanh(torch.tensor([[x]], dtype=torch.float64) @ U)
        bends = {"linear": lambda z: z, "tanh": torch.tanh, "relu": torch.relu}
        probabilities, sums = [], []
        for mask in sorted(itertools.product((1.0, 0.0), repeat=4), key=lambda m: -sum(m)):  # as they stand on the page
            kept = sum(mask)
            probabilities.append((1 - p) ** kept * p ** (4 - kept))
            sums.append((h * torch.tensor(mask) / (1 - p) @ V).item() if p < 1 else 0.0)
        z, weights = torch.tensor(sums, dtype=torch.float64), torch.tensor(probabilities, dtype=torch.float64)
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        for text, value in zip(shown["[data-net]"][1:], bends[act](z), strict=True):
            assert agree(text, float(value))
        groups = [number(text.split("= ")[1].split(" ")[0]) for text in shown["[data-part=nets] .group"]]
        for kept, written_group in zip((4, 3, 2, 1, 0), groups, strict=True):
            assert written_group == pytest.approx((1 - p) ** kept * p ** (4 - kept), abs=1e-4)
        averages = torch.tensor([float((weights * bend(z)).sum()) for bend in bends.values()])
        scaled = torch.tensor([float(bend(h @ V)) for bend in bends.values()])
        same(shown["net-average"], averages[None])
        same(shown["net-scaled"], scaled[None])
        gaps = averages.double() - scaled.double()
        if p < 1:
            assert shown["net-gap"][0][0] == "0"  # exactly, where the network is linear
        for text, gap in zip(shown["net-gap"][0], gaps, strict=True):
            assert abs(number(text) - float(gap)) < 1e-3
        model = net.Small(p, coins.SEED)
        draws = [model(torch.tensor([[x]], dtype=torch.float64)) for _ in range(1000)]
        samples = torch.stack([out[list(bends).index(act)] for out in draws]).flatten()
        measured = [samples.mean(), samples.std(correction=0)]
        exact = [(weights * bends[act](z)).sum()]
        exact.append((weights * (bends[act](z) - exact[0]) ** 2).sum().sqrt())
        for text, value in zip(shown["[data-mc]"], [*measured, *exact], strict=True):
            assert abs(number(text) - float(value)) <= 6e-4 * max(1, abs(float(value)))


def test_the_networks_first_numbers_are_monte_carlos():
    found = net.data(0.3, coins.SEED)
    predicted = pellucid.monte_carlo(net.Small(0.3, coins.SEED), torch.ones((1, 1), dtype=torch.float64), 1000)
    assert torch.equal(found["mean"], torch.cat(predicted.mean, 1)[0])
    assert found["probabilities"].sum().item() == pytest.approx(1, abs=1e-12)
    assert found["average"][0].item() == pytest.approx(found["scaled"][0].item(), abs=1e-12)


def test_masks_by_shape_are_the_layers(tmp_path, browser):
    chance = random.Random(3)
    sequence = {"Dropout": {}, "LockedDropout": {"batch_first": True}, "Dropout1d": {}, "DropPath": {}}
    picture = {"Dropout": {}, "Dropout2d": {}, "DropBlock2d": {"block_size": 2}, "DropPath": {}}
    toys = {"sequence": ((2, 3, 4), sequence), "picture": ((2, 3, 4, 4), picture)}
    settings = [
        (chance.choice([0, 1, round(chance.random(), 2)]), chance.randrange(1000), toy)
        for toy in toys
        for _ in range(15)
    ]
    settings += [(0.4, 0, toy) for toy in toys]
    hashes = [hash_of(i, p=p, call=call, toy=toy) for i, (p, call, toy) in enumerate(settings)]
    script_text = """async ([hashes]) => {
      document.querySelector("[data-part=coins]").open = true;
      const found = [];
      for (const hash of hashes) {
        const changed = new Promise(done => addEventListener("hashchange", () => setTimeout(done), { once: true }));
        location.hash = hash;
        await changed;
        found.push([...document.querySelectorAll("[data-toy]")].map(figure => [
          figure.dataset.toy, figure.querySelector("figcaption").textContent,
          [...figure.querySelectorAll(".entry, .cross")].map(e => e.matches(".entry")),
        ]));
      }
      return found;
    }"""
    with opened(browser, written(tmp_path, nn.Dropout(0.4, seed=1), torch.ones(3))) as page:
        pages = page.evaluate(script_text, [hashes])
    for (p, call, toy), shown in zip(settings, pages, strict=True):
        shape, members = toys[toy]
        for (name, options), (layer_name, caption, kept) in zip(members.items(), shown, strict=True):
            layer = getattr(nn, name)(p, seed=coins.SEED, **options)
            layer._eager_calls = call
            assert layer_name == name
            assert f" {torch.ones(layer.drawn_shape(torch.ones(shape))).numel()} coin" in caption.replace(": ", ":  ")
            assert kept == (layer(torch.ones(shape)) != 0).flatten().tolist()


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_keys_reach_and_work_every_control(lang, tmp_path, browser):
    path = written(tmp_path, nn.Dropout(0.3, seed=1), torch.arange(1.0, 7.0))
    with opened(browser, path, f"lang={lang}", viewport=NARROW) as page:

        def value(key: str) -> str | None:
            return page.evaluate(f"new URLSearchParams(location.hash.slice(1)).get('dropout.{key}')")

        page.evaluate("for (const d of document.querySelectorAll('#explore details')) d.open = true")
        wanted = set(
            page.evaluate("[...document.querySelectorAll('#exhibit-0 [data-setting]')].map(i => i.dataset.setting)")
        )
        assert {"p", "mode", "call", "act", "input", "toy"} <= wanted
        reached, again = set(), False
        page.focus("#exhibit-0 [data-setting=p]")
        for _ in range(120):
            at = page.evaluate("[document.activeElement.dataset.setting, document.activeElement.dataset.act]")
            if at[0] and at[0] not in reached:
                reached.add(at[0])
                before = value(at[0])
                page.keyboard.press("ArrowLeft" if at[0] in ("p", "input") else "ArrowRight")
                assert value(at[0]) != before, at
            if at[1] == "again":
                before, again = value("call"), True
                page.keyboard.press("Enter")
                assert value("call") != before
            if not page.evaluate("document.querySelector('#exhibit-0').contains(document.activeElement)"):
                break
            page.keyboard.press("Tab")
        assert reached >= wanted
        assert again
        page.click("#exhibit-0 .source button")
        assert page.evaluate("document.querySelector('#exhibit-0').dataset.source") == "python"
        page.focus('[data-grid="x"] input')
        page.keyboard.type("-2.5")
        page.keyboard.press("Enter")
        assert value("x") == "0:-2.5"
        page.keyboard.press("Tab")
        page.focus('[data-grid="draws"] input')
        page.keyboard.type("2")  # no draw
        page.keyboard.press("Enter")
        assert value("draws") is None
        page.focus('[data-grid="y"] .chosen')
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert value("entry") == "2"
        page.focus("#exhibit-0")
        page.keyboard.press("ArrowRight")
        assert value("call") == "1"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_falls_next_as_p_grows(tmp_path, browser):
    layer, x = nn.Dropout(0.3, seed=SEED), torch.arange(1.0, 7.0)
    draws = uniform((6,), SEED)
    above = draws[draws >= 0.3].min()
    index = int((draws == above).nonzero())
    with opened(browser, written(tmp_path, layer, x)) as page:
        assert f"the next to fall is x[{index}]" in page.inner_text(".odds")
        shown = page.evaluate(
            THROUGH, [[hash_of(i, p=p) for i, p in enumerate((float(above), float(above) + 1e-6))], ["mask"], [], []]
        )
    assert [row["mask"][0][index] for row in shown] == ["1", "0"]


def test_an_average_that_does_not_return_to_x_is_not_called_so(tmp_path, browser):
    settings = [(0, 0.0), (1, 0.5), (2, 1.0)]
    hashes, crowd = [hash_of(i, p=p, entry=0) for i, p in settings], '[data-part="crowd"]'
    with opened(browser, written(tmp_path, nn.Dropout(0.3, seed=SEED), torch.arange(1.0, 7.0))) as page:
        shown = page.evaluate(THROUGH, [hashes, [], [f"{crowd} .goal-text", crowd], ["crowd"]])
    goals, texts = ([row[key][0] for row in shown] for key in (f"{crowd} .goal-text", crowd))
    assert goals == ["x[0] = 1", "x[0] = 1", "expected = 0"]
    assert ["A hundred times as many masks" in text for text in texts] == [False, True, False]
    assert ["distance from what is expected" in text for text in texts] == [False, False, True]


# -- what is unusual --------------------------------------------------------------------------------------------------


def test_unusual_inputs(tmp_path, browser):
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1e30, 1e-30])
    cases = [
        (nn.Dropout(0.5, seed=1), torch.tensor(2.0)),
        (nn.Dropout(0.5, seed=1), odd),
        (nn.Dropout(1.0, seed=1), draw(2, 3)),
        (nn.Dropout(0.0, seed=1), draw(2, 3)),
        (nn.Dropout(0.5, seed=1).eval(), torch.arange(5)),
        (nn.Dropout2d(0.5, seed=1), draw(1, 1, 1, 1)),
        (nn.DropPath(0.5, seed=2**64 - 1), draw(1, 4)),
        (nn.Dropout(0.5, seed=1), draw(7).bfloat16()),
        (torch.nn.Dropout(0.25), draw(3, 3)),
        (nn.DropBlock2d(0.5, seed=1), draw(2, 3, 3)),
        (nn.DropBlock2d(1.0, seed=1).eval(), draw(1, 1, 3, 3)),
    ]
    parts = ["crowd", "backward"]
    for layer, x in cases:
        with opened(browser, written(tmp_path, layer, x), "lang=zh") as page:
            shown = page.evaluate(
                THROUGH, [["n=1", hash_of(2, p=0.4, call=5), hash_of(3, mode="eval")], ["y"], [], parts]
            )
            assert all(row for page_ in shown for row in page_["y"])
        if layer.training and isinstance(layer, nn.Dropout) and layer.p == 0.5:
            torch.manual_seed(0)
            assert shown[0]["y"][0][0] in ("nan", "0") or agree(
                shown[0]["y"][0][0], float(layer(x).flatten()[0].double())
            )


def test_a_large_input_is_a_slice_and_stays_small(tmp_path, browser):
    layer, x = nn.Dropout2d(0.5, seed=3), draw(4, 64, 56, 56)
    report = quietly(layer, x)
    (exhibit,) = exhibits_of(report)
    assert len(as_json(exhibit.data)) < 60_000
    path = written(tmp_path, layer, x)
    with opened(browser, path) as page:
        assert "showing 8 of 3,136" in page.inner_text("#exhibit-0")
        shown = page.evaluate(THROUGH, [["n=0", hash_of(1, call=7, entry=8)], ["y", "sheet"], [], []])
    same(shown[0]["sheet"], layer(x).reshape(256, -1)[:8, :8])
    layer._eager_calls = 7
    same(shown[1]["sheet"], layer(x).reshape(256, -1)[:8, :8])


def test_a_large_drop_block_shows_pythons_numbers_alone(tmp_path, browser):
    layer, x = nn.DropBlock2d(0.3, seed=3), draw(2, 8, 20, 20)
    with opened(browser, written(tmp_path, layer, x), "dropout.p=0.9&dropout.mode=eval&dropout.x=0:5") as page:
        same(table(page, "y"), layer(x)[0, 0, :8, :8])
        assert page.query_selector("[data-setting=p]") is None
        assert table(page, "draws")
        assert "6,400" in page.inner_text("#exhibit-0")


class Bessel(nn.Dropout):
    """A user's own member, with an operation that neither the page nor the C kernels know."""

    @property
    def formula(self):
        return forgetful


def forgetful(x, draws, p):
    return torch.special.i0(x) * (draws >= p)


def test_a_formula_that_the_page_does_not_know(tmp_path, browser):
    hostile = type("<script>alert(1)</script>", (Bessel,), {})
    layer, x = hostile(0.5, seed=2), torch.arange(1.0, 5.0)
    with pytest.warns(pellucid.PellucidWarning, match="i0"):
        path = written(tmp_path, layer, x)
    with opened(browser, path) as page:
        same(table(page, "y"), layer(x)[None])
        assert "i0" in page.inner_text("#exhibit-0")
        assert page.query_selector("[data-setting=p]") is None
        page.evaluate("for (const d of document.querySelectorAll('#explore details')) d.open = true")


def test_nothing_to_play_with():
    (empty,) = [exhibits_of(quietly(nn.Dropout(0.5), torch.ones(0, 3)))]
    assert empty == ()


def test_the_folder_is_small():
    written_by_hand = sum(p.stat().st_size for p in FOLDER.iterdir() if p.suffix in (".js", ".css", ".toml"))
    assert written_by_hand < 80_000
    assert "dropout/view.js" in script(["dropout"])
