"""The largest product of two vectors' entries, and quotient, in one call: small layers ask, and must hardly wait."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from pellucid.kernel import build
from pellucid.kernel.tensors import in_memory

_TEXT = """
#include <math.h>
#include <stdint.h>
#define DEFINE(name, type, term) \\
  double name##_##type(const type *a, const type *b, double eps, int64_t count) \\
  { \\
    double largest = 0; \\
    for (int64_t i = 0; i < count; i++) { \\
      const double found = fabs(term); \\
      if (!(found <= largest)) \\
        largest = found; \\
      if (found != found) \\
        break; \\
    } \\
    return largest; \\
  }
DEFINE(product, float, (double)a[i] * b[i])
DEFINE(product, double, (double)a[i] * b[i])
DEFINE(deviations, float, a[i] / sqrt((double)b[i] + eps))
DEFINE(deviations, double, a[i] / sqrt((double)b[i] + eps))
"""
TYPES = {torch.float32: "float", torch.float64: "double"}


def largest_product(a: Tensor, b: Tensor) -> float:
    """Return the largest magnitude of ``a * b``, tensors of one shape; NaN if there is one."""
    found = _in_c("product", a, b)
    return float((a * b).detach().abs().max()) if found is None else found


def most_deviations(mean: Tensor, var: Tensor, eps: float) -> float:
    """Return the largest magnitude of ``mean / sqrt(var + eps)``, as `largest_product` does."""
    found = _in_c("deviations", mean, var, eps)
    return float((mean / torch.sqrt(var + eps)).detach().abs().max()) if found is None else found


def _in_c(name: str, a: Tensor, b: Tensor, eps: float = 0.0) -> float | None:
    """What a function in C finds; None where it cannot look, or there is no compiler."""
    library = _library()
    alike = a.shape == b.shape and a.dtype == b.dtype and a.is_cpu and b.is_cpu and in_memory(a, b)
    if library is None or not alike or a.dtype not in TYPES or not (a.is_contiguous() and b.is_contiguous()):
        return None
    return float(getattr(library, f"{name}_{TYPES[a.dtype]}")(a.data_ptr(), b.data_ptr(), eps, a.numel()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The functions; None without a compiler."""
    try:
        library = build.load(_TEXT)
    except build.BuildError:
        return None
    for name in ("product", "deviations"):
        for kind in TYPES.values():
            function = getattr(library, f"{name}_{kind}")
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_double, ctypes.c_int64]
            function.restype = ctypes.c_double
    return library
