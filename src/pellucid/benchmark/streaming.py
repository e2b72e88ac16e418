"""Inference one step at a time, as a program does that hears or reads while it answers: the state is carried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import ModuleList

import pellucid
from pellucid import nn
from pellucid.benchmark.comparison import Figure, Run, agree, times

STEPS = 200


@dataclass(frozen=True)
class Streaming(Figure):
    """Microseconds a step: the layers on an input of one step, and the cells."""

    ours_us: float
    torch_nn_us: float
    our_cell_us: float
    torch_nn_cell_us: float


@dataclass(frozen=True)
class StreamingRow:
    """A layer by name, RNN, GRU or LSTM, with a batch of one."""

    section: ClassVar[str] = "streaming"
    kind: str
    input_size: int
    hidden_size: int

    @property
    def name(self) -> str:
        """How the line is called."""
        return f"{self.kind} {self.input_size}→{self.hidden_size}"

    def measure(self, run: Run) -> Streaming:
        """Compare the outputs of all steps, then time them."""
        torch.manual_seed(0)
        sizes = (self.input_size, self.hidden_size)
        x = torch.randn((STEPS, 1, self.input_size), device=run.device)
        ours, our_cell = (getattr(nn, self.kind + end)(*sizes).to(run.device) for end in ("", "Cell"))
        theirs, their_cell = (getattr(torch.nn, self.kind + end)(*sizes).to(run.device) for end in ("", "Cell"))
        theirs.load_state_dict(ours.state_dict())
        for cell in (our_cell, their_cell):
            cell.load_state_dict({name.removesuffix("_l0"): value for name, value in ours.state_dict().items()})
        runs = {
            "ours": lambda: stream(ours, x),
            "torch.nn": lambda: stream(theirs, x),
            "our cell": lambda: stream(our_cell, x),
            "torch.nn cell": lambda: stream(their_cell, x),
        }
        agreement = agree(_stream_all, ModuleList([ours, our_cell]), ModuleList([theirs, their_cell]), x)
        medians = times(runs, run.rounds, run.device)
        return Streaming(self.name, str(ours.backend), agreement, *(1e6 / STEPS * medians[name] for name in runs))


def stream(layer: torch.nn.Module, x: Tensor, by: str = "auto") -> Tensor:
    """Read (time, batch, features) step by step; the outputs."""
    outputs, state = [], None
    one_step = isinstance(layer, torch.nn.RNNCellBase)
    with torch.inference_mode(), pellucid.backend(by):
        for step in x if one_step else x.split(1):
            result: Any = layer(step, state)
            output, state = (result[0] if isinstance(result, tuple) else result, result) if one_step else result
            outputs.append(output)
        return torch.stack(outputs) if one_step else torch.cat(outputs)


def _stream_all(layers: ModuleList, x: Tensor, by: str = "auto") -> list[Tensor]:
    return [stream(layer, x, by) for layer in layers]


STREAMING = [StreamingRow(kind, 256, 128) for kind in ("RNN", "GRU", "LSTM")]
