"""Layers of other libraries for the GPU, where they are installed: made of torch.nn's layer, with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.benchmark.comparison import ROUNDING, Agreement, difference, reason
from pellucid.benchmark.twins import step


@dataclass(frozen=True)
class Peer:
    """A library, where it is had, and how its layer is made of torch.nn's."""

    name: str
    source: str
    make: Callable[[Any], torch.nn.Module]


def installed(
    peers: Sequence[Peer], theirs: torch.nn.Module, given: Sequence[Tensor], agreement: Agreement, unit: float
) -> tuple[dict[str, torch.nn.Module], dict[str, str]]:
    """The peers that compute what torch.nn's layer does, and why the others are missing.

    They have no float64: in the measured type they may differ from it by twice what torch.nn's layer does and a unit.

    Args:
        peers: for this layer.
        theirs: torch.nn's layer.
        given: inputs, and the gradient of the output.
        agreement: ours with theirs.
        unit: of the measured type.
    """
    found, missing = {}, {}
    allowed = max(ROUNDING, 2 * agreement.opponent_rounding + unit)
    for peer in peers:
        try:
            layer = peer.make(theirs)
            exact = step(copy.deepcopy(theirs).double(), *[value.double() for value in given])
            off = difference(step(layer, *given), exact)
        except ModuleNotFoundError as error:
            missing[peer.name] = f"{error.name} is not installed: {peer.source}"
        except Exception as error:
            missing[peer.name] = reason(error)
        else:
            if off <= allowed:
                found[peer.name] = layer
            else:
                missing[peer.name] = f"values or gradients differ: {off:.0e}, {allowed:.0e} is allowed"
    return found, missing


def _weighed(layer: torch.nn.Module, theirs: torch.nn.Module) -> torch.nn.Module:
    weight: Any = theirs.weight
    layer = layer.to(weight.device, weight.dtype)
    layer.load_state_dict(theirs.state_dict())
    return layer


def _liger_layer_norm(theirs: torch.nn.LayerNorm) -> torch.nn.Module:
    from liger_kernel.transformers.layer_norm import LigerLayerNorm

    return _weighed(LigerLayerNorm(*theirs.normalized_shape, eps=theirs.eps, bias=True), theirs)


def _liger_rms_norm(theirs: torch.nn.RMSNorm) -> torch.nn.Module:
    """It would write its gradient over that of the output, which comes again."""
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    return _weighed(LigerRMSNorm(*theirs.normalized_shape, in_place=False), theirs)


def _liger_group_norm(theirs: torch.nn.GroupNorm) -> torch.nn.Module:
    from liger_kernel.transformers.group_norm import LigerGroupNorm

    return _weighed(LigerGroupNorm(theirs.num_channels, theirs.num_groups, eps=theirs.eps, bias=True), theirs)


def _apex_layer_norm(theirs: torch.nn.LayerNorm) -> torch.nn.Module:
    from apex.normalization import FusedLayerNorm

    return _weighed(FusedLayerNorm(theirs.normalized_shape, eps=theirs.eps), theirs)


def _apex_rms_norm(theirs: torch.nn.RMSNorm) -> torch.nn.Module:
    from apex.normalization import FusedRMSNorm

    return _weighed(FusedRMSNorm(theirs.normalized_shape), theirs)


class FlashLSTM(torch.nn.Module):
    """The input's product by torch, and the recurrence by flashrnn's kernels in Triton, which need no C++ compiler."""

    def __init__(self, lstm: torch.nn.LSTM, backend: str = "triton_fused") -> None:
        super().__init__()
        from flashrnn import flashrnn

        self.lstm, self.recurrence, self.backend = copy.deepcopy(lstm), flashrnn, backend

    def forward(self, x: Tensor) -> Tensor:
        """Read (time, batch, features); flashrnn reads batch, time, gates, heads, columns."""
        given: Any = self.lstm
        hidden = given.hidden_size
        product = torch.nn.functional.linear(x, given.weight_ih_l0).transpose(0, 1)
        weights = given.weight_hh_l0.view(4, 1, hidden, hidden)
        bias = (given.bias_ih_l0 + given.bias_hh_l0).view(4, 1, hidden)
        shaped = product.reshape(*product.shape[:2], 4, 1, hidden)
        dtype = str(x.dtype).removeprefix("torch.")
        states, _ = self.recurrence(shaped, weights, bias, function="lstm", backend=self.backend, dtype=dtype)
        return states[0].squeeze(2).transpose(0, 1)


LIGER, APEX, FLASHRNN = "Liger-Kernel", "apex", "flashrnn"
LIGER_SOURCE, APEX_SOURCE = "pip install liger-kernel", "https://github.com/NVIDIA/apex"
PEERS: dict[str, tuple[Peer, ...]] = {
    "LayerNorm": (Peer(LIGER, LIGER_SOURCE, _liger_layer_norm), Peer(APEX, APEX_SOURCE, _apex_layer_norm)),
    "RMSNorm": (Peer(LIGER, LIGER_SOURCE, _liger_rms_norm), Peer(APEX, APEX_SOURCE, _apex_rms_norm)),
    "GroupNorm": (Peer(LIGER, LIGER_SOURCE, _liger_group_norm),),
    "LSTM": (Peer(FLASHRNN, "pip install flashrnn", FlashLSTM),),
}
