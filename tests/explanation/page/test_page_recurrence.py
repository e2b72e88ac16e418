"""The exhibit of recurrence: what the page shows against the layer and against torch in float64, at many settings."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch

import pellucid
from explaining import SENTENCE, noisy, quietly
from formulas import leaky
from pages import NARROW, agree, number, opened
from pellucid import nn
from pellucid.explanation.page.document import Document
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.page.words import words
from pellucid.explanation.report import Exhibit
from pellucid.explanation.subject import characters
from pellucid.formula.shapes import split_result
from pellucid.nn import cells
from pellucid.nn.recurrence.cell import Cell
from running import sizes_of

READY = {name: cell for name, cell in vars(cells).items() if isinstance(cell, Cell)}
OPEN = "document.querySelectorAll('.exhibit details').forEach(part => (part.open = true))"
READ = """() => {
  const rows = grid => [...grid.querySelectorAll("tr")].map(row => [...row.querySelectorAll("[data-at]")]
    .map(cell => cell.textContent)).filter(row => row.length);
  const found = Object.fromEntries([...document.querySelectorAll("[data-grid]")].map(g => [g.dataset.grid, rows(g)]));
  const heads = grid => [...grid.querySelectorAll("th[scope=col]")].map(head => head.textContent);
  const unit = document.querySelector('[data-grid^="value-"] .active');
  const texts = name => [...document.querySelectorAll(name)].map(node => node.textContent);
  return { ...found, source: document.querySelector(".exhibit").dataset.source, results: texts("[data-result]"),
           columns: heads(document.querySelector('[data-grid="effect"]') ?? document.createElement("p")) };
}"""
SET = f"""(hashes) => hashes.map(hash => {{
  history.replaceState(null, "", "#" + hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
  return ({READ})();
}})"""


@pellucid.cell
def resonator(x, h, v, *, IN, K, damping=pellucid.ones, offset=pellucid.zeros, step: float = 0.3):
    """A spring for every unit, <b>driven</b> by "what it reads"."""
    force = x @ IN - h @ K + offset
    gate = torch.sigmoid(damping * v)
    v = v + step * (torch.tanh(force) - gate * v)
    return h + step * v, v


@pytest.fixture
def write(tmp_path):
    def written(layer, *inputs, **options):
        report = quietly(layer, *inputs, **options)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.html"
        text = Document(report.translations(), [Exhibit("recurrence", data_of(report))]).html()
        path.write_text(text, encoding="utf-8", errors="replace")
        return path, report

    return written


MADE = {}  # the exhibit of every report, made once


def data_of(report):
    if id(report) not in MADE:
        (exhibit,) = exhibits_of(report)
        MADE[id(report)] = (report, exhibit.data)
    return MADE[id(report)][1]


def hashed(settings):
    return "&".join(f"recurrence.{key}={value}" for key, value in settings.items())


class Reference:
    """A layer's first level, forward, once more in float64 under settings of the page."""

    def __init__(self, report, settings):
        explained = report.origin.explained
        layer, sequence = explained.layer, explained.sequence
        self.source, self.function = explained.source, layer.cell.function
        self.numbers = layer.hyperparameters
        self.weights = {name: value.detach().double().requires_grad_() for name, value in layer.symbol_values().items()}
        factor = settings.get("factor", 1)
        if factor != 1:
            name = settings.get("scaled", data_of(report)["scaled"])
            self.weights[name] = (self.weights[name].detach() * factor).requires_grad_()
        inputs = [value.double() for value in (sequence.x, *sequence.further)]
        a, b = settings.get("swap_a", 0), settings.get("swap_b", 0)
        order = list(range(sequence.steps))
        if a and b:
            order[a - 1], order[b - 1] = order[b - 1], order[a - 1]
        self.inputs = [value[order] for value in inputs]
        states = [state.double().clone().requires_grad_() for state in sequence.states[0]]
        self.moments = [states]
        self.used = []  # the state that each step starts from
        provider = pellucid.explanation.reading.Provider(False)
        with pellucid.formula.draws.provided_by(provider):
            for step in range(sequence.steps):
                now = self.moments[-1]
                if settings.get("zero", 0) == step + 1:
                    now = [torch.zeros_like(state).requires_grad_() for state in now]
                self.used.append(now)
                rows = [value[step] for value in self.inputs]
                result = self.function(*rows, *now, **self.weights, **self.numbers)
                self.output, new = split_result(self.source, result)
                handed_on = [state.clone() for state in new]  # each entry by itself, as the next step receives it
                self.output = handed_on[0] if self.output is new[0] else self.output
                self.moments.append(handed_on)

    def gradients(self, loss):
        """∂L/∂ every state at every moment, and the gradient of every weight."""
        value = self.output.sum() if loss == "sum" else self.output[0, loss]
        wanted = [state for moment in self.moments for state in moment]
        found = torch.autograd.grad(value, [*wanted, *self.weights.values()], allow_unused=True, retain_graph=True)
        pairs = zip([*wanted, *self.weights.values()], found, strict=True)
        filled = [torch.zeros_like(v) if g is None else g for v, g in pairs]
        entries = len(self.moments[0])
        moments = [filled[i * entries : (i + 1) * entries] for i in range(len(self.moments))]
        return moments, dict(zip(self.weights, filled[len(wanted) :], strict=True))

    def jacobian(self, moment, entry):
        """The Frobenius norm of ∂h_T/∂ a state entry."""
        last = self.moments[-1][0]
        total = 0.0
        for j in range(last.shape[1]):
            (grad,) = torch.autograd.grad(last[0, j], self.moments[moment][entry], allow_unused=True, retain_graph=True)
            if moment == len(self.moments) - 1 and entry == 0:
                total += 1.0
            elif grad is not None:
                total += float(grad.square().sum())
        return total**0.5


def same(shown, value, slack=2e-7):
    """Whether a text is a value to its digits, float32 of the layer's own numbers allowed for."""
    return (
        agree(shown, value)
        or abs(number(shown) - value) <= abs(value) * 1.001 * slack + 0.5 * 10.0 ** -digits(shown) * 1.01
    )


def digits(text):
    mantissa, _, power = text.replace("−", "-").partition("e")
    return len(mantissa.partition(".")[2]) - int(power or 0)


def compare(report, settings, shown):
    """Everything that a reading of the page shows, against the reference."""
    data, reference = data_of(report), Reference(report, settings)
    step, unit = settings.get("step", min(1, data["steps"] - 1)), settings.get("unit", 0)
    states, size = data["states"], data["states"][0]["size"]
    assert size <= 10  # all units are shown
    for which in range(len(states)):
        before = reference.used[step][which][0].tolist()
        assert all(map(agree, shown[f"state-{which}"][0], before)), (settings, which)
    named = {site["label"].split(" = ")[0]: place for place, site in enumerate(data["sites"])}
    for which, state in enumerate(states):
        place = named.get(f"{state['label']}ₜ")
        if place is not None:
            after = reference.moments[step + 1][which][0].tolist()
            assert all(map(agree, shown[f"value-{place}"][0], after)), (settings, which)
    loss = "sum" if settings.get("loss", "sum") == "sum" else min(unit, data["output"]["size"] - 1)
    moments, weights = reference.gradients(loss)
    for which in range(len(states)):
        for column, moment in enumerate(data["backward"]["moments"]):
            grad = moments[moment][which][0]
            for row, text in enumerate(shown[f"grad-{which}"]):
                assert agree(text[column], float(grad[row])), (settings, which, moment, row)
            assert agree(shown[f"length-{which}"][column][0], float(grad.norm())), (settings, which, moment)
            expected = reference.jacobian(moment, which)
            assert agree(shown[f"norm-{which}"][column][0], expected), (settings, which, moment)
    if settings.get("added", data["steps"]) == data["steps"]:
        weight = settings.get("weight", data["parameters"][0]["name"])
        total = weights[weight].reshape(-1, weights[weight].shape[-1])[:8, :8]
        for row, texts in zip(total.tolist(), shown["sum"], strict=True):
            assert all(map(agree, texts, row)), (settings, weight)
    if "effect" in shown:
        plain = Reference(report, {}).output[0].tolist()
        after = reference.output[0].tolist()
        assert all(map(agree, shown["effect"][0], plain)), settings
        assert all(map(agree, shown["effect"][1], after)), settings
        assert all(map(agree, shown["effect"][2], [b - a for a, b in zip(plain, after, strict=True)])), settings


def random_settings(report, count):
    data, draw = data_of(report), random.Random(0)
    steps, names = data["steps"], [parameter["name"] for parameter in data["parameters"]]
    found = []
    for _ in range(count):
        settings = {
            "step": draw.randrange(steps), "unit": draw.randrange(data["states"][0]["size"]),
            "loss": draw.choice(["sum", "unit"]), "weight": draw.choice(names), "factor": draw.randrange(61) / 20,
            "scaled": draw.choice(names), "zero": draw.choice([0, draw.randrange(steps + 1)]),
            "swap_a": draw.randrange(steps + 1), "swap_b": draw.randrange(steps + 1),
            "sum": draw.randrange(max(1, len(data["sums"]))), "part": draw.randrange(4), "all": "true",
        }  # fmt: skip
        found.append(settings)
    return found


def waterfall(report, settings, shown):
    """The opened unit's sum, and what the page says of its terms."""
    data, reference = data_of(report), Reference(report, settings)
    if not data["sums"]:
        return
    rows = shown["waterfall"]
    part = data["sums"][settings["sum"]]["parts"]
    whole = len(rows) - (2 if part[min(settings["part"], len(part) - 1)]["after"] is not None else 1)
    products = [row[0] for row in rows[:whole]]
    assert agree(products[-1], number(rows[whole][0])) or abs(number(products[-1]) - number(rows[whole][0])) < 1e-6
    assert reference.output is not None


LAYERS = {
    "rnn": lambda: (nn.RNN(4, 3), SENTENCE),
    "lstm": lambda: (nn.LSTM(5, 4, num_layers=2, bidirectional=True), SENTENCE),
    "gru": lambda: (nn.GRU(3, 6, batch_first=True), torch.randn(2, 7, 3)),
    "resonator": lambda: (resonator(4, 5), "a\nb c"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_random_settings(browser, write, name):
    torch.manual_seed(3)
    path, report = write(*LAYERS[name]())
    chosen = random_settings(report, 60)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        for settings, seen in zip(chosen, shown.evaluate(SET, [hashed(s) for s in chosen]), strict=True):
            compare(report, settings, seen)
            waterfall(report, settings, seen)
            changed = settings["swap_a"] != settings["swap_b"] and settings["swap_a"] and settings["swap_b"]
            assert (seen["source"] == "page") == bool(
                changed or settings["zero"] or settings["factor"] != 1 or (settings["swap_a"] != settings["swap_b"])
            )


@pytest.mark.parametrize("name", READY)
def test_ready_cells(browser, write, name):
    torch.manual_seed(1)
    layer = READY[name](4, 3, **sizes_of(READY[name]))
    x = torch.randn(4, 1, 4)
    path, report = write(layer, x, **({"dt": torch.rand(4, 1, 1)} if name == "cfc" else {}))
    chosen = [{}, {"step": 2, "factor": 1.5, "loss": "unit", "unit": 1}, {"swap_a": 1, "swap_b": 4, "zero": 2}]
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        for settings, seen in zip(chosen, shown.evaluate(SET, [hashed(s) for s in chosen]), strict=True):
            assert (seen["source"] == "page") == bool(settings)
            compare(report, settings, seen)


@pytest.mark.parametrize("changed", [False, True], ids=["python", "page"])
def test_a_matrix_of_the_sample_is_shown_entry_by_entry(browser, write, changed):
    torch.manual_seed(2)
    layer = cells.delta_rule(4, 3, key=2)
    path, report = write(layer, torch.randn(4, 1, 4))
    settings = {"step": 2, **({"swap_a": 1, "swap_b": 2} if changed else {})}
    place = next(
        i for i, site in enumerate(data_of(report)["sites"]) if site["label"].startswith("weightsₜ = weightsₜ")
    )
    with opened(browser, path) as shown:
        (seen,) = shown.evaluate(SET, [hashed(settings)])
    after = Reference(report, settings).moments[3][0][0].reshape(2, 3)  # what is flattened into the state
    for texts, row in zip(seen[f"value-{place}"], after.tolist(), strict=True):
        assert all(map(agree, texts, row))


@pytest.mark.parametrize("name", LAYERS)
def test_initial_numbers_are_the_layers_own(browser, write, name):
    torch.manual_seed(5)
    layer, x = LAYERS[name]()
    path, report = write(layer, x)
    data = data_of(report)
    explained = report.origin.explained
    output = explained.sequence.output
    place = next(
        i for i, site in enumerate(data["sites"]) if site["label"].startswith(f"{data['states'][0]['label']}ₜ =")
    )
    hashes = [f"recurrence.step={step}" for step in range(data["steps"])]
    with opened(browser, path) as shown:
        for step, seen in enumerate(shown.evaluate(SET, hashes)):
            assert seen["source"] == "python"
            own = output[step, : data["states"][0]["size"]]
            if len(explained.reading.places) == 1:
                assert all(map(agree, seen[f"value-{place}"][0], own.tolist()))
        assert data["backward"]["checked"]["agrees"]


def test_gates_follow_from_the_lines():
    found = {}
    for name in ("lstm", "gru", "gru_original", "minimal_gated", "lstm_coupled", "slstm", "rnn", "leaky", "cfc"):
        report = quietly(READY[name](4, 3), torch.randn(5, 1, 4), lang="en")
        found[name] = {
            term["gate_label"] for valve in data_of(report)["valves"] for term in valve["terms"] if "gate" in term
        }
    assert found["lstm"] == {"σ(fₜ)", "σ(iₜ)", "σ(oₜ)"}
    assert found["gru"] == {"1 − zₜ", "zₜ", "rₜ"}
    assert found["gru_original"] == {"1 − zₜ", "zₜ", "rₜ"}
    assert found["minimal_gated"] == {"1 − fₜ", "fₜ"}
    assert found["lstm_coupled"] == {"fₜ", "1 − fₜ", "σ(oₜ)"}
    assert found["cfc"] == {"gateₜ", "1 − gateₜ"}
    assert found["slstm"] >= {"fₜ", "σ(oₜ)"}
    assert found["rnn"] == found["leaky"] == set()


def test_valves(browser, write):
    path, report = write(nn.LSTM(4, 3), SENTENCE)
    with opened(browser, path, "recurrence.step=3&recurrence.unit=2") as shown:
        first = shown.inner_text('[data-result="0"]')
        memory = Reference(report, {}).moments[4][1][0, 2]
        assert agree(first.split("= ")[1], memory.item())
        parts = [number(part.strip(" ()")) for part in re.split(r" \+ ", first.split(" = ")[0])]
        assert sum(parts) == pytest.approx(memory.item(), abs=2e-4)
        assert shown.locator(".valve").count() == 3
    path, _ = write(nn.RNN(4, 3), SENTENCE)
    with opened(browser, path) as shown:
        assert shown.locator(".valve").count() == 0


def test_opened_unit(browser, write):
    torch.manual_seed(2)
    layer = nn.RNN(256, 128)
    path, report = write(layer, SENTENCE)
    with opened(browser, path, "recurrence.step=2&recurrence.unit=17&recurrence.all=true") as shown:
        rows = shown.evaluate(READ)["waterfall"]
        assert len(rows) == 256 + 128 + 1 + 2  # products, bias, sum, activation
        h = Reference(report, {}).moments[3][0][0, 17]
        assert agree(rows[-1][0], float(h))
        written = shown.eval_on_selector_all(".waterfall .written", "all => all.map(node => node.textContent)")
        sizes = [abs(number(text.split("= ")[-1])) for text in written[:-2]]
        assert sizes == sorted(sizes, reverse=True)
        shown.click('[data-setting="all"]')
        assert len(shown.evaluate(READ)["waterfall"]) == 14 + 1 + 2
        assert "256 + 128 = 384" in shown.inner_text('[data-part="opened"]')


@pytest.mark.parametrize("layer", [nn.RNN, cells.rnn])
def test_conventions(browser, write, layer):
    path, _ = write(layer(256, 128), SENTENCE, lang="en")
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        part = shown.locator('[data-part="convention"]')
        assert "With one bias there are 49,280 numbers to learn, with two 49,408." in part.inner_text()
        assert "1×256 · 256×128 → 1×128" in part.inner_text()
        total = "document.querySelector('[data-total]').dataset.total"
        assert shown.evaluate(total) == "49280"
        ours = shown.evaluate(READ)["convention-U"]
        part.get_by_text("two", exact=True).click()
        assert shown.evaluate(total) == "49408"
        part.get_by_text("W xᵀ", exact=True).click()
        assert "128×256 · 256×1 → 128×1" in part.inner_text()
        assert shown.evaluate(READ)["convention-U"] == [list(row) for row in zip(*ours, strict=True)]
        shown.click('[data-speak="zh"]')
        assert "一个偏置时一共学习 49,280 个数，两个时 49,408 个。" in part.inner_text()


def test_ledger(browser, write):
    path, _ = write(nn.RNN(256, 128), SENTENCE)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        short, long = shown.evaluate(SET, ["recurrence.length=5", "recurrence.length=50"])
        (weights,), (work,) = short["ledger"]
        assert [weights] == long["ledger"][0] == ["49,280"]
        assert number(long["ledger"][1][0]) == 10 * number(work)
        assert number(work) == 5 * (2 * (256 * 128 + 128 * 128) + 3 * 128)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_puzzle(browser, write, lang):
    path, report = write(nn.RNN(256, 128), SENTENCE, lang=lang)
    reasons = {row.name: row.reasons for row in report.symbols}
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        part = shown.locator('[data-part="puzzle"]')

        def guess(**sizes):
            for key, size in sizes.items():
                shown.fill(f'[data-setting="{key}"]', str(size))
                shown.press(f'[data-setting="{key}"]', "Tab")
            return part.inner_text()

        for sentence in reasons["U"][:2]:
            assert sentence not in part.inner_text()  # guess first
        wrong = guess(rows=128)
        assert "✗" in wrong
        assert "✓" not in wrong
        assert reasons["U"][0] not in wrong  # no answer yet, but why not
        because = next(r for r in data_of(report)["puzzle"][0]["reasons"][lang] if r["axis"] == 0)["because"]
        assert because in wrong
        half = guess(rows=256)
        assert reasons["U"][0] in half
        assert reasons["U"][1] not in half
        assert "✗" in guess(columns=64)
        solved = guess(columns=128)
        assert reasons["U"][1] in solved
        assert "✗" not in solved
        assert "32,768" in solved
        shown.select_option('[data-setting="symbol"]', "b")
        assert "✓" not in part.inner_text()
        assert "✓" in guess(rows=1, columns=128)
        shown.select_option('[data-setting="symbol"]', "W")
        shown.click('[data-act="tell"]')
        assert all(sentence in part.inner_text() for sentence in reasons["W"][:2])


def test_symbols_of_one_number_are_no_puzzle():
    @pellucid.cell
    def scaled(x, h, *, U, W, s: "" = pellucid.ones):  # noqa: F722
        return torch.tanh(s * (x @ U + h @ W))

    data = data_of(quietly(scaled(4, 3), torch.randn(3, 1, 4)))
    assert [part["name"] for part in data["puzzle"]] == ["U", "W"]


def test_folded_and_steps(browser, write):
    path, _ = write(nn.RNN(4, 3), SENTENCE)
    with opened(browser, path) as shown:
        assert shown.locator("svg.strip .step").count() == 5
        assert shown.locator("svg.strip .rail").count() == 3  # one U, W, b for all
        assert shown.locator("svg.strip .rail circle").count() == 3 * 5
        strip = shown.text_content("svg.strip")
        for text in ("U  4×3", "W  3×3", "b  1×3", "x₁  1×4", "h₀", *SENTENCE):
            assert text.replace("  ", " ") in strip.replace("  ", " ")
        shown.locator("svg.strip .step").nth(3).click()
        assert "step=3" in shown.url
        shown.hover('table.symbols tr[data-symbol="W"] th')
        lit = "all => all.filter(node => node.classList.contains('lit')).map(node => node.dataset.symbol)"
        assert shown.eval_on_selector_all("svg.strip .rail", lit) == ["W"]
        shown.click('[data-setting="folded"]')
        assert shown.locator("svg.strip .step").count() == 1


def test_keyboard(browser, write):
    path, _ = write(nn.LSTM(4, 3), SENTENCE)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        wanted = set(shown.eval_on_selector_all("[data-setting]", "all => all.map(node => node.dataset.setting)"))
        seen = {}
        for _ in range(400):
            shown.keyboard.press("Tab")
            at = shown.evaluate(
                "(n => [n.dataset.setting, n.type, n.value, !!n.closest('.exhibit')])(document.activeElement)"
            )
            if at[3] and at[0] and at[0] not in seen:
                before = shown.evaluate("location.hash")
                kind = at[1]
                if kind == "range":
                    keys = ["ArrowRight", "ArrowLeft"] if at[2] != "0" else ["ArrowRight"]
                    for key in keys:
                        shown.keyboard.press(key)
                        if shown.evaluate("location.hash") != before:
                            break
                        shown.keyboard.press("ArrowLeft")
                elif kind == "number":
                    shown.keyboard.type("7")
                    shown.keyboard.press("Enter")
                elif kind == "checkbox":
                    shown.keyboard.press(" ")
                else:
                    shown.keyboard.press("ArrowDown" if kind == "select-one" else "ArrowRight")
                seen[at[0]] = shown.evaluate("location.hash") != before
            if wanted <= seen.keys():
                break
        assert wanted <= seen.keys()
        assert all(seen.values()), seen


def test_keys_of_the_player(browser, write):
    path, _ = write(nn.RNN(4, 3), SENTENCE)
    with opened(browser, path, reduced_motion="reduce") as shown:
        shown.focus("#exhibit-0")
        shown.keyboard.press("ArrowRight")
        assert "recurrence.step=2" in shown.url
        shown.keyboard.press("ArrowLeft")
        assert "recurrence.step" not in shown.url
        shown.keyboard.press(" ")
        shown.wait_for_function("location.hash.includes('step=2')")
        shown.keyboard.press("Escape")
        shown.focus('svg.strip [data-key="strip:4"]')
        shown.keyboard.press("Enter")
        assert "recurrence.step=4" in shown.url
        assert shown.evaluate("document.activeElement.dataset.key") == "strip:4"
        shown.focus('[data-grid="value-3"] [tabindex="0"]')
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("Enter")
        assert "recurrence.unit=1" in shown.url


def test_keys_need_no_focus_where_there_is_one_exhibit(browser, write):
    path, _ = write(nn.RNN(4, 3), "ab cd")
    with opened(browser, path, reduced_motion="reduce", viewport={"width": 700, "height": 300}) as shown:
        shown.evaluate(OPEN)
        assert shown.evaluate("document.activeElement === document.body")
        shown.keyboard.press("ArrowRight")
        assert "recurrence.step=2" in shown.url
        shown.keyboard.press(" ")
        shown.wait_for_function("location.hash.includes('step=3')")
        shown.keyboard.press(" ")
        assert shown.evaluate("scrollY") == 0
        for _ in range(5):
            shown.keyboard.press("ArrowLeft")
        assert "recurrence.step=0" in shown.url
        shown.focus('.exhibit input[type="number"], .exhibit input[inputmode="decimal"], .exhibit input[type="text"]')
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press(" ")
        shown.focus("header.top button")
        shown.keyboard.press("ArrowRight")
        assert "recurrence.step=0" in shown.url


def test_the_focus_stays_on_the_button_at_the_last_step(browser, write):
    path, _ = write(nn.RNN(4, 3), "abc")
    with opened(browser, path) as shown:
        on = shown.locator(".exhibit .player button").nth(2)
        on.focus()
        for _ in range(4):
            shown.keyboard.press("Enter")
        assert "recurrence.step=2" in shown.url
        assert on.get_attribute("aria-disabled") == "true"
        assert on.evaluate("node => node === document.activeElement")
        shown.keyboard.press("ArrowLeft")
        assert "recurrence.step" not in shown.url
        assert on.get_attribute("aria-disabled") == "false"


def test_the_step_stays_in_sight(browser, write):
    path, _ = write(nn.RNN(3, 2), "hello world")
    inside = """() => {
      const [strip, now] = ["svg.strip", "svg.strip .now"].map((name) => document.querySelector(name));
      const [box, column] = [strip.parentElement, now].map((node) => node.getBoundingClientRect());
      return column.left >= box.left && column.right <= box.right;
    }"""
    with opened(browser, path, "", NARROW) as shown:
        shown.focus(".exhibit")
        for _ in range(11):
            assert shown.evaluate(inside)
            shown.keyboard.press("ArrowRight")
        shown.eval_on_selector("svg.strip", "strip => strip.parentElement.scrollLeft -= 20")
        place = shown.eval_on_selector("svg.strip", "strip => strip.parentElement.scrollLeft")
        shown.keyboard.press("ArrowLeft")
        shown.keyboard.press("ArrowRight")
        assert shown.eval_on_selector("svg.strip", "strip => strip.parentElement.scrollLeft") == place


def test_languages_have_the_same_texts(browser, write):
    english, chinese = words("recurrence", "en"), words("recurrence", "zh")
    assert english.keys() == chinese.keys()
    blanks = re.compile(r"\{(\w+)")
    for key in english:
        assert set(blanks.findall(english[key])) == set(blanks.findall(chinese[key])), key
    path, _ = write(nn.GRU(4, 3), SENTENCE)
    for lang in ("en", "zh"):
        with opened(browser, path, f"lang={lang}&recurrence.factor=2") as shown:
            shown.evaluate(OPEN)
            text = shown.inner_text("#exhibit-0")
            assert not re.search(r"undefined|NaN|\{\w+|\bfalse\b|\[object", text)
            keys = set(english) - {"step", "unit", "line", "rows", "columns", "one", "two", "weights", "length"}
            assert not keys & set(re.findall(r"\b[a-z]+_[a-z_]+\b", text))
            assert bool(re.search("[\u4e00-\u9fff]{4}", text.replace(SENTENCE, ""))) == (lang == "zh")


HOSTILE = "<script>window.hit=1</script>\"'&👩‍👩‍👧‍👦שלום‮ a\x00\x07" + "长" * 10_000


def test_hostile_sentence(browser, write):
    path, report = write(nn.RNN(3, 2), HOSTILE)
    assert data_of(report)["steps"] == 512
    for viewport in ({"width": 1280, "height": 900}, NARROW):
        with opened(browser, path, "recurrence.step=3", viewport) as shown:
            shown.evaluate(OPEN)
            assert shown.evaluate("window.hit") is None
            assert shown.locator("#exhibit-0 script").count() == 0
            tokens = "all => all.map(node => node.textContent)"
            steps = [0, 8, 34, 40, 300]
            seen = []
            for step in steps:
                shown.evaluate(SET, [f"recurrence.step={step}"])
                seen += shown.eval_on_selector_all("svg.strip .now .token", tokens)
            given = characters(HOSTILE)
            assert seen == [given[step] if given[step].isprintable() else "�" for step in steps]
            assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_tokens_of_words(browser, write):
    sentence = ["<img src=x onerror=window.hit=1>", "👩‍👩‍👧‍👦" * 20, " ", "مرحبا", "a" * 500]
    path, _ = write(nn.RNN(3, 2), sentence)
    with opened(browser, path) as shown:
        assert shown.evaluate("window.hit") is None
        tokens = shown.eval_on_selector_all("svg.strip .token", "all => all.map(node => node.textContent)")
        assert tokens == ["<img src…", "👩‍👩‍👧‍👦" * 8 + "…", "␣", "مرحبا", "a" * 8 + "…"]


def test_large_layer(browser, write):
    torch.manual_seed(0)
    layer = nn.LSTM(256, 512)
    path, report = write(layer, torch.randn(200, 1, 256), lang="en")
    data = data_of(report)
    assert path.stat().st_size < 3_000_000
    assert not data["whole"]
    assert len(data["units"]) == 16
    with opened(browser, path) as shown:
        paint = shown.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        drawn = shown.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert paint < 2000
        assert drawn < 4000
        assert "8 of 512" in shown.inner_text('[data-part="lines"]')
        shown.evaluate(OPEN)
        assert words("recurrence", "en")["no_room"] in shown.inner_text('[data-part="experiments"]')
        assert shown.locator('[data-setting="factor"]').count() == 0
        output, kept = report.origin.explained.sequence.output, data["kept"]
        last = len(data["sites"]) - 1
        unit = data["units"][-1]
        hashes = [f"recurrence.step={place}&recurrence.unit={unit}" for place in (0, len(kept) // 2, len(kept) - 1)]
        for place, seen in zip((0, len(kept) // 2, len(kept) - 1), shown.evaluate(SET, hashes), strict=True):
            own = output[kept[place], data["units"][8:]].tolist()
            assert all(map(agree, seen[f"value-{last}"][0], own))
            assert seen["source"] == "python"
            assert len(seen["waterfall"]) == 14 + 1 + 2
        reference = Reference(report, {})
        moments, weights = reference.gradients("sum")
        for column, moment in enumerate(data["backward"]["moments"]):
            assert agree(seen["length-0"][column][0], float(moments[moment][0].norm()))
        for row, texts in zip(weights["U"][:8, :8].tolist(), seen["sum"], strict=True):
            assert all(map(agree, texts, row))


def test_what_cannot_be_recomputed(browser, write):
    @pellucid.cell
    def odd(x, h, *, U, W):
        return torch.tanh(torch.lgamma(torch.exp(x @ U)) + h @ W)

    path, _ = write(odd(4, 3), SENTENCE, lang="en")
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        text = shown.inner_text('[data-part="experiments"]')
        assert "left out" in text
        assert "lgamma" in text
        assert shown.locator('[data-setting="factor"]').count() == 0
        shown.locator('[data-part="backward"]').get_by_text("the chosen unit alone").click()
        assert "source" not in shown.inner_text('[data-part="backward"]')
        assert shown.evaluate(READ)["source"] == "python"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_numbers(browser, write, value):
    x = torch.randn(4, 1, 3)
    x[2, 0, 1] = value
    path, _ = write(nn.GRU(3, 2), x)
    with opened(browser, path, "recurrence.step=2") as shown:
        shown.evaluate(OPEN)
        assert ("nan" if value != value else "inf") in shown.evaluate(READ)["input-0"][0]
        shown.evaluate(SET, ["recurrence.factor=2"])


def test_few_and_many(browser, write):
    assert exhibits_of(quietly(nn.RNN(3, 2), torch.zeros(0, 1, 3))) == ()
    for layer, x in (
        (nn.LSTMCell(4, 3), torch.randn(2, 4)),
        (nn.RNN(1, 1), torch.randn(1, 1)),
        (nn.GRU(4, 3, bias=False), torch.randn(3, 4)),
        (noisy(4, 3).train(), torch.randn(3, 2, 4)),
        (nn.LSTM(4, 6, proj_size=2), torch.randn(3, 2, 4)),
        (torch.nn.GRU(4, 3).double(), torch.randn(3, 1, 4).double()),
        (leaky(4, 40), torch.randn(30, 1, 4)),
    ):
        path, report = write(layer, x, lang="en")
        with opened(browser, path, viewport=NARROW) as shown:
            shown.evaluate(OPEN)
            assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if (
                isinstance(report.origin.explained.layer, type(noisy(1, 1)))
                and layer.training
                and layer.solution().sites
            ):
                assert words("recurrence", "en")["without_draws"] in shown.inner_text("#exhibit-0")
            shown.evaluate(SET, ["recurrence.zero=1&recurrence.loss=unit&recurrence.folded=true"])
            assert not re.search(r"undefined|NaN", shown.inner_text("#exhibit-0"))


def test_source_unknown(browser, write):
    space = {"torch": torch}
    exec("def f(x, h, *, U, W):\n    return torch.tanh(x @ U + h @ W)", space)
    path, _ = write(pellucid.cell(space["f"])(4, 3), SENTENCE, lang="en")
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        assert words("recurrence", "en")["no_lines"] in shown.inner_text("#exhibit-0")
        assert "effect" in shown.evaluate(SET, ["recurrence.factor=2"])[0]


def test_hostile_settings(browser, write):
    path, _ = write(resonator(4, 3), "ab")
    hashes = [
        "recurrence.step=99&recurrence.unit=-4&recurrence.part=77&recurrence.sum=9&recurrence.line=1e9",
        "recurrence.scaled=<b>&recurrence.weight=nope&recurrence.symbol=__proto__&recurrence.factor=-5",
        "recurrence.rows=1e30&recurrence.columns=-1&recurrence.length=NaN&recurrence.swap_a=7.5&recurrence.loss=x",
    ]
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        for hash in hashes:
            shown.evaluate(SET, [hash])
            assert "undefined" not in shown.inner_text("#exhibit-0")
        assert "<b>driven</b>" not in json.dumps(shown.evaluate("document.body.innerHTML"))


@pellucid.cell
def in_many_ways(x, h, *, U, W, V, b=pellucid.zeros, c=pellucid.zeros, step: int = 1):
    """Products, cuts and activations as others write them."""
    a = x @ U
    a = a + h @ W - b
    i, z = torch.chunk(a, 2, -1)
    z = z.sigmoid()
    if step > 0:
        i = torch.nn.functional.relu(i)
    h = z * h + (1.0 - z) * (c - torch.sin(i) @ V.t()).tanh()
    return h


def row(data, source, step):
    kind, which = source
    if kind == "value":
        rows = data["sites"][which]["rows"]
        return rows[0 if len(rows) == 1 else step].double()
    if kind == "number":
        return torch.tensor([which], dtype=torch.float64)
    if kind == "parameter":
        return next(p["values"] for p in data["parameters"] if p["name"] == which).double()
    return (data["states"] if kind == "state" else data["inputs"])[which]["rows"][step].double()


def matrix(data, source):
    return data["sites"][source[1]]["matrix"].double() if source[0] == "value" else row(data, source, 0)


@pytest.mark.parametrize("cell", [*READY.values(), resonator, in_many_ways], ids=lambda cell: cell.source.name)
def test_sums_and_valves_are_what_the_lines_compute(cell):
    torch.manual_seed(4)
    layer = cell(4, 3, **(sizes_of(cell) if cell.source.name in READY else {}))
    data = data_of(quietly(layer, torch.randn(4, 1, 4)))
    assert data["sums"]
    for step in range(4):
        for found in data["sums"]:
            total = 0.0
            for term in found["terms"]:
                product = "left" in term
                value = (
                    row(data, term["left"], step) @ matrix(data, term["right"])
                    if product
                    else row(data, term["of"], step)
                )
                total = total + term["sign"] * value
            torch.testing.assert_close(total, row(data, ["value", found["at"]], step), atol=1e-6, rtol=1e-5)
        for valve in data["valves"]:
            total = 0.0
            for term in valve["terms"]:
                value = row(data, term["gate"] if "gate" in term else term["of"], step)
                if "gate" in term:
                    assert ((value >= 0) & (value <= 1)).all()
                    for operator, source, _ in term["others"]:
                        value = value * row(data, source, step) if operator == "*" else value / row(data, source, step)
                total = total + term["sign"] * value
            torch.testing.assert_close(total, row(data, ["value", valve["at"]], step), atol=1e-6, rtol=1e-5)


def test_lines_written_in_other_ways():
    data = data_of(quietly(in_many_ways(4, 3), torch.randn(4, 1, 4)))
    assert [[term["label"] for term in found["terms"]] for found in data["sums"]] == [
        ["c", "sin(iₜ) Vᵀ"],
        ["aₜ", "hₜ₋₁ W", "b"],
        ["xₜ U"],
    ]
    assert data["scaled"] == "W"
    (valve,) = data["valves"]
    assert [term["gate_label"] for term in valve["terms"]] == ["zₜ", "1.0 − zₜ"]


def test_inputs_and_layers_of_other_kinds():
    with torch.inference_mode():
        x = torch.randn(4, 1, 4)
    for layer, given in (
        (nn.RNN(4, 3), x),
        (nn.RNN(4, 3).requires_grad_(False), torch.randn(4, 1, 4)),
        (nn.GRU(4, 3).bfloat16(), torch.randn(4, 1, 4).bfloat16()),
        (nn.GRU(4, 3), torch.nn.utils.rnn.pack_sequence([torch.randn(4, 4), torch.randn(2, 4)])),
    ):
        data = data_of(quietly(layer, given))
        assert data["trouble"] is None
        assert data["steps"] == 4
        assert data["backward"]["checked"]["agrees"]
