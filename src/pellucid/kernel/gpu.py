"""Triton on this machine: whether it runs, texts as loaded modules, and what every launch has."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.build import BuildError, usable_cache, write

ADDED_ROWS, ADDED_COLUMNS, ADDED_WARPS = 64, 32, 4  # of the tiles in which parts of a sum are added
OPTIONS = {"enable_fp_fusion": True}  # what is added to a product is so in one operation, as Triton wants to be told
ALIGNED = 16  # bytes; Triton tells tensors whose place is a multiple of it from others
MOST_COMPILED = 4096  # kernels that are kept, of each form of their arguments
COMPILER_PASSES = ("PassManager::run failed", "failed to translate module")  # in RuntimeErrors of Triton's compiler

_compiled: dict[Any, tuple[Any, Any, list[Any]]] = {}


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs its kernels, by numpy: for tests."""
    from triton import JITFunction

    from pellucid.kernel.language import triton_functions

    return not isinstance(triton_functions.product, JITFunction)


@functools.cache
def multiplies_few_rows() -> bool:
    """Whether Triton takes products of 8 rows, which it does from 3.5, though not in its interpreter."""
    from triton import __version__

    return not interpreted() and tuple(map(int, __version__.split(".")[:2])) >= (3, 5)


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
        launch(triton_functions.nothing, (1,), (torch.empty(1, device=device),), {}, num_warps=1)
    except Exception as error:
        return error
    return None


class on:
    """Make a GPU the current one inside a ``with`` block, in which kernels are compiled, and launched.

    Raises:
        BuildError: one could not be compiled.
    """

    def __init__(self, device: torch.device) -> None:
        self._current = torch.cuda.device(device) if device.type == "cuda" else None

    def __enter__(self) -> None:
        if self._current is not None:
            self._current.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._current is not None:
            self._current.__exit__(kind, error, trace)
        if isinstance(error, Exception) and _is_of_the_compiler(error):
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
        BuildError: there is no folder to write it to, or Python cannot read it.
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
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, RecursionError, MemoryError) as error:  # nested more deeply than Python reads
        raise BuildError(f"Python cannot read the text of its Triton kernel, {path} ({error})") from error
    return module


def out_of_resources() -> type[Exception]:
    """What Triton raises where a kernel needs more shared memory or registers than there are."""
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def launch(
    function: Any, grid: tuple[int, ...], given: Sequence[Any], constants: Mapping[str, Any], **options: Any
) -> Any:
    """Launch a kernel of Triton on the current stream; return what it compiled, None in the interpreter.

    Triton looks at all that every launch is given, which takes 7 to 10 µs. What it compiled is kept here for all by
    which it tells kernels apart: the type and place of tensors, integers but those that it is told not to look at.

    Args:
        function: a function of a loaded text.
        grid: blocks along each axis.
        given: its arguments, tensors and numbers, in its order.
        constants: the rest of them, by name.
        options: of the launch.
    """
    whole = {**constants, **options, **OPTIONS}
    if interpreted() or torch.version.hip:  # of AMD's GPUs it looks at more: how much memory a tensor has
        return function[grid](*given, **whole)
    seen, names = _parameters(function)
    kinds = [
        (a.dtype, a.data_ptr() % ALIGNED) if isinstance(a, Tensor) else _kind(a, looked_at)
        for a, looked_at in zip(given, seen, strict=False)
    ]
    key = (function, torch.cuda.current_device(), grid, *kinds, *whole.values())
    known = _compiled.get(key)
    if known is None:
        compiled = function[grid](*given, **whole)
        if len(_compiled) >= MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = compiled, compiled[(*grid, 1, 1)[:3]], [whole[name] for name in names[len(given) :]]
        return compiled
    compiled, run, rest = known
    run(*given, *rest)
    return compiled


def _kind(number: float, looked_at: bool) -> Any:
    """By what Triton tells a number from others: its value, or whether it is an integer that 32 bits cannot hold."""
    return number if looked_at and type(number) is int else type(number) is int and number.bit_length() > 31


@functools.cache
def _parameters(function: Any) -> tuple[list[bool], list[str]]:
    """Of every parameter whether Triton looks at its value, and its name."""
    return [not p.do_not_specialize for p in function.params], [p.name for p in function.params]


def added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of contiguous parts along their first axis, of another type: one launch, where torch takes two."""
    from pellucid.kernel.language import triton_functions

    if parts.dtype == dtype:
        return parts.sum(0)
    count, columns = parts.shape
    total = parts.new_empty(columns, dtype=dtype)
    shape = {"ROWS": ADDED_ROWS, "COLUMNS": ADDED_COLUMNS}
    given = (parts, total, count, columns)
    launch(triton_functions.add_parts, (-(-columns // ADDED_COLUMNS),), given, shape, num_warps=ADDED_WARPS)
    return total


@functools.cache
def processors(device: torch.device) -> int:
    """How many blocks run together for certain: the multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tf32() -> bool:
    """Whether products of float32 may be TF32: torch's own switch for recurrent layers, which is on by default."""
    return bool(torch.backends.cudnn.allow_tf32)
