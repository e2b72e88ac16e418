"""The exhibit of normalization, in Chromium: its numbers against torch.nn's layers, its keys, its edges."""

from __future__ import annotations

import random

import pytest
import torch

from explaining import quietly
from pages import NARROW, WIDE, agree, complaints_of_axe, number, opened
from pellucid import nn
from pellucid.explanation.page import html
from pellucid.explanation.page.arrays import as_json
from pellucid.explanation.page.document import Document
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.page.words import words

READ = """hash => {
  history.replaceState(null, "", "#" + hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
  const texts = (selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent);
  const named = (name) => Object.fromEntries(
    [...document.querySelectorAll(`.exhibit [data-${name}]`)].map((node) => [node.dataset[name], node.textContent]));
  return {
    cells: texts('[data-multiples="input"] .cell'), gradient: texts('[data-multiples="gradient"] .cell'),
    shares: document.querySelectorAll('[data-multiples="input"] .shares').length,
    count: texts(".count")[0], worked: texts(".worked .recomputed"), results: named("result"), terms: named("term"),
    kept: named("kept"), meeting: texts(".meeting"), source: document.querySelector(".exhibit").dataset.source,
    averages: texts("tr.own [data-average]"), alone: texts('[data-grid="alone-batch"] .cell'),
  };
}"""
OPEN = "document.querySelectorAll('.exhibit details').forEach(node => node.open = true)"


def made(kind, *arguments, **options):
    """A layer whose parameters are not those of a new one."""
    torch.manual_seed(0)
    layer = kind(*arguments, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.7)
    return layer


def write(tmp_path, layer, x, **options):
    """Write the page, as page.html does; return its data too."""
    report = quietly(layer, x, **options)
    exhibits = exhibits_of(report)
    path = tmp_path / "page.html"
    path.write_text(Document(report.translations(), exhibits).html(), encoding="utf-8")
    return path, exhibits[0].data


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


CASES = {
    "batch": (lambda: made(nn.BatchNorm2d, 4), (3, 4, 2, 2)),
    "flat": (lambda: made(nn.BatchNorm1d, 3), (4, 3)),
    "group": (lambda: made(nn.GroupNorm, 2, 6), (2, 6, 3)),
    "layer": (lambda: made(nn.LayerNorm, 4), (3, 4, 4)),
    "picture": (lambda: made(nn.LayerNorm, (3, 2, 2)), (2, 3, 2, 2)),
    "instance": (lambda: made(nn.InstanceNorm1d, 3, affine=True, track_running_stats=True), (2, 3, 4)),
    "rms": (lambda: made(nn.RMSNorm, 5), (3, 5)),
}


