"""C text to a loaded library: the compiler that is found, one compile for each text, the libraries kept on disk.

What the environment decides:

- ``CC``: the compiler, arguments allowed (``ccache gcc``); otherwise cc, gcc, clang, or the package ziglang.
- ``PELLUCID_CFLAGS``: further flags, such as ``-g -fsanitize=undefined``.
- ``PELLUCID_COMPILER_TIMEOUT``: the seconds after which a compiler is stopped; 60.
- ``PELLUCID_CACHE``: the folder of what is kept; otherwise ``$XDG_CACHE_HOME/pellucid`` or ``~/.cache/pellucid``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path

from pellucid.errors import PellucidWarning

try:
    import fcntl
except ImportError:  # Windows: processes that start together may each compile, which is harmless
    fcntl = None  # type: ignore[assignment]

COMPILERS = ("cc", "gcc", "clang")
MISSING = (
    "no C compiler was found (looked for $CC, cc, gcc, clang and the package ziglang); "
    "install one: apt install gcc, or pip install 'pellucid[compiler]'"
)
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared")
NATIVE = "-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64", "ppc64le") else "-march=native"
OPTIONAL_FLAGS = (
    *(NATIVE, "-fno-math-errno", "-fno-trapping-math", "-fno-semantic-interposition"),  # kernels are faster with them
    # gcc is, by a third: texts are written in vectors and in the loops that they need
    *("-fno-tree-vectorize", "-fno-tree-loop-distribution", "-fno-split-loops", "-fno-ipa-cp-clone"),
)
LAST_LINES = 8  # of what a failing compiler says
LIMIT = 256 * 2**20  # bytes that the cache may hold
RECENT = 300  # seconds; what was written or loaded since then is not removed: it may be on its way

_lock = threading.Lock()
_loaded: dict[tuple[str, tuple[str, ...]], ctypes.CDLL] = {}
_underway: dict[tuple[str, tuple[str, ...]], Future[ctypes.CDLL]] = {}


class BuildError(RuntimeError):
    """A text cannot be compiled or loaded on this machine; the message says why, and the cure."""


def load(text: str, libraries: Sequence[str] = ("m",)) -> ctypes.CDLL:
    """Load what a C text compiles to, compiling it unless this process or the cache on disk has it.

    Threads that ask for the same text at once share one compile.

    Args:
        text: the C source.
        libraries: what it is linked with; "m" stands for ``-lm``.

    Returns:
        The library; the same object for the same text.

    Raises:
        BuildError: no compiler, one that fails or hangs, or a cache folder that others can write to.
    """
    key = (text, tuple(libraries))
    while True:
        with _lock:
            if key in _loaded:
                return _loaded[key]
            other = _underway.get(key)
            if other is None:
                mine = _underway[key] = Future()
                break
        with contextlib.suppress(CancelledError):  # that thread was interrupted: try again
            return other.result()
    try:
        library = _loaded[key] = _build(*key)
        mine.set_result(library)
        return library
    except Exception as error:
        mine.set_exception(error)
        raise
    except BaseException:
        mine.cancel()
        raise
    finally:
        _underway.pop(key, None)


def _in_child() -> None:
    """After a fork nobody goes on with what the parent's threads were compiling."""
    global _lock
    _lock = threading.Lock()
    _underway.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


# -- the compiler ------------------------------------------------------------------------------------------------


def compiler() -> tuple[str, ...] | None:
    """Return the command of the C compiler: $CC, one on the path, the one of the package ziglang, or None."""
    try:
        wanted = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quotation mark without its partner
        wanted = []
    for candidate in (wanted, *([name] for name in COMPILERS)):
        path = shutil.which(candidate[0]) if candidate else None
        if path:
            return (os.path.abspath(path), *candidate[1:])
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    return None


@functools.cache
def version(command: tuple[str, ...]) -> str:
    """Return the first line that a compiler says about itself; it is asked once in a process.

    Raises:
        BuildError: it cannot be started, or does not answer.
    """
    _, said = _run((*command, "--version"), os.curdir)
    return next(iter(said.splitlines()), "")


