"""Triton on this machine: whether it runs, texts as loaded modules, and what every launch has."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.build import BuildError, usable_cache, write

ADDED_ROWS, ADDED_COLUMNS, ADDED_WARPS = 64, 32, 4  # of the tiles in which parts of a sum are added
COMPILER_PASSES = ("PassManager::run failed", "failed to translate module")  # in RuntimeErrors of Triton's compiler


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs its kernels, by numpy: for tests."""
    from triton import JITFunction

    from pellucid.kernel.language import triton_functions

    return not isinstance(triton_functions.product, JITFunction)


def check(device: str) -> None:
    """Raise a BuildError, which says what is missing, where Triton cannot run."""
    if importlib.util.find_spec("triton") is None:
        raise BuildError("Triton is not installed: pip install triton")
    if device != "cuda" and not interpreted():
        raise BuildError("Triton runs on a GPU; its interpreter, TRITON_INTERPRET=1, runs on the CPU")
    fault = _fault(device)
    if fault is not None:
        raise BuildError(
            f"Triton cannot compile or run a kernel on {device} ({type(fault).__name__}: {fault}). It needs a C "
            f"compiler, found as gcc, clang or $CC, and a GPU of compute capability 7.0 or above"
        ) from fault


@functools.cache
def _fault(device: str) -> Exception | None:
    """What happens when the smallest kernel is compiled and run."""
    from pellucid.kernel.language import triton_functions

    try:
        triton_functions.nothing[(1,)](torch.empty(1, device=device), **launched_by(1))
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one inside a ``with`` block, in which kernels are compiled, and launched.

    Raises:
        BuildError: one could not be compiled.
    """
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            yield
    except Exception as error:
        if not _is_of_the_compiler(error):
            raise
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise BuildError(f"Triton could not compile its kernel ({type(error).__name__}: {said})") from error


def _is_of_the_compiler(error: Exception) -> bool:
    """Whether Triton's compiler failed, and not the kernel, nor the memory."""
    from triton.errors import TritonError
    from triton.runtime.errors import InterpreterError

    if isinstance(error, TritonError):
        return not isinstance(error, InterpreterError)
    return isinstance(error, RuntimeError) and any(pass_ in str(error) for pass_ in COMPILER_PASSES)


@functools.cache
def load(text: str) -> Any:
    """Import a text as a module: Triton reads its functions from their file.

    Raises:
        BuildError: there is no folder to write it to.
    """
    name = f"pellucid_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    try:
        folder = usable_cache()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="pellucid-triton-"))
    path = folder / f"{name}.py"
    if not path.exists():
        write(path, text.encode())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def out_of_resources() -> type[Exception]:
    """What Triton raises where a kernel needs more shared memory or registers than there are."""
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def launched_by(warps: int) -> dict[str, Any]:
    """The options of every launch: what is added to a product is so in one operation, as Triton wants to be told."""
    return {"num_warps": warps, "enable_fp_fusion": True}


def added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of contiguous parts along their first axis, of another type: one launch, where torch takes two."""
    from pellucid.kernel.language import triton_functions

    if parts.dtype == dtype:
        return parts.sum(0)
    count, columns = parts.shape
    total = parts.new_empty(columns, dtype=dtype)
    shape = {"ROWS": ADDED_ROWS, "COLUMNS": ADDED_COLUMNS}
    blocks = (-(-columns // ADDED_COLUMNS),)
    triton_functions.add_parts[blocks](parts, total, count, columns, **shape, **launched_by(ADDED_WARPS))
    return total


@functools.cache
def processors(device: torch.device) -> int:
    """How many blocks run together for certain: the multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tf32() -> bool:
    """Whether products of float32 may be TF32: torch's own switch for recurrent layers, which is on by default."""
    return bool(torch.backends.cudnn.allow_tf32)
