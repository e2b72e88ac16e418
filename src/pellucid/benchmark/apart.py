"""Rows in another process: one that breaks the GPU's context, or does not end, costs no figure but its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from pellucid.benchmark.comparison import Failed, Figure, Row, Run, Skipped

DYING = 0.2  # seconds
ROW_SECONDS = 90.0  # in which a row compiles, compares and measures


class Apart:
    """Measures rows in a process, which is started when it is needed, and anew after a row that broke it.

    Args:
        find: a row by its section and name, in the other process; a function of a module.
        run: what the rows share.
        seconds: after which a row is given up.
        method: how the process is started, see `multiprocessing`.
    """

    def __init__(
        self, find: Callable[[str], Row], run: Run, seconds: float = ROW_SECONDS, method: str = "spawn"
    ) -> None:
        self.find, self.run, self.seconds = find, run, seconds
        self.context: Any = multiprocessing.get_context(method)
        self.process: Any = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def measure(self, row: Row) -> Figure:
        """Have a row measured.

        Raises:
            Skipped: it cannot be measured here.
            Failed: it broke, broke the process, or took too long.
        """
        if self.process is None:
            self.pipe, other = self.context.Pipe()
            self.process = self.context.Process(target=_serve, args=(other, self.find, self.run))
            self.process.start()
            other.close()
        try:
            self.pipe.send(f"{row.section}: {row.name}")
            if not self.pipe.poll(self.seconds):
                self._end()
                raise Failed(f"was given up after {self.seconds:g} s")
            result, sound = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise Failed(f"its process ended with exit status {self._end()}") from error
        if not sound:
            self._end()
        if isinstance(result, Exception):
            raise result
        return result

    def _end(self) -> int | None:
        """End the process, and return its exit status."""
        if self.process is None:
            return None
        self.process.join(DYING)  # one that dies has its own exit status
        self.process.kill()
        self.process.join()
        status: int | None = self.process.exitcode
        self.pipe.close()
        self.process = None
        return status


def _serve(pipe: Connection, find: Callable[[str], Row], run: Run) -> None:
    """Measure what is asked for until nobody asks."""
    torch.set_num_threads(run.threads)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        result: Figure | Exception
        try:
            result = find(asked).measure(run)
        except (Skipped, Failed) as error:
            result = error
        pipe.send((result, _sound(run.device)))


def _sound(device: str) -> bool:
    """Whether the GPU still does what this process asks for: after some errors it never does again."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except Exception:
            return False
    return True