def trial() -> float:
    """Compile and load a text of one line, without the cache, and return the milliseconds that it took.

    Raises:
        BuildError: that is not possible.
    """
    start = time.perf_counter()
    command = _command()
    with _temporary_folder() as folder:
        _open(_compile(command, _flags(), "int answer(void) { return 42; }\n", ("m",), folder))
    return (time.perf_counter() - start) * 1e3


def _command() -> tuple[str, ...]:
    command = compiler()
    if command is None:
        raise BuildError(MISSING)
    return command


def _flags() -> tuple[str, ...]:
    given = os.environ.get("PELLUCID_CFLAGS", "")
    try:
        return (*FLAGS, *OPTIONAL_FLAGS, *shlex.split(given))
    except ValueError as error:
        raise BuildError(
            f"PELLUCID_CFLAGS={given!r} is not a list of flags ({error}); unset it or correct it"
        ) from None


def _compile(command: tuple[str, ...], flags: Sequence[str], text: str, libraries: Sequence[str], folder: Path) -> Path:
    """Compile a text in a folder, where the names are always the same, and so the bytes of the library."""
    (folder / "kernel.c").write_text(text, encoding="utf-8")
    links = [f"-l{name}" for name in libraries]
    while True:
        status, said = _run((*command, *flags, "kernel.c", "-o", "kernel.so", *links), folder)
        refused = {flag for flag in OPTIONAL_FLAGS if flag in flags and flag.split("=")[0] in said}
        if status == 0 or not refused:
            break
        flags = [flag for flag in flags if flag not in refused]
    if status:
        lines = "\n".join(said.splitlines()[-LAST_LINES:]) or "it said nothing"
        cure = "set CC to another compiler, or look at PELLUCID_CFLAGS"
        raise BuildError(f"{_name(command)} ended with exit status {status} ({cure}):\n{lines}")
    if not (folder / "kernel.so").is_file():
        raise BuildError(f"{_name(command)} ended well but wrote no library; set CC to a C compiler")
    return folder / "kernel.so"


def _name(command: tuple[str, ...]) -> str:
    return f"the C compiler {shlex.join(command)}"


