"""The Triton backend: a fused program whose loops run on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.build import BuildError, usable_cache, write
from pellucid.kernel.emit_triton import HELD_BYTES, Kernel, emit
from pellucid.kernel.fused import Fused, FusedLoop, Steps
from pellucid.kernel.program import Program
from pellucid.kernel.stepwise import Values

ROWS = 16  # of a block: the fewest that a product takes


_Launched = tuple[Kernel, Any]  # what is known of a kernel, and its function


class Jitted(Fused):
    """A program as Triton."""

    name = "triton"

    def __init__(self, program: Program, dtype: torch.dtype, device: str) -> None:
        super().__init__(program, dtype)
        self.device = device

    def _build(self, training: bool) -> Mapping[str, _Loop]:
        check(self.device)
        streamed = functools.cache(functools.partial(self._kernels, training, 0))
        return {
            name: _Loop(kernel, functools.partial(_one, streamed, name), self.program, self.dtype)
            for name, kernel in self._kernels(training, HELD_BYTES).items()
        }

    def _kernels(self, training: bool, most_held: int) -> dict[str, _Launched]:
        written = emit(self.program, self.dtype, training, most_held)
        module = load(written.text)
        return {name: (kernel, getattr(module, name)) for name, kernel in written.loops.items()}


class _Loop(FusedLoop):
    """One loop as a kernel; ``streamed`` makes one that holds no matrices, for a GPU with too little shared memory."""

    def __init__(
        self, launched: _Launched, streamed: Callable[[], _Launched], program: Program, dtype: torch.dtype
    ) -> None:
        super().__init__(launched[0].layout, program, dtype)
        self._launched = launched
        self._streamed: Callable[[], _Launched] | None = streamed

    def _fill(
        self,
        values: Values,
        history: Sequence[Tensor],
        outputs: dict[str, Tensor],
        slots: Sequence[int],
        steps: Steps,
    ) -> None:
        layout, device, (time, batch, backwards, lengths, seed, start) = self.layout, history[0].device, steps
        blocks = -(-batch // ROWS)
        totals = self._parts(blocks, device)
        given: list[Any] = [values[name].contiguous() for name in layout.inputs]
        given += [*history, *(outputs[name] for name in layout.outputs), *totals.values()]
        given.append(outputs.get("output", history[0]))
        for name in layout.matrices:
            given += [values[name], *values[name].stride()]
        given += slots
        behind = [history[0] if other is None else other.to(device, torch.int64) for other in (lengths, seed)]
        options = {"BACKWARDS": backwards, "LENGTHS": lengths is not None, "OUTPUT": "output" in outputs}
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            while True:
                kernel, function = self._launched
                scratch = torch.empty((blocks * ROWS, kernel.scratch), dtype=self.real, device=device)
                try:
                    self._launch(function, blocks, (*given, scratch, *behind, time, batch, start), options, kernel)
                    break
                except out_of_resources():
                    if self._streamed is None:
                        raise
                    self._launched, self._streamed = self._streamed(), None
        self._add_totals(outputs, totals)

    def _launch(
        self, function: Any, blocks: int, given: Sequence[Any], options: Mapping[str, bool], kernel: Kernel
    ) -> None:
        tf32 = torch.backends.cuda.matmul.allow_tf32
        constants = {**options, "ROWS": ROWS, "INTERPRETED": interpreted(), "TF32": tf32}
        function[(blocks,)](*given, **constants, num_warps=warps(kernel.columns))


def _one(kernels: Callable[[], dict[str, _Launched]], name: str) -> _Launched:
    return kernels()[name]


def out_of_resources() -> type[Exception]:
    """What Triton raises where a kernel needs more shared memory or registers than there are."""
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def warps(columns: int) -> int:
    """How many groups of 32 threads share a tile of 16 rows: 8 numbers a thread at least, and few registers spilled."""
    return max(1, min(8, columns // 16))


def check(device: str) -> None:
    """Raise BuildError where Triton cannot run."""
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
