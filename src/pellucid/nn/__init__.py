"""The drop-in namespace: every name of ``torch.nn``, pellucid's own layer where it has one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch.nn as _torch_nn

from pellucid.nn.alpha_dropout import AlphaDropout as AlphaDropout
from pellucid.nn.alpha_dropout import FeatureAlphaDropout as FeatureAlphaDropout
from pellucid.nn.batch_norm import BatchNorm1d as BatchNorm1d
from pellucid.nn.batch_norm import BatchNorm2d as BatchNorm2d
from pellucid.nn.batch_norm import BatchNorm3d as BatchNorm3d
from pellucid.nn.batch_norm import SyncBatchNorm as SyncBatchNorm
from pellucid.nn.convolution import Conv1d as Conv1d
from pellucid.nn.convolution import Conv2d as Conv2d
from pellucid.nn.convolution import Conv3d as Conv3d
from pellucid.nn.drop_block import DropBlock2d as DropBlock2d
from pellucid.nn.drop_connect import DropConnect as DropConnect
from pellucid.nn.dropout import Dropout as Dropout
from pellucid.nn.dropout import Dropout1d as Dropout1d
from pellucid.nn.dropout import Dropout2d as Dropout2d
from pellucid.nn.dropout import Dropout3d as Dropout3d
from pellucid.nn.dropout import DropPath as DropPath
from pellucid.nn.dropout import LockedDropout as LockedDropout
from pellucid.nn.instance_norm import InstanceNorm1d as InstanceNorm1d
from pellucid.nn.instance_norm import InstanceNorm2d as InstanceNorm2d
from pellucid.nn.instance_norm import InstanceNorm3d as InstanceNorm3d
from pellucid.nn.layer import Recurrent as Recurrent
from pellucid.nn.layer_norm import GroupNorm as GroupNorm
from pellucid.nn.layer_norm import LayerNorm as LayerNorm
from pellucid.nn.layer_norm import LocalResponseNorm as LocalResponseNorm
from pellucid.nn.layer_norm import RMSNorm as RMSNorm
from pellucid.nn.lengthpool import LengthPool as LengthPool
from pellucid.nn.normalization import Normalization as Normalization
from pellucid.nn.pooling import AdaptiveAvgPool1d as AdaptiveAvgPool1d
from pellucid.nn.pooling import AdaptiveAvgPool2d as AdaptiveAvgPool2d
from pellucid.nn.pooling import AdaptiveAvgPool3d as AdaptiveAvgPool3d
from pellucid.nn.pooling import AdaptiveMaxPool1d as AdaptiveMaxPool1d
from pellucid.nn.pooling import AdaptiveMaxPool2d as AdaptiveMaxPool2d
from pellucid.nn.pooling import AdaptiveMaxPool3d as AdaptiveMaxPool3d
from pellucid.nn.pooling import AvgPool1d as AvgPool1d
from pellucid.nn.pooling import AvgPool2d as AvgPool2d
from pellucid.nn.pooling import AvgPool3d as AvgPool3d
from pellucid.nn.pooling import MaxPool1d as MaxPool1d
from pellucid.nn.pooling import MaxPool2d as MaxPool2d
from pellucid.nn.pooling import MaxPool3d as MaxPool3d
from pellucid.nn.recurrent import GRU as GRU
from pellucid.nn.recurrent import LSTM as LSTM
from pellucid.nn.recurrent import RNN as RNN
from pellucid.nn.recurrent import GRUCell as GRUCell
from pellucid.nn.recurrent import LSTMCell as LSTMCell
from pellucid.nn.recurrent import RNNCell as RNNCell
from pellucid.nn.transposed import ConvTranspose1d as ConvTranspose1d
from pellucid.nn.transposed import ConvTranspose2d as ConvTranspose2d
from pellucid.nn.transposed import ConvTranspose3d as ConvTranspose3d

# `import pellucid.nn.functional as F` finds torch's submodules under this name too.
for _name, _value in list(vars(_torch_nn).items()):
    if isinstance(_value, ModuleType) and _value.__name__ == f"torch.nn.{_name}":
        sys.modules.setdefault(f"{__name__}.{_name}", _value)


def __getattr__(name: str) -> Any:
    """Find in torch.nn what pellucid does not replace."""
    return getattr(_torch_nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})


__all__ = [
    name for name in __dir__() if not name.startswith("_") and name not in ("annotations", "sys", "Any", "ModuleType")
]