class Setting:
    """One setting of the page at random, and what torch's layers make of it."""

    def __init__(self, rng, data, layer):
        self.data = data
        self.kind = rng.choice(data["kinds"])
        self.groups = rng.choice(data["groups"])
        self.show = rng.choice(["x_hat", "y"])
        self.eps = rng.choice([data["eps"], 1e-3, 0.5])
        self.mode = rng.choice(["train", "eval"]) if f"{self.kind}/eval" in data["values"] else "train"
        self.seen = rng.randrange(7) if data["running"] else 0
        self.momentum = rng.choice([0.1, 0.35, 1.0])
        unbiased = f"{self.kind}/unbiased" in data["programs"] and self.mode == "train"
        self.divisor = rng.choice(["biased", "unbiased"]) if unbiased and rng.random() < 0.3 else "biased"
        self.x = data["x"].double().clone()
        self.cell = rng.randrange(self.x.numel())
        self.gamma = self.parameter("gamma")
        self.beta = self.parameter("beta")
        self.edits = []
        for _ in range(rng.choice([0, 0, 1, 3])):
            self.edit("x", self.x, rng)
        member = data["members"][self.kind]
        axes = "-".join(map(str, member["affine"]))
        if member["scales"] and rng.random() < 0.4:
            self.edit(f"gamma.{axes}", self.gamma, rng)
        if member["shifts"] and rng.random() < 0.4:
            self.edit(f"beta.{axes}", self.beta, rng)

    def parameter(self, name):
        member = self.data["members"][self.kind]
        return member[name].double().clone()

    def edit(self, key, tensor, rng):
        place, value = rng.randrange(tensor.numel()), round(rng.uniform(-4, 4), 2)
        tensor.view(-1)[place] = value
        self.edits.append(f"{key}.{place}:{value}")

    @property
    def hash(self):
        names = ("kind", "groups", "show", "eps", "mode", "seen", "momentum", "divisor", "cell")
        parts = {name: getattr(self, name) for name in names} | {"edits": ",".join(self.edits)}
        return "&".join(f"normalization.{name}={value}" for name, value in parts.items())

    def kept(self):
        """The running statistics after every batch: of the first batch torch's own."""
        running = self.data["running"]
        rows = self.x.movedim(self.data["channel"], 1)
        torch_layer = (torch.nn.InstanceNorm1d if running["kind"] == "instance" else torch.nn.BatchNorm1d)(
            rows.shape[1], momentum=self.momentum, track_running_stats=True, affine=False
        ).double()
        torch_layer.running_mean.copy_(running["means"][0])
        torch_layer.running_var.copy_(running["vars"][0])
        torch_layer(rows.flatten(2) if rows.ndim > 2 else rows)
        means, variances = (
            [running["means"][0], torch_layer.running_mean],
            [running["vars"][0], torch_layer.running_var],
        )
        for mean, variance in zip(running["mean"][1:], running["var"][1:], strict=True):
            means.append((1 - self.momentum) * means[-1] + self.momentum * mean)
            variances.append((1 - self.momentum) * variances[-1] + self.momentum * variance)
        return means, variances

    def layer(self, kind, shape, affine):
        """Torch's layer of a kind for an input (samples, channels, *space)."""
        channels, space = shape[1], shape[2:]
        if kind == "batch":
            made = (torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)[len(space)]
            found = made(channels, self.eps, affine=affine)
        elif kind == "instance":
            made = (torch.nn.InstanceNorm1d, torch.nn.InstanceNorm2d)[len(space) - 1]
            found = made(channels, self.eps, affine=affine, track_running_stats=self.mode == "eval")
        elif kind == "group":
            found = torch.nn.GroupNorm(self.groups, channels, self.eps, affine)
        else:
            made = torch.nn.LayerNorm if kind == "layer" else torch.nn.RMSNorm
            last = self.data["channel"] > 1
            found = made((channels,) if last else shape[1:], self.eps, affine)
        return found.double()

    def expected(self):
        """What the page has to show: the numbers of the chosen kind by torch.nn, and the gradients of the input."""
        channel, member = self.data["channel"], self.data["members"][self.kind]
        x = self.x.clone().requires_grad_()
        along = x if self.kind in ("layer", "rms") else x.movedim(channel, 1)
        layer = self.layer(self.kind, x.movedim(channel, 1).shape, member["scales"])
        if self.mode == "eval":
            means, variances = self.kept()
            layer.running_mean.copy_(means[self.seen])
            layer.running_var.copy_(variances[self.seen])
            layer.eval()
        if self.divisor == "unbiased":
            return self.unbiased(x), None
        if member["scales"]:
            layer.weight.data.copy_(self.gamma.reshape(layer.weight.shape))
        if member["shifts"]:
            layer.bias.data.copy_(self.beta.reshape(layer.bias.shape))
        y = layer(along)
        y = y if self.kind in ("layer", "rms") else y.movedim(1, channel)
        (gradient,) = torch.autograd.grad(y, x, self.data["upstream"].double(), retain_graph=True)
        if self.show == "x_hat" and member["scales"]:
            layer.weight.data.fill_(1)
            if member["shifts"]:
                layer.bias.data.fill_(0)
            y = layer(along)
            y = y if self.kind in ("layer", "rms") else y.movedim(1, channel)
        return y.detach(), gradient

    def unbiased(self, x):
        axes = tuple(self.data["members"][self.kind]["axes"])
        variance, mean = torch.var_mean(x, axes, keepdim=True)
        x_hat = (x - mean) / (variance + self.eps).sqrt()
        return (x_hat if self.show == "x_hat" else x_hat * self.gamma + self.beta).detach()


def all_agree(texts, values):
    """Compare what is written; the page draws the places in their order in memory."""
    return len(texts) == values.numel() and all(map(agree, texts, values.flatten().tolist()))


