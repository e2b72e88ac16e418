"""The vowels recipe: real series of different lengths, networks that read real steps only, speakers recognised."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys

import pytest
import torch

from pellucid.recipes.batches import collate
from pellucid.recipes.checkpoint import load
from pellucid.recipes.errors import RecipeError
from pellucid.recipes.vowels import data as vowels_data
from pellucid.recipes.vowels.data import Statistics, read_utterances
from pellucid.recipes.vowels.network import SpeakerNetwork
from pellucid.recipes.vowels.recipe import Settings
from recipe_commands import refused, run

TEST = [31, 35, 88, 44, 29, 24, 40, 50, 29]  # utterances of each speaker, as the authors give them
PLAIN = Statistics((0.0,) * 12, (1.0,) * 12)


@pytest.fixture(scope="module")
def parts():
    return read_utterances()


# -- data --------------------------------------------------------------------------------------------------------


def test_utterances_are_those_of_the_authors(parts):
    counts = {name: torch.tensor([speaker for _, speaker in part]).bincount().tolist() for name, part in parts.items()}
    assert counts == {"train": [25] * 9, "validation": [5] * 9, "test": TEST}
    lengths = [len(steps) for part in parts.values() for steps, _ in part]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {steps.shape[1] for part in parts.values() for steps, _ in part} == {12}
    first = parts["train"][0][0]
    torch.testing.assert_close(first[:2, :2], torch.tensor([[1.860936, -0.207383], [1.891651, -0.193249]]))


def test_split_is_fixed_and_no_utterance_crosses_it(parts):
    digest, prints = hashlib.sha256(), []
    for name, part in parts.items():
        for steps, speaker in part:
            prints.append(steps.numpy().tobytes())
            digest.update(name.encode() + bytes([speaker]) + prints[-1])
    assert len(set(prints)) == len(prints) == 640
    assert digest.hexdigest() == "c04fa38a0702c179ef3e03014e26887ee97d76b1fa671c456dd192708309ae4c"


def test_neighbours_are_of_different_speakers(parts):
    for name in ("train", "validation"):
        assert [speaker for _, speaker in parts[name]] == list(range(9)) * (len(parts[name]) // 9)


def test_reading_the_data_imports_nothing_of_the_package(parts):
    assert "sktime" not in sys.modules


def test_missing_and_damaged_data_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(vowels_data, "package_folder", lambda *_: tmp_path)
    with pytest.raises(RecipeError, match=r"JapaneseVowels_TRAIN\.ts is missing: pip install"):
        read_utterances()
    folder = tmp_path / "datasets" / "data" / "JapaneseVowels"
    folder.mkdir(parents=True)
    for content in ("", "@data\n1,2:3,4:1\n", "@data\n" + ":".join(["1,2"] * 11 + ["1"]) + ":1\n"):
        (folder / "JapaneseVowels_TRAIN.ts").write_text(content)
        with pytest.raises(RecipeError, match=r"JapaneseVowels_TRAIN\.ts is damaged"):
            read_utterances()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"sktime.*pip install 'pellucid\[train\]'"):
        read_utterances()


def test_statistics_are_of_the_training_part(parts):
    settings = Settings(limit=90)
    data = settings.data()
    assert data.sizes == {"train": 90, "validation": 45, "test": 370}
    network = settings.network(data.fitted)
    steps = torch.cat([network.normalised(steps) for steps, _ in parts["train"][:90]])
    torch.testing.assert_close(steps.mean(0), torch.zeros(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(steps.std(0, correction=0), torch.ones(12), rtol=0, atol=1e-5)
    assert settings.restored(json.loads(json.dumps(settings.stored(data.fitted)))) == data.fitted


# -- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gru", "lstm", "layernorm_lstm", "tcn"])
def test_padding_does_not_reach_the_verdict(model):
    torch.manual_seed(0)
    network = SpeakerNetwork(model, 6, PLAIN).eval()
    series = [(torch.randn(length, 12), 0) for length in (3, 11, 1)]
    batch = collate(series)
    together = network(batch.steps, batch.lengths)
    for row, (alone, _) in enumerate(series):
        torch.testing.assert_close(together[row], network(alone.unsqueeze(1), torch.tensor([len(alone)]))[0])


@pytest.mark.parametrize("model", ["gru", "tcn"])
def test_prefixes_are_utterances_of_their_own(model):
    torch.manual_seed(0)
    network, steps = SpeakerNetwork(model, 6, PLAIN), torch.randn(5, 12)
    found = network.probabilities_of_prefixes(steps)
    assert network.training, "reading leaves the mode as it was"
    network.eval()
    for t in range(1, 6):
        alone = network(steps[:t].unsqueeze(1), torch.tensor([t])).softmax(1)
        torch.testing.assert_close(found[t - 1], alone[0])


# -- trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gru", "tcn"])
def trained(request, tmp_path_factory):
    pytest.importorskip("lightning")
    out = tmp_path_factory.mktemp(request.param)
    options = ["--model", request.param, "--epochs", "12", "--device", "cpu", "--expect", "0.93", "--out", out]
    result = run("train", "vowels", *options)
    assert result.exit_code == 0, result.output
    assert "They have 7 to 29 steps of 12 features." in result.output
    return out


@pytest.mark.train
def test_accuracy_and_confusion(trained, parts):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["utterances"] == {"train": 225, "validation": 45, "test": 370}
    assert torch.tensor(metrics["confusion"]).sum(1).tolist() == TEST
    network = load(trained / "best.ckpt").network
    right = [
        int(network(steps.unsqueeze(1), torch.tensor([len(steps)])).argmax()) == speaker
        for steps, speaker in parts["test"]
    ]
    assert sum(right) / 370 == pytest.approx(metrics["test_accuracy"])


@pytest.mark.train
def test_utterances_are_recognised(trained, parts):
    trained_network = load(trained / "best.ckpt").network
    steps, speaker = parts["test"][40]
    probabilities = trained_network.probabilities_of_prefixes(steps)
    found = int(probabilities[-1].argmax()) + 1
    english = run("predict", trained / "best.ckpt", "41")
    assert english.exit_code == 0, english.output
    assert f"utterance 41 of the test part, {len(steps)} steps, never trained on; its speaker is {speaker + 1}" in (
        " ".join(english.output.split())
    )
    assert f"speaker {found}, probability {float(probabilities[-1].max()):.1%}" in english.output
    chinese = run("predict", trained / "best.ckpt", "41", "--explain", "--lang", "zh")
    assert chinese.exit_code == 0, chinese.output
    assert f"{found} 号说话人，概率" in chinese.output
    rows = [line.split() for line in chinese.output.splitlines()]
    for step, row in enumerate(probabilities, 1):
        assert any(r[:2] == [str(step), f"{float(row[found - 1]):.3f}"] for r in rows)
    assert "公式" in chinese.output
    assert "utterance 1 of the test part" in run("predict", trained / "best.ckpt").output


@pytest.mark.train
def test_what_a_network_of_vowels_does_not_read(trained):
    for wrong in (["0"], ["371"], ["1", "2"], ["seven.png"]):
        assert "by its number, 1 to 370" in refused("predict", trained / "best.ckpt", *wrong)
    if json.loads((trained / "metrics.json").read_text())["model"] == "tcn":
        assert "has no cell" in refused("predict", trained / "best.ckpt", "--cell", "mine.py:mine")


@pytest.mark.train
def test_resume(tmp_path):
    training = pytest.importorskip("pellucid.recipes.training")
    settings = Settings(limit=45, epochs=1, hidden_size=8, lr=0.01)
    training.train(tmp_path, settings, "cpu")
    metrics = training.resume(tmp_path, epochs=2, device="cpu")
    assert (metrics["epochs"], metrics["model"], metrics["hidden_size"]) == (2, "gru", 8)
    assert "has done its 2 epochs" in refused("train", "vowels", "--resume", "--out", tmp_path)
    assert "--model lstm: the training in" in refused(
        "train", "vowels", "--resume", "--model", "lstm", "--out", tmp_path
    )


@pytest.mark.train
def test_a_model_that_does_not_exist(tmp_path):
    message = refused("train", "vowels", "--model", "tcm", "--out", tmp_path / "out")
    assert "--model tcm: there is no such cell. Did you mean tcn?" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.train
def test_a_cell_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nimport pellucid\n\n@pellucid.cell\ndef mine(x, h, *, U, W, b=pellucid.zeros):\n"
        "    return torch.tanh(x @ U + h @ W + b)\n"
    )
    options = ["--limit", "45", "--epochs", "1", "--device", "cpu", "--hidden-size", "8", "--out", tmp_path / "out"]
    assert run("train", "vowels", "--model", f"{file}:mine", *options).exit_code == 0
    file.rename(tmp_path / "moved.py")
    assert "--cell FILE.py:NAME" in refused("predict", tmp_path / "out" / "best.ckpt")
    assert run("predict", tmp_path / "out" / "best.ckpt", "--cell", f"{tmp_path}/moved.py:mine").exit_code == 0
    resumed = ["--resume", "--epochs", "2", "--device", "cpu", "--model", f"{tmp_path}/moved.py:mine"]
    assert run("train", "vowels", *resumed, "--out", tmp_path / "out").exit_code == 0
