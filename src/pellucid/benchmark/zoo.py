"""Models as people have them: built from transformers' code without weights, and for speech and series on torch.nn.

Every one comes in two sizes: that of the benchmark, and a tiny one for tests.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SEED = 0


@dataclass(frozen=True)
class Sized:
    """How a model is made in one size, and what it reads: its keyword arguments."""

    arguments: Mapping[str, Any]
    inputs: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class ZooModel:
    """A model under its name, in the size of the benchmark and in a tiny one; ``needs`` is the package of its code."""

    name: str
    build: Callable[..., torch.nn.Module]
    usual: Sized
    tiny: Sized
    needs: str | None = "transformers"

    @property
    def is_here(self) -> bool:
        """Whether its code is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def make(self, tiny: bool = False) -> tuple[torch.nn.Module, dict[str, Tensor]]:
        """Build it with random weights, in train mode, and draw an example of its input."""
        size = self.tiny if tiny else self.usual
        torch.manual_seed(SEED)
        return self.build(**size.arguments).train(), size.inputs()


# -- models of torch.nn -----------------------------------------------------------------------------------------------


class DeepSpeech(torch.nn.Module):
    """Convolutions over a spectrogram, then recurrent layers over time: Amodei et al., "Deep Speech 2", ICML 2016."""

    def __init__(self, mels: int, channels: int, hidden: int, layers: int, classes: int = 29) -> None:
        super().__init__()
        self.convolutions = torch.nn.Sequential(
            torch.nn.Conv2d(1, channels, (11, 5), stride=(2, 2), padding=(5, 2), bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.Hardtanh(0, 20),
            torch.nn.Conv2d(channels, channels, (11, 5), stride=(2, 1), padding=(5, 2), bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.Hardtanh(0, 20),
        )
        features = channels * ((mels + 3) // 4)  # both convolutions halve them
        self.rnn = torch.nn.GRU(features, hidden, layers, batch_first=True, bidirectional=True)
        self.norm = torch.nn.LayerNorm(2 * hidden)
        self.output = torch.nn.Linear(2 * hidden, classes)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Return log-odds of characters, (batch, time, classes), for (batch, mels, time)."""
        features = self.convolutions(spectrogram.unsqueeze(1)).flatten(1, 2).mT
        return self.output(self.norm(self.rnn(features)[0]))


class Forecaster(torch.nn.Module):
    """Stacked recurrent layers with dropout between, which say the next values of many series: ``kind`` names them."""

    def __init__(self, kind: str, series: int, hidden: int, layers: int, horizon: int = 24) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(series)
        self.rnn = getattr(torch.nn, kind)(series, hidden, layers, batch_first=True, dropout=0.2)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(hidden, horizon)
        )

    def forward(self, past: Tensor) -> Tensor:
        """Return (batch, horizon) for (batch, time, series)."""
        return self.head(self.rnn(self.norm(past.mT).mT)[0][:, -1])


class CRNN(torch.nn.Module):
    """Convolution and pooling, then a recurrent layer: sound events, text in pictures. Shi et al., TPAMI 2017."""

    def __init__(self, height: int, channels: tuple[int, ...], hidden: int, classes: int = 37) -> None:
        super().__init__()
        stages: list[torch.nn.Module] = []
        for inner, outer in zip((1, *channels), channels, strict=False):
            stages += [torch.nn.Conv2d(inner, outer, 3, padding=1), torch.nn.BatchNorm2d(outer), torch.nn.ReLU()]
            stages += [torch.nn.MaxPool2d((2, 2) if inner == 1 else (2, 1))]
        self.stages = torch.nn.Sequential(*stages)
        features = channels[-1] * (height >> len(channels))
        self.rnn = torch.nn.LSTM(features, hidden, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.output = torch.nn.Linear(2 * hidden, classes)

    def forward(self, picture: Tensor) -> Tensor:
        """Return log-odds, (batch, width / 2, classes), for (batch, 1, height, width)."""
        return self.output(self.rnn(self.stages(picture).flatten(1, 2).mT)[0])


# -- models of transformers -------------------------------------------------------------------------------------------


def _ours(name: str, build: Callable[..., torch.nn.Module], usual: Sized, tiny: Sized) -> ZooModel:
    return ZooModel(name, build, usual, tiny, needs=None)


def _theirs(name: str, model: str, usual: Sized, tiny: Sized) -> ZooModel:
    configuration = next(model.removesuffix(end) for end in ("LMHeadModel", "Model") if model.endswith(end)) + "Config"

    def build(**arguments: Any) -> torch.nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, configuration)(**arguments))

    return ZooModel(name, build, usual, tiny)


def _drawn(name: str, *shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(shape)}


def _words(*shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_ids": torch.randint(WORDS, shape)}


def _speech(batch: int, mels: int, frames: int, words: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {
        "input_features": torch.randn(batch, mels, frames),
        "decoder_input_ids": torch.randint(WORDS, (batch, words)),
    }


def _heads(size: int, heads: int, layers: int) -> dict[str, int]:
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    return dict(zip(names, (size, heads, layers, 4 * size), strict=True))


def _whisper(size: int, heads: int, layers: int, mels: int, frames: int) -> dict[str, Any]:
    return {
        "d_model": size,
        "num_mel_bins": mels,
        "max_source_positions": frames // 2,
        "vocab_size": WORDS,
        "use_cache": False,
        **{f"{side}_layers": layers for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 4 * size for side in ("encoder", "decoder")},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    }


WORDS = 1000
GPT = {"vocab_size": WORDS, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
STAGES = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
SMALL_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
CONVOLVED = {"conv_dim": [16, 16, 16], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2]}

ZOO = [
    _theirs(
        "ResNet-18",
        "ResNetModel",
        Sized({**STAGES, "embedding_size": 64, "layer_type": "basic"}, _drawn("pixel_values", 8, 3, 96, 96)),
        Sized({**SMALL_STAGES, "embedding_size": 8, "layer_type": "basic"}, _drawn("pixel_values", 2, 3, 32, 32)),
    ),
    _theirs(
        "ConvNeXt",
        "ConvNextModel",
        Sized({"hidden_sizes": [48, 96, 192, 384], "depths": [2, 2, 4, 2]}, _drawn("pixel_values", 8, 3, 96, 96)),
        Sized(SMALL_STAGES, _drawn("pixel_values", 2, 3, 32, 32)),
    ),
    _theirs(
        "MobileNetV2",
        "MobileNetV2Model",
        Sized({"depth_multiplier": 1.0, "image_size": 96}, _drawn("pixel_values", 8, 3, 96, 96)),
        Sized({"depth_multiplier": 0.25, "image_size": 32}, _drawn("pixel_values", 2, 3, 32, 32)),
    ),
    _theirs(
        "EfficientNet-B0",
        "EfficientNetModel",
        Sized(
            {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 96},
            _drawn("pixel_values", 8, 3, 96, 96),
        ),
        Sized(
            {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "image_size": 32},
            _drawn("pixel_values", 2, 3, 32, 32),
        ),
    ),
    _theirs(
        "RegNet",
        "RegNetModel",
        Sized(
            {"embedding_size": 32, "hidden_sizes": [48, 96, 192, 384], "depths": [1, 2, 4, 1], "groups_width": 24},
            _drawn("pixel_values", 8, 3, 96, 96),
        ),
        Sized({**SMALL_STAGES, "embedding_size": 8, "groups_width": 8}, _drawn("pixel_values", 2, 3, 32, 32)),
    ),
    _theirs(
        "BERT",
        "BertModel",
        Sized({"vocab_size": WORDS, **_heads(256, 4, 4)}, _words(16, 128)),
        Sized({"vocab_size": WORDS, **_heads(32, 2, 2)}, _words(2, 16)),
    ),
    _theirs(
        "GPT-2",
        "GPT2LMHeadModel",
        Sized({**GPT, "n_embd": 256, "n_layer": 4, "n_head": 4}, _words(16, 128)),
        Sized({**GPT, "n_embd": 32, "n_layer": 2, "n_head": 2}, _words(2, 16)),
    ),
    _theirs(
        "Whisper",
        "WhisperModel",
        Sized(_whisper(256, 4, 3, 80, 400), _speech(4, 80, 400, 64)),
        Sized(_whisper(32, 2, 1, 8, 40), _speech(2, 8, 40, 8)),
    ),
    _theirs(
        "Wav2Vec2",
        "Wav2Vec2Model",
        # layerdrop leaves layers out by chance: two runs would not do the same work
        Sized({**_heads(256, 4, 4), "conv_dim": [128] * 7, "layerdrop": 0.0}, _drawn("input_values", 2, 16000)),
        Sized(
            {**_heads(32, 2, 2), **CONVOLVED, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
            | {"mask_time_length": 2},
            _drawn("input_values", 2, 800),
        ),
    ),
    _theirs(
        "EnCodec",
        "EncodecModel",
        Sized({"num_filters": 16}, _drawn("input_values", 2, 1, 12000)),
        Sized(
            {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 32, "num_lstm_layers": 1}
            | {"upsampling_ratios": [4, 2], "sampling_rate": 800, "target_bandwidths": [1.5]},
            _drawn("input_values", 1, 1, 400),
        ),
    ),
    _ours(
        "Deep Speech 2 (GRU)",
        DeepSpeech,
        Sized({"mels": 80, "channels": 16, "hidden": 192, "layers": 3}, _drawn("spectrogram", 8, 80, 200)),
        Sized({"mels": 8, "channels": 2, "hidden": 6, "layers": 2}, _drawn("spectrogram", 2, 8, 20)),
    ),
    _ours(
        "CRNN (LSTM)",
        CRNN,
        Sized({"height": 32, "channels": (32, 64, 96), "hidden": 128}, _drawn("picture", 16, 1, 32, 128)),
        Sized({"height": 8, "channels": (2, 3), "hidden": 4}, _drawn("picture", 2, 1, 8, 12)),
    ),
    _ours(
        "forecaster (LSTM)",
        Forecaster,
        Sized({"kind": "LSTM", "series": 32, "hidden": 128, "layers": 2}, _drawn("past", 32, 168, 32)),
        Sized({"kind": "LSTM", "series": 3, "hidden": 5, "layers": 2}, _drawn("past", 2, 9, 3)),
    ),
    _ours(
        "forecaster (GRU)",
        Forecaster,
        Sized({"kind": "GRU", "series": 8, "hidden": 64, "layers": 2}, _drawn("past", 16, 168, 8)),
        Sized({"kind": "GRU", "series": 3, "hidden": 5, "layers": 2}, _drawn("past", 2, 9, 3)),
    ),
]
