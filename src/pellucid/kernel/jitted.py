"""The Triton backend: a fused program whose loops run on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.build import BuildError, usable_cache, write
from pellucid.kernel.emit_triton import Kernel, emit
from pellucid.kernel.fused import Fused, FusedLoop
from pellucid.kernel.program import Program
from pellucid.kernel.stepwise import Values

ROWS = 16  # of a block: the fewest that a product takes


class Jitted(Fused):
    """A program as Triton."""

    name = "triton"

    def __init__(self, program: Program, dtype: torch.dtype, device: str) -> None:
        super().__init__(program, dtype)
        self.device = device

    def _build(self, training: bool) -> Mapping[str, _Loop]:
        _check(self.device)
        written = emit(self.program, self.dtype, training)
        module = load(written.text)
        return {
            name: _Loop(kernel, getattr(module, name), self.program, self.dtype)
            for name, kernel in written.loops.items()
        }


class _Loop(FusedLoop):
    """One loop as a kernel."""

    def __init__(self, kernel: Kernel, function: Any, program: Program, dtype: torch.dtype) -> None:
        super().__init__(kernel.layout, program, dtype)
        self._scratch, self._function = kernel.scratch, function

    def _fill(
        self,
        values: Values,
        history: Sequence[Tensor],
        outputs: dict[str, Tensor],
        slots: Sequence[int],
        time: int,
        batch: int,
        backwards: bool,
        lengths: Tensor | None,
        seed: Tensor | None,
        start: int,
    ) -> None:
        layout, device = self.layout, history[0].device
        blocks = -(-batch // ROWS)
        totals = {
            name: torch.zeros((blocks, math.prod(meta.shape)), dtype=self.real, device=device)
            for name, meta in layout.totals.items()
        }
        given: list[Any] = [values[name].contiguous() for name in layout.inputs]
        given += [*history, *(outputs[name] for name in layout.outputs), *totals.values()]
        given.append(outputs.get("output", history[0]))
        for name in layout.matrices:
            given += [values[name], *values[name].stride()]
        given += slots
        given.append(torch.empty((blocks * ROWS, self._scratch), dtype=self.real, device=device))
        given += [history[0] if other is None else other.to(device, torch.int64) for other in (lengths, seed)]
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self._function[(blocks,)](
                *given,
                *(time, batch, start),
                BACKWARDS=backwards,
                LENGTHS=lengths is not None,
                OUTPUT="output" in outputs,
                ROWS=ROWS,
                INTERPRETED=interpreted(),
                TF32=torch.backends.cuda.matmul.allow_tf32,
            )
        self._add_totals(outputs, totals)


def _check(device: str) -> None:
    if importlib.util.find_spec("triton") is None:
        raise BuildError("Triton is not installed: pip install triton")
    if device != "cuda" and not interpreted():
        raise BuildError("Triton runs on a GPU; its interpreter, TRITON_INTERPRET=1, runs on the CPU")


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs its kernels, by numpy: for tests."""
    from triton import JITFunction

    from pellucid.kernel import triton_functions

    return not isinstance(triton_functions.product, JITFunction)


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
