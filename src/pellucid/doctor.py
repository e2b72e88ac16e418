"""What pellucid finds on this machine: versions, processor, compiler, GPU, extras, backends."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import pellucid
from pellucid.kernel.registry import BACKENDS

EXTRAS = {
    "train": ("lightning", "snownlp", "mlxtend"),
    "compiler": ("ziglang",),
    "notebook": ("IPython",),
}
COMPILERS = ("cc", "gcc", "clang")


def findings() -> dict[str, Any]:
    """Return everything as plain values; what is missing is None or False."""
    return {
        "versions": {
            "pellucid": pellucid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": _version("lightning"),
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "vector instructions": torch.backends.cpu.get_cpu_capability(),
            "compiler": compiler(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "extras": {name: all(map(_installed, modules)) for name, modules in EXTRAS.items()},
        "backends": [name for name in BACKENDS if name != "auto"],
    }


def table(found: dict[str, Any]) -> Table:
    """Lay the findings out, with the cure beside what is missing."""
    shown = Table("", "found", "if you need it", show_lines=False)
    for name, value in {**found["versions"], **found["machine"]}.items():
        shown.add_row(name, "—" if value is None else str(value), _cure(name) if value is None else "")
    for name, present in found["extras"].items():
        cure = "" if present else f"pip install 'pellucid\\[{name}]'"
        shown.add_row(f"extra {name}", "installed" if present else "—", cure)
    shown.add_row("backends", ", ".join(found["backends"]), "")
    return shown


def _cure(name: str) -> str:
    return {
        "lightning": "pip install 'pellucid\\[train]'",
        "compiler": "a C compiler (gcc, clang), or pip install 'pellucid\\[compiler]'",
        "gpu": "a build of torch for your GPU: pytorch.org/get-started",
    }.get(name, "")


def compiler() -> str | None:
    """Return the C compiler that would be used: $CC, one on the path, or the one of the package ziglang."""
    wanted = os.environ.get("CC", "").split()
    for name in (*wanted[:1], *COMPILERS):
        path = shutil.which(name)
        if path:
            return path
    return "ziglang" if _installed("ziglang") else None


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the model that Linux names; platform.processor() is empty there."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
