"""What pellucid finds on this machine: versions, processor, compiler, GPU, extras, backends."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

import pellucid
from pellucid.kernel import build, choice, gpu
from pellucid.kernel.backends import BACKENDS

EXTRAS = {
    "train": ("lightning", "snownlp", "mlxtend", "sktime", "PIL"),
    "compiler": ("ziglang",),
    "notebook": ("IPython",),
}


def findings() -> dict[str, Any]:
    """Return everything as plain values; what is missing is None or False."""
    command = build.compiler()
    kernels, triton = _kernels(command), _triton()
    missing = {"auto", *(["c"] if kernels["error"] else []), *([] if triton["works"] else ["triton"])}
    return {
        "versions": {
            "pellucid": pellucid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": _version("lightning"),
            "ziglang": _version("ziglang"),
            "triton": _version("triton"),
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "vector instructions": torch.backends.cpu.get_cpu_capability(),
            "compiler": shlex.join(command) if command else None,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "kernels": kernels,
        "triton": triton,
        "choices": {name: _named(name, *seconds) for name, seconds in sorted(choice.kept().items())},
        "extras": {name: all(map(_installed, modules)) for name, modules in EXTRAS.items()},
        "backends": [name for name in BACKENDS if name not in missing],
    }


def table(found: dict[str, Any]) -> Table:
    """Lay the findings out, with the cure beside what is missing."""
    shown = Table("", "found", "if you need it", show_lines=False)
    for name, value in {**found["versions"], **found["machine"]}.items():
        shown.add_row(name, "—" if value is None else str(value), _cure(name) if value is None else "")
    for row in _kernel_rows(found["kernels"]):
        shown.add_row(*map(escape, row))
    triton = found["triton"]
    shown.add_row("kernels on the GPU", "work" if triton["works"] else "—", escape(triton["error"] or ""))
    shown.add_row("measured choices", _choices(found["choices"]), "")
    for name, present in found["extras"].items():
        cure = "" if present else f"pip install 'pellucid\\[{name}]'"
        shown.add_row(f"extra {name}", "installed" if present else "—", cure)
    shown.add_row("backends", ", ".join(found["backends"]), "")
    return shown


def _cure(name: str) -> str:
    return {
        "lightning": "pip install 'pellucid\\[train]'",
        "gpu": "a build of torch for your GPU: pytorch.org/get-started",
    }.get(name, "")


def _named(question: str, usual: float, other: float) -> dict[str, float]:
    """Seconds of torch's operators and of the kernel, which is the usual way of a recurrence and of small work."""
    of_kernel, of_torch = (usual, other) if question.startswith(("recurrence", "small")) else (other, usual)
    return {"torch": of_torch, "kernel": of_kernel}


def _choices(measured: dict[str, dict[str, float]]) -> str:
    """How many kinds of work were measured, and in how many the kernel is faster."""
    if not measured:
        return "none yet"
    won = sum(seconds["kernel"] < seconds["torch"] for seconds in measured.values())
    return f"{len(measured)}, of which the kernel is faster in {won} (--json lists them)"


def _kernel_rows(kernels: dict[str, Any]) -> list[tuple[str, str, str]]:
    milliseconds, kept = kernels["milliseconds"], kernels["kept"]
    size = "—" if kept is None else f"{kernels['folder']} (kept: {kept}, {kernels['bytes'] / 1e6:.1f} MB)"
    return [
        ("version of the compiler", kernels["version"] or "—", ""),
        ("a kernel compiles in", "—" if milliseconds is None else f"{milliseconds:.0f} ms", kernels["error"] or ""),
        ("cache of kernels", size, kernels["folder error"] or ""),
    ]


def _kernels(command: tuple[str, ...] | None) -> dict[str, Any]:
    """Compile a trivial kernel, and look at those that are kept.

    Returns:
        The compiler's version, the milliseconds of the compile, the cache's folder, its count of kernels and its
        bytes; what does not work is None, with the reason and the cure under "error" and "folder error".
    """
    found: dict[str, Any] = {
        "version": None,
        "milliseconds": None,
        "error": None,
        "folder": None,
        "kept": None,
        "bytes": None,
        "folder error": None,
    }
    try:
        found["version"] = build.version(command) if command else None
        found["milliseconds"] = round(build.trial(), 1)
    except build.BuildError as error:
        found["error"] = str(error)
    try:
        folder = build.usable_cache()
        sizes = [(path.suffix, path.stat().st_size) for path in folder.iterdir()]
        found |= {"folder": str(folder), "kept": sum(suffix == ".so" for suffix, _ in sizes)}
        found["bytes"] = sum(size for _, size in sizes)
        if not os.access(folder, os.W_OK):
            found["folder error"] = f"{folder} cannot be written to; set PELLUCID_CACHE to a folder of your own"
    except build.BuildError as error:
        found["folder error"] = str(error)
    except OSError as error:
        found["folder error"] = f"{error}; set PELLUCID_CACHE to a folder of your own"
    return found


def _triton() -> dict[str, Any]:
    """Whether a GPU runs a kernel of Triton's; if there is a GPU and it does not, the reason and the cure."""
    if not torch.cuda.is_available():
        return {"works": False, "error": None}
    try:
        gpu.check("cuda")
    except build.BuildError as error:
        return {"works": False, "error": str(error)}
    return {"works": True, "error": None}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the model that Linux names; platform.processor() is empty there."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