@pytest.mark.parametrize("case", CASES)
def test_numbers_at_random_settings(browser, tmp_path, case):
    make, shape = CASES[case]
    layer, x = make(), drawn(*shape)
    path, data = write(tmp_path, layer, x)
    with torch.no_grad():
        y = layer(x)
    rng = random.Random(case)
    with opened(browser, path) as shown:
        read = shown.evaluate(READ, "normalization.show=y")  # what is shown first is the layer's
        assert read["source"] == "python"
        assert all_agree(read["cells"], y.double())
        assert all_agree(shown.evaluate(READ, "")["cells"], x.double())
        shown.evaluate(OPEN)
        for _ in range(30):
            setting = Setting(rng, data, layer)
            read = shown.evaluate(READ, setting.hash)
            expected, gradient = setting.expected()
            assert all_agree(read["cells"], expected), setting.hash
            if gradient is not None:
                assert all_agree(read["gradient"], gradient), setting.hash
                chosen = gradient.flatten()[setting.cell].item()
                assert agree(read["results"]["total"], chosen), setting.hash
                assert abs(sum(map(number, read["terms"].values())) - chosen) < 2e-3 * (1 + abs(chosen))
            if setting.mode == "eval" or (data["running"] and setting.kind == data["running"]["kind"]):
                means, variances = setting.kept()
                at = torch.unravel_index(torch.tensor(setting.cell), setting.x.shape)[data["channel"]]
                for k in range(1, 7):
                    assert agree(read["kept"][f"{k},1"], means[k][at].item()), setting.hash
                    assert agree(read["kept"][f"{k},3"], variances[k][at].item()), setting.hash


def by_torch(kind, groups, real, eps):
    """x̂ of the real steps alone, a tensor (steps, features) for each sentence."""
    if kind == "batch":
        rows = torch.nn.functional.batch_norm(torch.cat(real), None, None, training=True, eps=eps)
        return rows.split([len(rows) for rows in real])
    if kind in ("layer", "rms"):
        function = torch.nn.functional.layer_norm if kind == "layer" else torch.nn.functional.rms_norm
        return [function(rows, rows.shape[1:], eps=eps) for rows in real]
    groups = real[0].shape[1] if kind == "instance" else groups
    return [torch.nn.functional.group_norm(rows.T[None], groups, eps=eps)[0].T for rows in real]


def test_numbers_at_random_lengths(browser, tmp_path):
    """Padding changes nothing: torch gets the real steps alone."""
    path, data = write(tmp_path, made(nn.LayerNorm, 4), drawn(3, 5, 4), lengths=torch.tensor([5, 2, 3]))
    rng = random.Random(0)
    x = data["x"].double()
    with opened(browser, path) as shown:
        for _ in range(60):
            kind, groups = rng.choice(data["kinds"]), rng.choice(data["groups"])
            lengths = [rng.randrange(2, 6) for _ in range(3)]
            parts = {f"length{n}": length for n, length in enumerate(lengths)} | {"kind": kind, "groups": groups}
            parts |= {"show": "x_hat", "eps": 0.01}
            read = shown.evaluate(READ, "&".join(f"normalization.{k}={v}" for k, v in parts.items()))
            expected = by_torch(kind, groups, [x[n, :length] for n, length in enumerate(lengths)], 0.01)
            cells = iter(read["cells"])
            for n, length in enumerate(lengths):
                for step in range(5):
                    texts = [next(cells) for _ in range(4)]
                    assert all_agree(texts, expected[n][step]) if step < length else texts == ["–"] * 4


def test_lengths_of_the_call_are_the_layers(browser, tmp_path):
    layer, x, lengths = made(nn.BatchNorm1d, 3), drawn(2, 3, 4), torch.tensor([2, 4])
    x[0, :, 2:] = float("nan")
    path, _ = write(tmp_path, layer, x, lengths=lengths)
    with torch.no_grad():
        y = layer(x, lengths=lengths)
    with opened(browser, path) as shown:
        read = shown.evaluate(READ, "normalization.show=y")
        padding = [n == 0 and step >= 2 for n in range(2) for _ in range(3) for step in range(4)]
        for text, marked, value in zip(read["cells"], padding, y.flatten().tolist(), strict=True):
            assert text == "–" if marked else agree(text, value)
        assert "6 numbers" not in read["count"]
        assert "6 of them real" in read["count"]


