"""The backend that is asked for, and what is said where another one runs."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Iterator
from typing import Any

from pellucid.errors import PellucidWarning, Unsupported
from pellucid.kernel.build import BuildError

BACKENDS = ("auto", "c", "triton", "stepwise", "naive")
_backend: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run layers by this backend inside a ``with`` block.

    "c" is the formula compiled for the CPU; "triton" is the formula as a kernel for the GPU; "stepwise" is the
    scheduled program in plain torch; "naive" is the author's function in a Python loop, the definition itself; "auto"
    picks the fastest that can run the program. What "c" or "triton" cannot run, "stepwise" runs, with one warning that
    says why.

    Raises:
        ValueError: an unknown name.
    """
    if name not in BACKENDS:
        raise ValueError(f"pellucid.backend: the backends are {', '.join(BACKENDS)}, not {name!r}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def chosen_backend() -> str:
    """The name of the backend that is asked for."""
    return _backend.get()


def give_up(kernels: Any, what: str, error: BuildError) -> None:
    """Let kernels not be asked again, with a warning: compiled when they are needed, they do not compile."""
    kernels.given_up = True
    warn_of_fallback(what, error)


def warn_of_fallback(what: str, error: Unsupported | BuildError | RecursionError, language: str = "c") -> None:
    """Say once that something runs stepwise, and why."""
    if isinstance(error, RecursionError):
        error = Unsupported("a chain of hundreds of operations")
    reason = f"{error} has no {language.capitalize()} kernel" if isinstance(error, Unsupported) else str(error)
    warn_once(f"{what} runs stepwise, in plain torch and slower, because {reason}")


@functools.cache
def warn_once(message: str) -> None:
    """Warn of another backend, with the cure, the first time that this is said."""
    cure = 'Nothing is wrong with the result; with pellucid.backend("stepwise"): asks for it without this warning.'
    warnings.warn(f"{message}. {cure}", PellucidWarning, stacklevel=2)