def _run(command: tuple[str, ...], folder: str | Path) -> tuple[int, str]:
    """Run a command; return its exit status and what it said. Nothing of it outlives a time-out or an interrupt."""
    seconds = _timeout()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"{_name(command)} cannot be started ({error}); set CC to another one") from error
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"{_name(command)} was stopped after {seconds:g} s; set CC to another one, "
            "or PELLUCID_COMPILER_TIMEOUT to more seconds"
        ) from None
    finally:
        if process.returncode is None:
            _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _timeout() -> float:
    given = os.environ.get("PELLUCID_COMPILER_TIMEOUT", "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise BuildError(f"PELLUCID_COMPILER_TIMEOUT={given!r} is not a number of seconds; unset it or correct it")
    return seconds


# -- what is kept on disk ----------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return where kernels are kept; it need not exist.

    Raises:
        OSError: the user has no home folder.
    """
    named, shared = os.environ.get("PELLUCID_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if named:
        return Path(named).expanduser().absolute() / "kernels"
    if os.path.isabs(shared):
        return Path(shared, "pellucid", "kernels")
    try:
        return Path.home() / ".cache" / "pellucid" / "kernels"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def usable_cache() -> Path:
    """Return the cache folder, made where it was missing, once it is sure that nobody else can write there.

    Raises:
        BuildError: it is another user's, or others can write to it: what they put there would run as this user.
        OSError: it cannot be made.
    """
    folder = cache_folder()
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        found = folder.stat()
        wrong = "belongs to another user" if found.st_uid != os.getuid() else ""
        if not wrong and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            wrong = "can be written to by other users"
        if wrong:
            cure = "remove it, or set PELLUCID_CACHE to a folder of your own"
            raise BuildError(f"the cache of kernels {folder} {wrong}, who could run their code as you; {cure}")
    return folder


def _build(text: str, libraries: tuple[str, ...]) -> ctypes.CDLL:
    """Find a text's library in the cache or compile it; without a cache it is compiled by every process."""
    command, flags = _command(), _flags()
    kept = _place(json.dumps([text, libraries, flags, command, version(command), processor()]))
    library = _load_kept(kept)
    if library:
        return library
    with _alone(kept), _temporary_folder() as folder:
        library = _load_kept(kept)  # another process was quicker
        if library:
            return library
        compiled = _compile(command, flags, text, libraries, folder)
        if kept is not None:
            try:
                _keep(kept, text, compiled.read_bytes())
                return ctypes.CDLL(str(kept))
            except OSError as error:  # full, read-only, or mounted so that nothing there may run
                _warn_not_kept(str(kept.parent), error.strerror or str(error))
        return _open(compiled)


def _place(determining: str) -> Path | None:
    """Return the path of a library in the cache, named by all that determines it; None where no cache can be."""
    name = hashlib.sha256(determining.encode()).hexdigest()
    try:
        return usable_cache() / f"{name}.so"
    except OSError as error:
        _warn_not_kept(error.filename or "~/.cache/pellucid", error.strerror or str(error))
        return None


@functools.cache
def processor() -> str:
    """What decides the instructions of ``-march=native``: Linux names the model and lists what it can do."""
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ", "cpu\t", "features", "isa")
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join([platform.machine(), *(line for line in first.splitlines() if line.startswith(names))])


def _load_kept(kept: Path | None) -> ctypes.CDLL | None:
    """Load a library from the cache; None unless it is there and as it was written."""
    if kept is None:
        return None
    with contextlib.suppress(OSError):
        os.utime(kept)  # the least recently used are removed first
    try:
        digest = hashlib.sha256(kept.read_bytes()).hexdigest()
        if kept.with_suffix(".sha256").read_bytes() == digest.encode():
            return ctypes.CDLL(str(kept))
    except OSError:
        pass
    return None


def _keep(kept: Path, text: str, library: bytes) -> None:
    """Put a library into the cache, beside the text for people and the digest that shows damage."""
    write(kept.with_suffix(".c"), text.encode())
    write(kept.with_suffix(".sha256"), hashlib.sha256(library).hexdigest().encode())
    write(kept, library)
    _trim(kept.parent)


def write(path: Path, content: bytes) -> None:
    """Write a file, readable by its owner only, that appears whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _trim(folder: Path) -> None:
    """Remove the kernels that were used the longest ago, until the cache holds no more than LIMIT bytes."""
    kernels: dict[str, list[Path]] = {}
    used, size = dict[str, float](), dict[str, int]()
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            found, name = path.stat(), path.name.split(".")[0]
            kernels.setdefault(name, []).append(path)
            used[name] = max(used.get(name, 0.0), found.st_mtime)
            size[name] = size.get(name, 0) + found.st_size
    total = sum(size.values())
    for name in sorted(used, key=used.__getitem__):
        if total <= LIMIT or used[name] > time.time() - RECENT:
            break
        for path in kernels[name]:
            with contextlib.suppress(OSError):
                path.unlink()
        total -= size[name]


@contextlib.contextmanager
def _alone(kept: Path | None) -> Iterator[None]:
    """Let one process compile while others wait; where files cannot be locked, or too long, all go ahead."""
    if kept is None or fcntl is None:
        yield
        return
    path = kept.with_suffix(".lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + _timeout()
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        with contextlib.suppress(OSError):  # closing is not enough: a forked child may hold the file too
            fcntl.flock(handle, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):  # who waits for this file now finds the library, as does who comes later
            path.unlink()
        os.close(handle)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for one compile; a library loaded from it stays in memory when the folder is gone."""
    try:
        with tempfile.TemporaryDirectory(prefix="pellucid-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise BuildError(
            f"nothing can be compiled in a temporary folder ({error}); set TMPDIR to another one"
        ) from error


def _open(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"the compiled library cannot be loaded ({error}); set CC or TMPDIR to another one") from error


@functools.cache
def _warn_not_kept(folder: str, reason: str) -> None:
    """Say once that every process compiles again."""
    warnings.warn(
        f"compiled kernels cannot be kept in {folder} ({reason}), so every process compiles them again; "
        "free that folder, or set PELLUCID_CACHE to one of your own",
        PellucidWarning,
        stacklevel=2,
    )