def test_the_set_of_a_cell(browser, tmp_path):
    path, _ = write(tmp_path, made(nn.BatchNorm2d, 4), drawn(3, 4, 2, 2))
    wanted = {
        "kind=batch": (12, "3 samples × 2 rows × 2 columns = 12 numbers"),
        "kind=layer": (16, "4 channels × 2 rows × 2 columns = 16 numbers"),
        "kind=instance": (4, "2 rows × 2 columns = 4 numbers"),
        "kind=group&normalization.groups=2": (8, "2 channels × 2 rows × 2 columns = 8 numbers"),
        "kind=rms": (16, "4 channels × 2 rows × 2 columns = 16 numbers"),
    }
    with opened(browser, path) as shown:
        for hash, (shares, count) in wanted.items():
            read = shown.evaluate(READ, f"normalization.{hash}&normalization.cell=21")
            assert read["shares"] == shares
            assert read["count"].startswith(count)


def test_groups_meet_layer_and_instance(browser, tmp_path):
    path, _ = write(tmp_path, made(nn.GroupNorm, 2, 6), drawn(2, 6, 3))
    with opened(browser, path) as shown:
        for groups, kind in ((1, "Layer"), (6, "Instance")):
            for edits in ("", "x.4:3.5"):
                read = shown.evaluate(READ, f"normalization.groups={groups}&normalization.edits={edits}")
                assert f"That is {kind}" in read["meeting"][0]
                assert number(read["meeting"][0].rsplit("= ", 1)[1].rstrip(".")) < 1e-6
        assert "2 of 6 channels" in shown.evaluate(READ, "normalization.groups=3")["meeting"][0]
    path, _ = write(tmp_path, nn.LayerNorm(4), drawn(2, 3, 4))
    with opened(browser, path) as shown:  # in sentences one group is not Layer
        read = shown.evaluate(READ, "normalization.kind=group&normalization.groups=1")
        assert "do not meet" in read["meeting"][0]


def test_two_divisors(browser, tmp_path):
    layer, x = nn.BatchNorm1d(3), drawn(4, 3)
    path, _ = write(tmp_path, layer, x)
    biased, unbiased = (torch.var(x[:, 0].double(), correction=c).item() for c in (0, 1))
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        read = shown.evaluate(READ, "")
        assert agree(read["results"]["biased"], biased)
        assert agree(read["results"]["unbiased"], unbiased)
        assert agree(read["averages"][1], biased)
        read = shown.evaluate(READ, "normalization.divisor=unbiased")
        assert agree(read["averages"][1], unbiased)
        assert read["source"] == "page"


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_what_is_said_of_the_mean_square_is_so(lang):
    x = torch.tensor([[1.0, 2.0, 4.0, 7.0], [3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    variance, eps = x.var(-1, correction=0), 0.5
    square = torch.nn.functional.layer_norm(x, (4,), eps=eps).square().mean(-1)
    torch.testing.assert_close(square, variance / (variance + eps))
    said = words("normalization", lang)["divisor_main"]
    assert "σ²/(σ² + ε)" in said
    assert not any(wrong in said for wrong in ("exactly", "恰好"))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 2)])
def test_a_batch_of_one(browser, tmp_path, shape):
    layer = nn.BatchNorm1d(4) if len(shape) == 2 else nn.BatchNorm2d(4)
    x = drawn(*shape)
    path, data = write(tmp_path, layer, x)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        for edits in ("", "x.5:2.5"):
            x = data["x"].double().clone()
            x.view(-1)[5] = 2.5 if edits else x.view(-1)[5]
            read = shown.evaluate(READ, f"normalization.edits={edits}")
            if len(shape) == 2:
                assert read["alone"] == ["0"] * 4
                with pytest.raises(ValueError, match="Expected more than 1 value") as refused:
                    nn.BatchNorm1d(4)(x[:1].float())
                assert str(refused.value) == shown.text_content("blockquote")
            else:
                alone = torch.nn.BatchNorm2d(4).double()(x[:1])
                assert all_agree(read["alone"], alone)


