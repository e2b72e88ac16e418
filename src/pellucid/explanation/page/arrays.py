"""Numbers on their way into the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def packed(value: Tensor | np.ndarray) -> dict[str, Any]:
    """Write an array as the page reads it: its shape, and its numbers as base64 of float32 (float64 where it is)."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value if value.dtype == torch.float64 else value.float()).numpy()
    array = np.ascontiguousarray(value, dtype=np.float64 if value.dtype == np.float64 else np.float32)
    kind = "f8" if array.dtype == np.float64 else "f4"
    bits = array.astype(f"<{kind}").tobytes()
    return {"shape": list(value.shape), "type": kind, "base64": base64.b64encode(bits).decode()}


def blocks(value: Tensor, rows: int, columns: int) -> Tensor:
    """Average a matrix over at most ``rows`` × ``columns`` blocks, an overview of a large one: (rows, columns)."""
    size = (min(rows, value.shape[0]), min(columns, value.shape[1]))
    return F.adaptive_avg_pool2d(value.detach().double()[None, None], size)[0, 0]


def as_json(value: Any) -> str:
    """Write JSON that may stand inside a script element; what is no number is null."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return packed(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone half of a surrogate pair has no bytes
    if isinstance(value, Sequence):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value
