"""The drop-in namespace: every name of ``torch.nn``, pellucid's own layer where it has one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch.nn as _torch_nn

from pellucid.nn import parametrizations
from pellucid.nn.convolution.conv1d import Conv1d
from pellucid.nn.convolution.conv2d import Conv2d, Conv3d
from pellucid.nn.convolution.conv_pool import ConvPool1d, ConvPool2d, ConvPool3d
from pellucid.nn.convolution.receptive import ReceptiveField, receptive_field
from pellucid.nn.convolution.separable import SeparableConv1d, SeparableConv2d, SeparableConv3d
from pellucid.nn.convolution.tcn import TCN
from pellucid.nn.convolution.text_convolution import TextConv
from pellucid.nn.convolution.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from pellucid.nn.dropout.alpha_dropout import AlphaDropout, FeatureAlphaDropout
from pellucid.nn.dropout.drop_block import DropBlock2d
from pellucid.nn.dropout.drop_connect import DropConnect
from pellucid.nn.dropout.dropout import Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath, LockedDropout
from pellucid.nn.linear import Linear
from pellucid.nn.normalization.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from pellucid.nn.normalization.general import Normalization
from pellucid.nn.normalization.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from pellucid.nn.normalization.layer_norm import GroupNorm, LayerNorm, LocalResponseNorm, RMSNorm
from pellucid.nn.pooling.lengthpool import LengthPool
from pellucid.nn.pooling.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from pellucid.nn.recurrence.layer import Recurrent
from pellucid.nn.recurrence.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from pellucid.nn.rows.row_layers import GEGLU, AddNorm, DyT, ScaleNorm, SwiGLU
from pellucid.nn.rows.row_wise import RowWise

# `import pellucid.nn.functional as F` and `import pellucid.nn.utils.rnn` find torch's submodules under these names too;
# to import them once more from their files would make second classes of the same names.
for _name, _value in list(sys.modules.items()):
    if _name.startswith(f"{_torch_nn.__name__}.") and isinstance(_value, ModuleType):
        sys.modules.setdefault(__name__ + _name.removeprefix(_torch_nn.__name__), _value)


def __getattr__(name: str) -> Any:
    """Find in torch.nn what pellucid does not replace."""
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})


__all__ = [
    name for name in __dir__() if not name.startswith("_") and name not in ("annotations", "sys", "Any", "ModuleType")
]
