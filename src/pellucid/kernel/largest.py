"""The largest product of two vectors' entries, in one call: what is asked of small layers must cost next to nothing."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import build

_TEXT = """
#include <math.h>
#include <stdint.h>
#define DEFINE(type) \\
  double largest_##type(const type *a, const type *b, int64_t count) \\
  { \\
    double largest = 0; \\
    for (int64_t i = 0; i < count; i++) { \\
      const double product = fabs((double)a[i] * b[i]); \\
      if (!(product <= largest)) \\
        largest = product; \\
      if (product != product) \\
        break; \\
    } \\
    return largest; \\
  }
DEFINE(float)
DEFINE(double)
"""


def largest_product(a: Tensor, b: Tensor) -> float:
    """Return the largest magnitude of ``a * b``, contiguous tensors of one shape on the CPU; NaN if there is one."""
    function = _functions().get(a.dtype)
    if function is None or a.dtype != b.dtype or not (a.is_contiguous() and b.is_contiguous()):
        return float((a * b).detach().abs().max())
    return float(function(a.data_ptr(), b.data_ptr(), a.numel()))


@functools.cache
def _functions() -> dict[torch.dtype, Any]:
    """The functions in C by type; none without a compiler."""
    try:
        library = build.load(_TEXT)
    except build.BuildError:
        return {}
    functions = {torch.float32: library.largest_float, torch.float64: library.largest_double}
    for function in functions.values():
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = ctypes.c_double
    return functions