def test_eval_of_the_layer(browser, tmp_path):
    layer = made(nn.BatchNorm2d, 3)
    for seed in range(3):
        layer(drawn(4, 3, 2, 2, seed=seed))
    layer.eval()
    x = drawn(2, 3, 2, 2)
    path, data = write(tmp_path, layer, x)
    assert data["eval"]
    with opened(browser, path) as shown:
        read = shown.evaluate(READ, "normalization.show=y")
        assert read["source"] == "python"
        assert all_agree(read["cells"], layer(x).detach().double())
        edited = x.double().clone()
        edited.view(-1)[3] = 9.0
        read = shown.evaluate(READ, "normalization.show=y&normalization.edits=x.3:9")
        assert all_agree(read["cells"], layer.double()(edited).detach())


def test_local_response(browser, tmp_path):
    layer, x = nn.LocalResponseNorm(3, alpha=0.5, beta=0.7, k=2.0), drawn(2, 5, 3)
    path, data = write(tmp_path, layer, x)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        read = shown.evaluate(READ, "normalization.show=y&normalization.cell=6")
        assert all_agree(read["cells"], layer(x).double())
        assert read["shares"] == 3
        given = data["x"].double().clone()
        given.view(-1)[6] = -4.0
        changed = torch.nn.functional.local_response_norm(given, 3, alpha=0.25, beta=0.7, k=2.0)
        read = shown.evaluate(READ, "normalization.show=y&normalization.edits=x.6:-4,number.alpha:0.25")
        assert all_agree(read["cells"], changed)
        assert words("normalization", "en")["backward_unknown"] in shown.inner_text(".backward")


def test_the_general_member(browser, tmp_path):
    layer, x = made(nn.Normalization, (0, 2), (1,), (4,)), drawn(3, 4, 2)
    path, data = write(tmp_path, layer, x)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        assert all_agree(shown.evaluate(READ, "normalization.show=y")["cells"], layer(x).detach().double())
        given = data["x"].double().clone()
        given.view(-1)[3] = 5.0
        read = shown.evaluate(READ, "normalization.show=y&normalization.edits=x.3:5")
        assert all_agree(read["cells"], layer.double()(given).detach())
        assert read["count"].startswith("3 along I × 2 along K = 6 numbers")


EDGES = {
    "one number": (lambda: nn.LayerNorm(1), (1, 1)),
    "unbatched": (lambda: nn.InstanceNorm1d(3), (3, 4)),
    "a vector": (lambda: nn.LayerNorm(5), (5,)),
    "one channel": (lambda: nn.BatchNorm2d(1), (2, 1, 2, 2)),
    "one sample": (lambda: nn.BatchNorm2d(2), (1, 2, 2, 2)),
    "eval of one": (lambda: nn.BatchNorm1d(3).eval(), (1, 3)),
    "no parameters": (lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False), (4, 3)),
    "no bias": (lambda: nn.LayerNorm(4, bias=False), (2, 4)),
    "cumulative": (lambda: nn.BatchNorm1d(3, momentum=None), (4, 3)),
    "video": (lambda: nn.BatchNorm3d(2), (2, 2, 2, 2, 2)),
    "many axes": (lambda: nn.LayerNorm((2, 2, 1, 2, 2)), (2, 2, 2, 2, 1, 2, 2)),
    "deep": (lambda: nn.GroupNorm(1, 2), (1, 2, 1, 2, 1, 2)),
    "kept instance": (lambda: nn.InstanceNorm1d(3, track_running_stats=True).eval(), (2, 3, 4)),
    "all axes": (lambda: nn.Normalization((0, 1, 2, 3)), (2, 2, 2, 3)),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges(browser, tmp_path, edge):
    make, shape = EDGES[edge]
    layer, x = make(), drawn(*shape)
    with torch.no_grad():
        y = layer(x).double()
    path, data = write(tmp_path, layer, x)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        read = shown.evaluate(READ, "normalization.show=y")
        assert all_agree(read["cells"], y)
        for kind in data["kinds"]:
            for mode in ("train", "eval"):
                read = shown.evaluate(READ, f"normalization.kind={kind}&normalization.mode={mode}&normalization.seen=2")
                assert len(read["cells"]) == x.numel()
        shown.evaluate(READ, "normalization.edits=x.0:7")


