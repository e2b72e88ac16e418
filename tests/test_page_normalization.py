"""The exhibit of normalization, in Chromium: its numbers against torch.nn's layers, its keys, its edges."""

from __future__ import annotations

import random

import pytest
import torch

from explaining import quietly
from pages import NARROW, agree, browser, number, opened  # noqa: F401
from pellucid import nn
from pellucid.explanation import page
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


def made(kind, *arguments, seed=0, **options):
    """A layer whose parameters are not those of a new one."""
    torch.manual_seed(seed)
    layer = kind(*arguments, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.7)
    return layer


def write(tmp_path, layer, x, **options):
    report = quietly(layer, x, **options)
    path = tmp_path / "page.html"
    path.write_text(page.html(report), encoding="utf-8")
    return path, report.origin.exhibits()[0].data


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
        means, variances = [running["means"][0], torch_layer.running_mean], [running["vars"][0], torch_layer.running_var]
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
    """Compare what is written, in the order in which the page draws the places."""
    return len(texts) == values.numel() and all(map(agree, texts, values.flatten().tolist()))


def as_drawn(values, data):
    """The order of the picture: blocks of samples and channels, and inside rows and columns."""
    return values  # blocks of one sample after the other, of one channel after the other: that of memory


@pytest.mark.parametrize("case", CASES)
def test_random_settings(browser, tmp_path, case):  # noqa: F811
    make, shape = CASES[case]
    layer = make()
    path, data = write(tmp_path, layer, drawn(*shape))
    rng = random.Random(case)
    with opened(browser, path) as shown:
        shown.evaluate(OPEN)
        for _ in range(40):
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


@pytest.mark.parametrize("case", CASES)
def test_what_is_shown_first_is_the_layers(browser, tmp_path, case):  # noqa: F811
    make, shape = CASES[case]
    layer, x = make(), drawn(*shape)
    path, _ = write(tmp_path, layer, x)
    with torch.no_grad():
        y = layer(x)
    with opened(browser, path) as shown:
        read = shown.evaluate(READ, "normalization.show=y")
        assert read["source"] == "python"
        assert all_agree(read["cells"], y.double())
        assert all_agree(shown.evaluate(READ, "")["cells"], x.double())
