"""Explanations of what is empty, frozen, computed anew, without bias or of different lengths."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import pellucid
from explaining import quietly
from pellucid import nn
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.report import Picture
from pellucid.explanation.subject import characters
from pellucid.nn import cells


def test_an_empty_batch_is_refused_in_words():
    with pytest.raises(ValueError, match=r"time 2, batch 0, features 4.*no sequence"):
        quietly(nn.RNN(4, 3), torch.zeros(2, 0, 4))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_empty_input_has_no_mean(lang: str):
    nothing = {
        "en": "The input has no numbers, so there is nothing to average.",
        "zh": "输入里一个数也没有，没有什么可取平均。",
    }
    for layer, x in ((nn.BatchNorm1d(4), torch.zeros(0, 4)), (nn.LayerNorm(0), torch.zeros(2, 0))):
        assert said_in(quietly(layer, x, lang=lang)) == [nothing[lang]]
    assert not said_in(quietly(nn.LayerNorm(2), torch.tensor([[1, torch.inf]]), lang=lang))


def said_in(report):
    return [part for step in report.steps for part in step.parts if isinstance(part, str)]


def test_sentences_without_words_are_explained():
    report = quietly(nn.TextConv(4, 3), torch.zeros(2, 0, 4))
    assert report.check.agrees
    assert "There are no words here: every filter gives 0." in report.steps[0].parts


def test_complex_numbers_are_refused_and_not_made_real():
    for layer in (nn.GRU(3, 2), nn.Conv1d(3, 2, 1), nn.LayerNorm(3), nn.MaxPool1d(1)):
        with pytest.raises(
            NotImplementedError, match=r"nn\.\w+: .*\(3, 3\) of torch.complex64, and explanations .*view_as_real"
        ):
            quietly(layer, torch.ones(3, 3, dtype=torch.complex64))


@pytest.mark.parametrize("make", [nn.Conv1d, nn.ConvTranspose1d])
def test_weights_that_are_computed_stay_the_same(make, tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.spectral_norm(make(8, 16, 3))  # whose estimate goes on in training
    state = copy.deepcopy(layer.state_dict())
    report = quietly(layer, torch.randn(1, 8, 5))
    assert report.check.difference < 1e-5
    report.save(tmp_path / "page.html")
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_layer_without_bias_counts_none():
    report = quietly(nn.GRU(4, 3, bias=False), torch.zeros(2, 1, 4))
    assert [total.count for total in report.totals] == [sum(p.numel() for p in nn.GRU(4, 3, bias=False).parameters())]
    assert {row.name: row.role for row in report.symbols if row.name in "Ub"} == {"U": "learned", "b": "not learned"}
    assert report.cost.bytes_least == 4 * (2 * (4 + 3) + report.totals[0].count)
    assert "b = 0: chosen, not learned." in report.notation
    assert "b = 0" not in "".join(quietly(nn.GRU(4, 3), torch.zeros(2, 1, 4)).notation)


def test_of_a_frozen_layer_nothing_is_learned():
    for layer, x in (
        (nn.GRU(4, 3), torch.zeros(2, 1, 4)),
        (nn.DyT(4), torch.zeros(2, 4)),
        (nn.Conv1d(2, 3, 2), torch.zeros(2, 2, 4)),
        (nn.LayerNorm(4), torch.zeros(2, 4)),
        (nn.TCN(2, [3]), torch.zeros(2, 2, 4)),
    ):
        report = quietly(layer.requires_grad_(False), x)
        assert [(total.label, total.count) for total in report.totals] == [("nothing is learned here", 0)]
        assert "learned" not in {row.role for row in report.symbols}


def test_a_partly_frozen_layer_says_what_is_learned():
    pair = torch.zeros(2, 2, 4, 4)
    for layer, x, weight, bias in (
        (nn.Conv2d(2, 3, 2), pair, "weight", "bias"),
        (nn.BatchNorm2d(2), pair, "γ", "β"),
        (nn.ConvPool2d(2, 3, 2, pool_size=2), pair, "weight", "bias"),
        (nn.DyT(4), pair, "α", "γ"),
        (nn.DropConnect(nn.Linear(4, 3), names=["weight", "bias"]), pair, "weight", "bias"),
    ):
        next(layer.parameters()).requires_grad_(False)
        report = quietly(layer, x)
        roles = {row.name: (row.role, row.trainable) for row in report.symbols}
        assert (roles[weight], roles[bias]) == (("not learned", False), ("learned", True)), type(layer)
        assert report.totals[0].count == report.cost.parameters
        assert weight not in report.totals[0].label


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("normed", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_is_learned_if_what_it_is_computed_of_is(normed):
    layer = normed(nn.Conv1d(2, 3, 2, bias=False))
    for frozen, role in (("weight_g", "learned"), ("weight_v", "not learned")):
        parameters = dict(zip(("weight_g", "weight_v"), layer.parameters(), strict=True))
        parameters[frozen].requires_grad_(False)
        with torch.no_grad():
            report = quietly(layer, torch.zeros(1, 2, 4))
        assert report.symbols[1].role == role


def test_what_a_weight_is_computed_of_is_counted_beside_it():
    normed = torch.nn.utils.parametrizations.weight_norm
    for layer, x, counts in (
        (normed(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 4, 4), [57, 60]),
        (torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 4, 4), [57]),
        (nn.TCN(2, [3]), torch.zeros(1, 2, 4), None),
    ):
        totals = quietly(layer, x).totals
        assert counts is None or [total.count for total in totals] == counts
        assert totals[-1].count == sum(p.numel() for p in layer.parameters())
    label = quietly(normed(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 4, 4)).totals[1].label
    assert "computed of these: bias 3 + parametrizations.weight.original0 3 + " in label


def test_what_running_statistics_keep_without_a_momentum():
    layer, x = nn.BatchNorm1d(2, momentum=None), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    layer(x)
    (note,) = quietly(layer, x).notes
    assert "this one, number 2, has a share of 1/2" in note
    (note,) = quietly(nn.InstanceNorm1d(2, momentum=None, track_running_stats=True), torch.ones(1, 2, 3)).notes
    assert "no batch moves them" in note


def test_a_dilated_pooling_says_so():
    *_, output = quietly(nn.MaxPool2d(2, dilation=(1, 3)), torch.zeros(1, 1, 6, 6)).symbols
    said = "2×2 entries that are (1, 3) apart, so that it reaches over 2×4 places"
    assert said in output.reasons[0]


def test_a_convolution_without_bias_reads_none():
    for layer, x in (
        (nn.Conv2d(2, 3, 2, bias=False), torch.zeros(2, 2, 3, 3)),
        (nn.ConvTranspose1d(2, 3, 2, bias=False), torch.zeros(2, 2, 3)),
        (nn.ConvPool1d(2, 3, 2, pool_size=2, bias=False), torch.zeros(2, 2, 5)),
        (nn.SeparableConv1d(2, 3, 2, bias=False), torch.zeros(2, 2, 5)),
        (nn.TextConv(4, 3, bias=False), torch.zeros(2, 5, 4)),
    ):
        report = quietly(layer, x)
        numbers = x.numel() + sum(p.numel() for p in layer.parameters()) + layer(x).numel()
        assert report.cost.bytes_least == 4 * numbers
        assert "bias = 0: chosen, not learned." in report.notation
        assert "bias" not in report.steps[0].values


def test_frozen_weights_of_any_level_are_counted_in_no_convention():
    layer = nn.RNN(3, 2, 2)
    layer.weight_hh_l1.requires_grad_(False)
    report = quietly(layer, torch.zeros(4, 1, 3))
    assert [total.count for total in report.totals] == [18, 22]
    assert report.cost.parameters == 22
    layer.requires_grad_(False)
    layer.weight_hh_l1.requires_grad_(True)
    assert [total.count for total in quietly(layer, torch.zeros(4, 1, 3)).totals] == [4]
    layer = cells.rnn(3, 2)
    next(layer.parameters()).requires_grad_(False)
    assert [total.count for total in quietly(layer, torch.zeros(4, 1, 3)).totals] == [6]


def test_sequences_of_different_lengths_cost_their_real_steps():
    layer, x = nn.GRU(3, 2, bidirectional=True), torch.randn(4, 2, 3)
    both = quietly(layer, x, lengths=[2, 4]).cost
    alone = [quietly(layer, x[:n, :1]).cost for n in (2, 4)]
    assert both.macs == sum(cost.macs for cost in alone)
    assert both.other_flops == sum(cost.other_flops for cost in alone)
    assert both.scope == "6 steps in all, of 2 sequences of different lengths, float32"
    assert both.bytes_least == 4 * (6 * (3 + 4) + 2 * 42)
    assert quietly(layer, x, lengths=[0, 4]).cost.scope.startswith("4 steps in all")


def test_one_step_is_not_many():
    assert quietly(nn.RNN(3, 2), torch.zeros(1, 3)).steps[-1].parts == (
        "h₁ has taken in the only step; it stands for the whole sequence.",
    )
    assert quietly(nn.RNN(3, 2), "abc", steps=2).steps[-1].parts[0].startswith("Step 3 goes on")
    assert quietly(nn.TCN(1, [1] * 3), torch.zeros(1, 1, 4)).steps[-1].parts[0].startswith("Block 3 goes on")
    assert quietly(nn.RNN(3, 2), ["two", "words"]).notes[0].startswith("A word is no vector")


def test_what_is_read_as_one_character_stays_together():
    assert characters("👩‍👩‍👧🇩🇪🇫🇷e\u0301👍🏽❤️a你") == ["👩‍👩‍👧", "🇩🇪", "🇫🇷", "e\u0301", "👍🏽", "❤️", "a", "你"]
    assert characters("\u0301a🇩") == ["\u0301", "a", "🇩"]
    assert not characters("")


def test_a_number_without_axes_has_a_reason():
    @pellucid.cell
    def scaled(x, h, *, U, a: "" = pellucid.zeros):  # noqa: F722
        return a * h + x @ U

    rows = {row.name: row for row in quietly(scaled(2, 2), torch.zeros(1, 2)).symbols}
    assert rows["a"].reasons == ("The author of the formula gave a no axes: it is one number.",)


@pellucid.layer
def gated(x, *, W, V):
    y = torch.tanh(x @ W)
    return y * (x @ V)


@pellucid.layer
def on_the_way(x, *, W):
    y = x @ W
    return y


@pellucid.layer
def of_two(x, y, *, W):
    return (x + y) @ W


@pellucid.cell
def read_out(x, h, *, U, W, V: "hidden 2"):  # noqa: F722
    y = torch.tanh(x @ U + h @ W)
    return y @ V, y


def test_a_result_has_a_name_of_its_own():
    report = quietly(gated(3, 2), torch.randn(2, 3))
    assert report.formula == ("y = tanh(x W)", "result = y ⊙ x V")
    assert [row.name for row in report.symbols] == ["x", "W", "V", "result"]
    named = list(report.steps[0].values)
    assert [name for name in named if "=" in name] == ["y = tanh(x W)", "result = y ⊙ x V"]
    assert quietly(on_the_way(3, 2), torch.randn(2, 3)).formula == ("y = x W",)
    report = quietly(of_two(3, 2), torch.randn(2, 3), torch.randn(2, 3))
    assert report.formula == ("result = (x + y) W",)
    assert [row.name for row in report.symbols] == ["x", "y", "W", "result"]
    report = quietly(read_out(3, 2), torch.randn(4, 1, 3))
    assert report.formula == ("yₜ = tanh(xₜ U + hₜ₋₁ W)", "resultₜ = yₜ V", "hₜ = yₜ")
    assert report.figures[0].moments[0].output == "result₁"
    assert exhibits_of(report)[0].data["output"]["name"] == "result"


def test_dropout_in_eval_keeps_its_own_p():
    for layer, x in (
        (nn.Dropout(0.3), torch.ones(3)),
        (nn.DropBlock2d(0.3), torch.ones(1, 1, 9, 9)),
        (nn.DropConnect(nn.Linear(3, 2), 0.3), torch.ones(1, 3)),
    ):
        said = "p = 0.3: chosen, not learned; in eval it counts as 0."
        assert said in quietly(layer.eval(), x).notation
    notation = quietly(nn.DropBlock2d(0.3, 3), torch.ones(1, 2, 5, 5)).notation
    assert notation[-2] == "γ = 0.09259, which follows from p = 0.3, the size of the blocks and that of the input."
    assert notation[-1] == "block = (3, 3): chosen, not learned."


def test_what_averages_and_draws_are_of():
    notation = quietly(nn.LocalResponseNorm(3), torch.ones(1, 5, 2)).notation
    assert notation[-1].startswith("average is the mean over 3 neighbouring channels;")
    (reason,) = quietly(nn.DropBlock2d(0.3, 3), torch.ones(1, 2, 5, 5)).symbol("draws").reasons
    assert "the upper left corner of a block can lie; a block is 3×3" in reason


def test_drop_connect_reads_its_layer():
    cost = quietly(nn.DropConnect(nn.Linear(3, 2)), torch.ones(1, 3)).cost
    assert cost.bytes_least == 4 * (3 + 2 * 6 + 2 + 2)  # input, weight and its draws, bias, output


@pytest.mark.parametrize("source", [torch.nn, nn], ids=["torch", "pellucid"])
def test_drop_connect_shows_the_mask_of_every_weight(source):
    layer = nn.DropConnect(source.RNN(3, 2))
    report = quietly(layer, torch.randn(4, 1, 3), lang="zh")
    assert report.check.agrees
    assert report.formula == ("mask = draws ≥ p", "y = x ⊙ mask / (1 − p)")
    first, second, whole = report.steps
    assert [first.title, second.title] == ["weight_ih_l0 的掩码", "weight_hh_l0 的掩码"]
    for step, weight in ((first, layer.module.weight_ih_l0), (second, layer.module.weight_hh_l0)):
        kept, (mask, *_, dropped) = step.values, (v for name, v in step.values.items() if name[0] in "my")
        assert f"x = {step.title.split()[0]}" in kept
        weights = torch.as_tensor(mask.numbers).double() * weight.detach().double() * 2
        torch.testing.assert_close(torch.as_tensor(dropped.numbers).double(), weights)
    assert len(whole.values) == 1
    assert report.cost.macs == 4 * (3 * 2 + 2 * 2)
    assert not report.cost.uncounted
    assert report.totals[1].count == 14


def test_operations_that_are_not_counted_are_named_with_the_language_s_punctuation(tmp_path):
    layer = nn.DropConnect(torch.nn.Sequential(torch.nn.Conv1d(2, 2, 1), torch.nn.GLU(1), torch.nn.LogSigmoid()))
    report = quietly(layer, torch.randn(1, 2, 3), lang="zh")
    report = replace(report, cost=replace(report.cost, uncounted=("a", "b")))
    markdown = report.save(tmp_path / "x.md").read_text(encoding="utf-8")
    assert all("未计入的运算：a，b" in text for text in (report.text(), markdown))


def test_every_norm_s_last_formula_has_its_own_title():
    titles = {kind: quietly(kind).steps[-1].title for kind in ("layernorm", "rmsnorm", "localresponsenorm")}
    assert titles["layernorm"] == "Formula 4: times γ, plus β"
    assert titles["rmsnorm"] == "Formula 2: the value over the root of the mean square, times γ"
    assert titles["localresponsenorm"] == "Formula 2: the value over a power of what its neighbours have"


def test_what_is_said_of_groups_and_paddings_is_so():
    report = quietly(nn.Conv1d(4, 6, 3, groups=2, padding="causal"), torch.zeros(1, 4, 5))
    assert "(4 in 2 groups, 2 each)" in report.symbols[1].reasons[0]
    assert "padding “causal” (before the first place only" in report.symbols[-1].reasons[0]
    assert not any("all features" in part for part in report.idea)
    report = quietly(nn.Conv1d(4, 6, 3, groups=2, padding="causal"), torch.zeros(1, 4, 5), lang="zh")
    assert "共 4 个，分 2 组，每组 2 个" in report.symbols[1].reasons[0]
    assert "填充 “causal”（只填在开头之前" in report.symbols[-1].reasons[0]
    report = quietly(nn.LayerNorm((2, 3)), torch.zeros(2, 2, 3), lang="zh")
    assert report.symbols[0].axes == ("批", "特征轴 1", "特征轴 2")


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3, affine=False)])
def test_padding_is_a_step_of_its_own(layer):
    report = quietly(layer, torch.randn(2, 3, 4), lengths=torch.tensor([4, 2]))
    assert report.check.agrees
    learned = [value for step in report.steps for name, value in step.values.items() if name in ("γ", "β")]
    assert [value.numbers.size for value in learned] == ([3, 3] if layer.affine else [])
    title, (mark, masked) = report.steps[-1].title, report.steps[-1].values.values()
    assert title == "Padding comes out as 0"
    assert mark.name == "m"
    assert mark.numbers.squeeze().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert masked.name == "y ⊙ m"
    assert not masked.numbers[1, :, 2:].any()
    assert any(said.startswith("m is 1 at real entries and 0 at padding") for said in report.notation)
    assert ("average leaves padding out." in report.notation) == layer.training
    (drawn, other) = (part for part in report.steps[0].parts if isinstance(part, Picture))
    assert drawn.blocks[1][0] == ("averaged", "averaged", "padding", "padding")
    assert other.blocks[1][0] == ("other", "other", "padding", "padding")
    assert "padding" not in quietly(layer, torch.randn(2, 3, 4)).steps[0].parts[-1].meanings


def test_a_norm_s_idea_is_that_of_its_own_formula():
    def idea(layer, lang):
        return " ".join(quietly(layer, torch.randn(2, 6, 6), lang=lang).idea)

    for lang, four, two, learned in (
        ("en", "Four formulas", "Two formulas", "usually learned"),
        ("zh", "四个公式", "两个公式", "一般是学出来的"),
    ):
        for layer in (nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.InstanceNorm1d(6)):
            said = idea(layer, lang)
            assert four in said
            assert f"γ and β are {learned}" in said or f"γ 和 β {learned}" in said
        root, neighbours = idea(nn.RMSNorm(6), lang), idea(nn.LocalResponseNorm(3), lang)
        assert two in root
        assert two in neighbours
        for said in (root, neighbours):
            assert four not in said
            assert "variance" not in said
            assert "方差" not in said
        assert f"γ is {learned}" in root or f"γ {learned}" in root
        assert "there is no β" in root or "也没有 β" in root
        assert "γ" not in neighbours
        assert learned not in neighbours
        assert "the exponent β" in neighbours or "指数 β" in neighbours


def test_the_mean_square_of_neighbours_is_one_for_every_entry():
    report = quietly(nn.LocalResponseNorm(3), torch.randn(1, 4, 2, 2))
    (reason,) = report.symbol("mean_square").reasons
    assert reason == "One mean of squares for every entry of x, over the 3 channels around it, its own among them."
    assert report.steps[0].parts[0].title == "One mean is taken over neighbouring channels: 2 of the 16 numbers."


def test_an_average_over_groups_says_what_a_group_is():
    layer, x = nn.GroupNorm(2, 4), torch.randn(2, 4, 3)
    for lang, over, average, drawn in (
        (
            "en",
            "channels of a group × length",
            "average is the mean over {}.",
            "One mean is taken over {}: 6 of the 24",
        ),
        ("zh", "同组通道 × 长", "average 是跨{}的平均。", "一个均值取自{}：24 个数中的 6 个。"),
    ):
        report = quietly(layer, x, lang=lang)
        assert report.notation[-1] == average.format(over)
        assert report.steps[0].parts[0].title.startswith(drawn.format(over))
        mean = report.symbol("μ")
        assert mean.shape == (2, 4, 1)
        assert over in mean.reasons[0]
        assert "2×2" in mean.reasons[0]  # the shape in the page, which has a row for every group
        assert "2×4×1" in mean.reasons[0]


def test_one_length_serves_all_sentences():
    layer, x = nn.TextConv(4, 3), torch.randn(2, 9, 4)
    assert str(quietly(layer, x, lengths=5).steps) == str(quietly(layer, x, lengths=[5, 5]).steps)


def test_several_kernels_of_a_channel_read_the_same_padding():
    report = quietly(nn.SeparableConv1d(2, 1, 3, padding=1, depth_multiplier=2), torch.ones(1, 2, 4))
    drawn = next(part for part in report.steps[0].parts if isinstance(part, Picture))
    assert drawn.numbers[0].tolist() == [[0, 1, 1, 1, 1]] * 2


def test_the_window_goes_on_to_the_next_row():
    report = quietly(nn.Conv2d(1, 1, 1, stride=(3, 2)), torch.zeros(1, 1, 4, 4), steps=3)
    second, third = (next(part for part in step.parts if isinstance(part, str)) for step in report.steps[1:3])
    assert second == "The window moves on by the stride, 2."
    assert third == "This row is done; the next position begins the next row."


def test_what_is_said_of_an_output_agrees_with_it():
    def said(layer, x, **options):
        row = quietly(layer, x, **options).symbols[-1]
        return row.shape, row.reasons[0]

    shape, _ = said(nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), torch.zeros(2, 2, 5), output_size=[10])
    assert shape == (2, 3, 10)
    layer = nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1, output_padding=1)
    row = quietly(layer, torch.zeros(1, 2, 4)).symbols[-1]
    assert row.shape == (1, 2, 8)
    assert row.reasons[1] == "output_padding, here 1, adds as many places at the end."
    row = quietly(layer, torch.zeros(1, 2, 4), output_size=[7], lang="zh").symbols[-1]
    assert row.shape == (1, 2, 7)
    assert row.reasons[1] == "output_size（这里是 7）决定留下多少个。"
    layer = nn.ConvTranspose2d(1, 1, 3, stride=2, output_padding=(1, 0))
    assert "output_padding, here (1, 0)," in quietly(layer, torch.zeros(1, 1, 2, 2)).symbols[-1].reasons[1]
    assert len(quietly(nn.ConvTranspose1d(2, 2, 3), torch.zeros(1, 2, 4)).symbols[-1].reasons) == 1
    shape, text = said(nn.AdaptiveAvgPool2d((3, None)), torch.zeros(2, 2, 5, 7))
    assert shape == (2, 2, 3, 7)
    assert text == "The input is shared out among 3×7 windows, as evenly as it goes."
    assert "reaches over 1 place and" in said(nn.Conv1d(2, 2, 1), torch.zeros(1, 2, 4))[1]
    assert "reaches over 3 places and" in said(nn.Conv1d(2, 2, 2, dilation=2), torch.zeros(1, 2, 4))[1]


def test_a_mean_says_what_it_counts_and_where_its_windows_end():
    layer, x = nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), torch.rand(1, 1, 6, 6)
    report = quietly(layer, x)
    assert report.subject == ("AvgPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)")
    assert report.symbols[-1].reasons[1].startswith("As ceil_mode is on, the last window may go on beyond the end")
    assert report.notation[-1] == "reduce takes the mean of what the window reads; padding does not count."
    report = quietly(nn.AvgPool2d(3, padding=1), x, lang="zh")
    assert report.subject == "AvgPool2d(kernel_size=3, stride=3, padding=1)"
    assert len(report.symbols[-1].reasons) == 1
    assert report.notation[-1] == "reduce 取窗口读到的数的平均；填充当作 0，也算在内。"
    report = quietly(nn.AvgPool2d(2, divisor_override=3), x)
    assert report.subject.endswith("padding=0, divisor_override=3)")
    assert report.notation[-1] == "reduce divides the sum of what the window reads by 3."
    assert quietly(nn.AvgPool1d(2), x[0]).notation[-1] == "reduce takes the mean of what the window reads."
    report = quietly(nn.MaxPool1d(2, ceil_mode=True), torch.rand(1, 1, 5))
    assert report.subject.count("ceil_mode") == 1
    assert len(report.symbols[-1].reasons) == 2


def test_what_stands_for_the_sequence_where_there_are_levels_and_directions():
    def last(lang, **options):
        report = quietly(nn.GRU(3, 2, **options), torch.randn(4, 2, 3), lang=lang)
        return report.steps[-1].parts[0], " ".join(total.label for total in report.totals)

    for lang, whole, level, forward, beside, each in (
        ("en", "it stands for", "first level", "forward", "side by side", "for each level and direction,"),
        ("zh", "步，代表整个序列", "第一级", "正向", "并排放在一起", "每级每个方向"),
    ):
        text, totals = last(lang)
        assert whole in text
        assert each not in totals
        text, totals = last(lang, num_layers=2)
        assert level in text
        assert not any(words in text for words in (whole, forward, beside))
        assert each not in totals
        text, totals = last(lang, bidirectional=True)
        assert forward in text
        assert beside in text
        assert level not in text
        assert each in totals
        text, totals = last(lang, num_layers=2, bidirectional=True)
        assert all(words in text for words in (level, forward, beside))
        assert each in totals


SIGNS = torch.tensor([[1.0, 0.0], [0.0, -1.0]])


@pellucid.cell
def from_outside(x, h, *, U):
    return torch.tanh(x @ U + h @ SIGNS)


def test_a_cell_may_read_a_tensor_from_outside():
    report = quietly(from_outside(3, 2), torch.rand(4, 1, 3))
    assert report.check.agrees
    assert report.cost.macs == 4 * (3 * 2 + 2 * 2)
    (exhibit,) = exhibits_of(report)
    assert exhibit.data["ledger"]["macs"] == 3 * 2 + 2 * 2


@pytest.mark.parametrize(("lengths", "worked"), [([3, 5], 1), ([4, 5], 2), ([0, 5], 0)])
def test_no_window_beyond_the_length_of_the_first_sequence_is_worked_out(lengths, worked):
    steps = quietly(nn.Conv1d(1, 1, 3), torch.randn(2, 1, 6), lengths=lengths).steps
    titles = [step.title for step in steps]
    assert titles == [*(f"Position {n} of {worked}: output ({n - 1})" for n in range(1, worked + 1)), "All positions"]