def test_what_is_no_number(browser, tmp_path):
    x = drawn(3, 4)
    x[0, 1], x[2, 2] = float("nan"), float("inf")
    path, _ = write(tmp_path, nn.LayerNorm(4), x)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        read = shown.evaluate(READ, "")
        assert read["cells"][1] == "nan"
        assert read["cells"][10] == "inf"
        read = shown.evaluate(READ, "normalization.show=y&normalization.edits=x.10:1")
        assert read["cells"][:4] == ["nan"] * 4
        assert "nan" not in read["cells"][4:]


def test_nothing_to_see_of_no_numbers():
    assert exhibits_of(quietly(nn.LayerNorm(4), torch.zeros(0, 4))) == ()


def test_a_large_input(browser, tmp_path):
    layer, x = made(nn.BatchNorm2d, 64), drawn(16, 64, 14, 14)
    path, data = write(tmp_path, layer, x)
    assert len(as_json(data)) < 100 * 1024
    mean = x.double().mean((0, 2, 3))
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        read = shown.evaluate(READ, "normalization.show=y&normalization.eps=1&normalization.edits=x.0:5")
        assert read["source"] == "python"  # what is not all in the page cannot be changed there
        part = tuple(slice(size) for size in data["shown"])
        with torch.no_grad():
            assert all_agree(read["cells"], layer(x)[part].double())
        assert agree(read["averages"][0], mean[0].item())
        assert "16 samples × 14 rows × 14 columns = 3,136 numbers" in read["count"]
        assert shown.query_selector_all("[data-field]") == []
        for kind in data["kinds"]:
            shown.evaluate(READ, f"normalization.kind={kind}&normalization.mode=eval&normalization.seen=3")
        given = x.double().requires_grad_()
        y = torch.nn.functional.batch_norm(given, None, None, layer.weight.double(), layer.bias.double(), True)
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(y, given, (upstream * 10).round() / 10)
        read = shown.evaluate(READ, "")
        assert all_agree(read["gradient"], gradient[part])
        assert agree(read["results"]["total"], gradient[0, 0, 0, 0].item())


def test_a_large_input_with_padding(browser, tmp_path):
    lengths = torch.tensor([30, 200, 128, 1])
    path, _ = write(tmp_path, nn.BatchNorm1d(16), drawn(4, 16, 200), lengths=lengths)
    with opened(browser, path) as shown:
        assert "359 of them real" in shown.evaluate(READ, "")["count"]
        assert "30 of them real" in shown.evaluate(READ, "normalization.kind=instance")["count"]
        assert "60 of them real" in shown.evaluate(READ, "normalization.kind=group&normalization.groups=8")["count"]


@pytest.mark.parametrize("viewport", [WIDE, NARROW])
def test_by_keyboard_alone(browser, tmp_path, viewport):
    path, _ = write(tmp_path, made(nn.LayerNorm, 4), drawn(2, 3, 4))
    with opened(browser, path, viewport=viewport) as shown:
        shown.evaluate(OPEN)
        shown.evaluate(READ, "normalization.kind=batch&normalization.mode=eval")
        wanted = set(
            shown.eval_on_selector_all(
                ".exhibit [data-setting], .exhibit [data-field], .exhibit .player button:not(:disabled)",
                "list => list.filter(n => n.offsetParent && (n.type !== 'radio' || n.checked)).map(n => n.outerHTML)",
            )
        )
        assert len(wanted) > 12
        shown.focus('[data-colour="dark"]')
        reached = set()
        for _ in range(120):
            shown.keyboard.press("Tab")
            reached.add(shown.evaluate("document.activeElement.outerHTML"))
        assert wanted <= reached

        shown.focus('[data-multiples="input"] [tabindex="0"]')
        for key, cell in (("ArrowRight", "1"), ("ArrowDown", "5"), ("ArrowLeft", "4"), ("ArrowUp", None)):
            shown.keyboard.press(key)
            assert shown.evaluate("new URLSearchParams(location.hash.slice(1)).get('normalization.cell')") == cell
        shown.focus('input[data-setting="kind"]:checked')
        shown.keyboard.press("ArrowRight")
        assert "normalization.kind" not in shown.url  # Layer, the layer's own
        shown.focus('[data-field="x"]')
        shown.keyboard.press("Control+A")
        shown.keyboard.type("-3.25")
        shown.keyboard.press("Enter")
        assert shown.eval_on_selector('[data-multiples="input"] .active', "cell => cell.textContent") == "−3.250"
        assert shown.eval_on_selector(".exhibit", "node => node.dataset.source") == "page"
        shown.focus(".source button")
        shown.keyboard.press("Enter")
        assert shown.eval_on_selector(".exhibit", "node => node.dataset.source") == "python"


def test_a_player_over_batches(browser, tmp_path):
    path, _ = write(tmp_path, nn.BatchNorm1d(3), drawn(4, 3))
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        shown.focus('.player input[type="range"]')
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowRight")
        assert "normalization.seen=2" in shown.url
        shown.click('.player button[aria-label="play"]')
        shown.wait_for_function("location.hash.includes('normalization.seen=4')", timeout=6000)
        shown.click('.player button[aria-label="pause"]')
        assert shown.get_attribute(".kept tr.own", "aria-current") == "true"


def test_both_languages(browser, tmp_path):
    path, _ = write(tmp_path, made(nn.LayerNorm, 4), drawn(2, 3, 4), lengths=torch.tensor([3, 1]))
    english, chinese = words("normalization", "en"), words("normalization", "zh")
    with opened(browser, path, "lang=zh&normalization.kind=batch") as shown:
        shown.evaluate(OPEN)
        text = shown.inner_text(".exhibit")
        for key in ("main_batch", "divisor_main", "running_main", "alone_eval", "backward_main", "padding_sentence"):
            assert chinese[key] in text
            assert english[key] not in text
        assert not any(letter in text for letter in "{}")
        first = shown.evaluate(READ, "lang=zh&normalization.show=y")["cells"]
        shown.click('[data-speak="en"]')
        assert english["padding_sentence"] in shown.inner_text(".exhibit")
        assert shown.evaluate(READ, "normalization.show=y")["cells"] == first


HOSTILE = [
    "kind=<script>alert(1)</script>",
    "cell=-7&normalization.groups=1e9",
    "cell=NaN",
    "edits=x.9999:1,gamma.1.zz:2,__proto__:3,x.1:Infinity,,:,x.1:1:2",
    "eps=-1&normalization.momentum=77",
    "seen=99&normalization.mode=eval&normalization.divisor=%00",
    "length0=-3&normalization.length1=1e9",
]


def test_hostile_settings(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(html(quietly(nn.BatchNorm1d(4), drawn(2, 4, 3))), encoding="utf-8")
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        for hash in HOSTILE:
            assert len(shown.evaluate(READ, f"normalization.{hash}")["cells"]) == 24
        assert shown.query_selector(".exhibit script") is None


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_terms_of_the_way_back_stay_on_one_line_of_a_narrow_page(browser, tmp_path, lang):
    path, _ = write(tmp_path, made(nn.LayerNorm, 4), drawn(2, 3, 4))
    with opened(browser, path, f"lang={lang}&normalization.cell=7", NARROW) as shown:
        shown.evaluate(OPEN)
        shown.wait_for_selector("table.terms")
        cells = shown.eval_on_selector_all(
            "table.terms td:not([aria-hidden])",
            """all => all.map(node =>
                [node.textContent, node.scrollHeight / parseFloat(getComputedStyle(node).lineHeight)])""",
        )
        assert len(cells) == 6
        assert all(lines < 2 for _, lines in cells), cells
        assert shown.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


@pytest.mark.parametrize(("theme", "viewport"), [("light", WIDE), ("dark", NARROW)])
def test_axe(browser, tmp_path, theme, viewport):
    path, _ = write(tmp_path, made(nn.BatchNorm1d, 4), drawn(3, 4, 3), lengths=torch.tensor([3, 2, 1]))
    with opened(browser, path, f"theme={theme}&normalization.cell=7", viewport) as shown:
        shown.evaluate(OPEN)
        assert complaints_of_axe(shown, "serious", "critical") == []


def test_what_is_no_number_has_no_place_in_the_chart(browser, tmp_path):
    x = torch.tensor([[float("nan"), 1, 2], [1e38, -1e38, 0], [float("inf"), 0, -0.0]])
    path, _ = write(tmp_path, nn.BatchNorm1d(3), x)
    with opened(browser, path, "lang=en") as page:
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        page.wait_for_selector(".chart", state="attached")
