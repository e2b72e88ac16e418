"""C text to a loaded library: the compiler, what is kept on disk, and everything that can go wrong with either."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shlex
import signal
import stat
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fresh
from pellucid.errors import PellucidWarning
from pellucid.kernel import build
from pellucid.kernel.build import BuildError, load

FOUND = build.compiler()
pytestmark = pytest.mark.skipif(FOUND is None or not hasattr(os, "fork"), reason="needs a C compiler and POSIX")
FORK = multiprocessing.get_context("fork")
TEXT = "int answer(void) { return 42; }\n"
GROUP, OTHERS = 0o770, 0o707


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A cache and a temporary folder of its own for every test, and nothing loaded yet."""
    for name in ("CC", "PELLUCID_CFLAGS", "PELLUCID_COMPILER_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(build, "_loaded", {})


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Return a function that makes $CC a script: it counts its compiles in a file, does what is given, compiles."""

    def make(before: str = "", always: str = "") -> Path:
        script, calls = tmp_path / "compiler.sh", tmp_path / "calls"
        calls.touch()
        real = shlex.join(FOUND)
        lines = ("#!/bin/sh", always, f'[ "$1" = --version ] && exec {real} "$@"', f"echo call >> {calls}", before)
        script.write_text("\n".join((*lines, f'exec {real} "$@"\n')))
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
        return calls

    return make


def kernels(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "kernels").glob("*.so"))


def compiles(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def in_children(count: int, function, *arguments) -> None:
    """Run a function in forked processes at once, all of which must end well within 20 s."""
    children = [FORK.Process(target=function, args=arguments) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
        child.kill()
        child.join()
    assert [child.exitcode for child in children] == [0] * count


def in_child(function, *arguments) -> None:
    in_children(1, function, *arguments)


def check_answer(text: str = TEXT, expected: int = 42) -> None:
    assert load(text).answer() == expected


# -- compiling and keeping ---------------------------------------------------------------------------------------


def test_a_text_is_compiled_once_and_kept(compiler, tmp_path):
    calls = compiler()
    library = load(TEXT)
    assert library.answer() == 42
    assert load(TEXT) is library
    assert compiles(calls) == 1
    folder = tmp_path / "cache" / "kernels"
    kept = {path.suffix: path for path in folder.iterdir()}
    assert set(kept) == {".c", ".so", ".sha256"}
    assert kept[".c"].read_text() == TEXT
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (folder.parent, folder, *kept.values()))
    assert not any((tmp_path / "temporary").iterdir())


def test_a_second_process_does_not_compile(compiler, tmp_path):
    calls = compiler()
    in_child(check_answer)
    assert compiles(calls) == 1
    program = f"from pellucid.kernel.build import load; print(load({TEXT!r}).answer())"
    shown = fresh.run(program)
    assert shown.stdout == "42\n", shown.stderr
    assert compiles(calls) == 1


def test_the_library_is_the_same_to_the_byte_wherever_it_is_compiled(monkeypatch, tmp_path):
    load(TEXT)
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "other" / "cache"))
    build._loaded.clear()
    load(TEXT)
    (first,), (second,) = kernels(tmp_path), kernels(tmp_path / "other")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_flags_arguments_and_libraries_make_another_library(monkeypatch, tmp_path):
    text = "int answer(void) { return ANSWER; }\n"
    plain = shlex.join(FOUND)
    settings = (
        (3, "PELLUCID_CFLAGS", "-DANSWER=3"),
        (4, "PELLUCID_CFLAGS", "-DANSWER=4"),
        (5, "CC", f"{plain} -DANSWER=5"),
    )
    for answer, variable, value in settings:
        with monkeypatch.context() as changed:
            changed.setenv(variable, value)
            build._loaded.clear()
            assert load(text).answer() == answer
            load(text, libraries=())
    assert len(kernels(tmp_path)) == 6


@pytest.mark.parametrize("name", ["version", "processor"])
def test_another_compiler_or_processor_makes_another_library(monkeypatch, tmp_path, name):
    load(TEXT)
    monkeypatch.setattr(build, name, lambda *_: "another")
    build._loaded.clear()
    load(TEXT)
    assert len(kernels(tmp_path)) == 2


def test_the_least_recently_used_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "LIMIT", 150_000)
    in_child(check_answer)
    (used,) = kernels(tmp_path)
    now = time.time()
    for name, age in (("old", 9000), ("older", 9500), ("fresh", 10)):
        for suffix in (".so", ".c", ".sha256"):
            path = used.with_name(name + suffix)
            path.write_bytes(bytes(40_000))
            os.utime(path, (now - age, now - age))
    for path in used.parent.glob(f"{used.stem}.*"):
        os.utime(path, (now - 20_000, now - 20_000))
    load(TEXT)  # from the cache: now it is the one used last
    load(TEXT.replace("42", "43"))
    left = {path.name.split(".")[0] for path in used.parent.iterdir()}
    assert {used.stem, "fresh"} < left
    assert not {"old", "older"} & left
    monkeypatch.setattr(build, "LIMIT", 0)
    load(TEXT.replace("42", "44"))
    assert {path.name.split(".")[0] for path in used.parent.iterdir()} > left, "what is in use is never removed"


# -- the compiler ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [None, "no-such-compiler -O1", "an 'unfinished quotation"])
def test_a_missing_compiler(monkeypatch, tmp_path, named):
    if named:
        monkeypatch.setenv("CC", named)
        check_answer()  # another one is on the path
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    assert build.compiler() is None
    with pytest.raises(BuildError, match=r"no C compiler was found .* pip install 'pellucid\[compiler\]'"):
        load("int another;")


def test_the_compiler_of_the_package_ziglang_comes_last(monkeypatch, tmp_path):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert build.compiler() != (sys.executable, "-m", "ziglang", "cc")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.compiler() == (sys.executable, "-m", "ziglang", "cc")


def test_a_failing_compiler_is_quoted(compiler, tmp_path):
    compiler(before="for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; exit 3")
    with pytest.raises(BuildError) as caught:
        load(TEXT)
    assert str(tmp_path / "compiler.sh") in str(caught.value)
    assert "exit status 3" in str(caught.value)
    assert "line 9" in str(caught.value)
    assert "line 1\n" not in str(caught.value)
    assert not any((tmp_path / "cache" / "kernels").iterdir())
    compiler()
    check_answer()  # a failure is not remembered


def test_a_text_that_is_not_c():
    with pytest.raises(BuildError, match=r"kernel\.c:1:"):
        load("int answer(void) { return }")


def test_a_compiler_that_writes_nothing_or_cannot_start(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "true")
    with pytest.raises(BuildError, match="wrote no library"):
        load(TEXT)
    (tmp_path / "compiler").write_bytes(b"\x7fELF no program")
    (tmp_path / "compiler").chmod(0o700)
    monkeypatch.setenv("CC", str(tmp_path / "compiler"))
    with pytest.raises(BuildError, match="cannot be started"):
        load(TEXT)


def test_a_library_that_cannot_be_loaded(compiler):
    compiler(before="echo no library > kernel.so; exit 0")
    with (
        pytest.warns(PellucidWarning, match="cannot be kept"),
        pytest.raises(BuildError, match="the compiled library cannot be loaded"),
    ):
        load(TEXT)


def test_a_flag_that_the_compiler_refuses_is_left_out(compiler):
    refused = "error: unrecognized command-line option"
    calls = compiler(before=f'case "$*" in *{build.NATIVE}*) echo "{refused} {build.NATIVE}" >&2; exit 1;; esac')
    check_answer()
    assert compiles(calls) == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PELLUCID_COMPILER_TIMEOUT", "soon"), ("PELLUCID_COMPILER_TIMEOUT", "-1"), ("PELLUCID_CFLAGS", "-D'A")],
)
def test_settings_that_mean_nothing(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(BuildError, match=f"{variable}="):
        load(TEXT)


def hanging(folder: Path) -> str:
    """Lines of a compiler that hangs; a process that it started would leave a file behind if it lived on."""
    return f"echo $$ > {folder}/leader; (sleep 2; touch {folder}/survivor) & sleep 60"


def check_gone(folder: Path, started: float) -> None:
    """Nothing of a `hanging` compiler is left: no process, no file."""
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "leader").read_text()), 0)
    time.sleep(max(0.0, started + 2.5 - time.monotonic()))
    assert not (folder / "survivor").exists()
    assert not any((folder / "temporary").iterdir())
    assert not any((folder / "cache" / "kernels").iterdir())


@pytest.mark.parametrize("when", ["before", "always"])
def test_a_hanging_compiler_is_stopped(compiler, monkeypatch, tmp_path, when):
    """While it compiles, or already when it is asked for its version."""
    compiler(**{when: hanging(tmp_path)})
    (tmp_path / "cache" / "kernels").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("PELLUCID_COMPILER_TIMEOUT", "1")
    started = time.monotonic()
    with pytest.raises(BuildError, match=r"compiler\.sh.* was stopped after 1 s; .*PELLUCID_COMPILER_TIMEOUT"):
        load(TEXT)
    assert time.monotonic() - started < 1.9
    check_gone(tmp_path, started)


def test_an_interrupt_stops_the_compiler_and_another_thread_takes_over(compiler, tmp_path):
    """The first compile hangs and is interrupted; the thread that waited for it compiles by itself."""
    calls = compiler(before=f"mkdir {tmp_path}/first 2> {tmp_path}/again && {{ {hanging(tmp_path)}; }}")
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(1) as threads:
            signal.setitimer(signal.ITIMER_REAL, 1)
            other = threads.submit(lambda: time.sleep(0.5) or load(TEXT))
            with pytest.raises(KeyboardInterrupt):
                load(TEXT)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert other.result().answer() == 42
    assert compiles(calls) == 2
    for path in (tmp_path / "cache" / "kernels").iterdir():
        assert path.suffix in (".c", ".so", ".sha256")
        path.unlink()
    check_gone(tmp_path, started)


# -- a cache that is damaged, full, read-only or not private -----------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda library: os.truncate(library, 4096),
        lambda library: os.truncate(library, 0),
        lambda library: library.write_bytes(bytes(range(256)) * 64),
        lambda library: library.write_bytes(library.read_bytes().replace(b"answer", b"Answer")),
        lambda library: library.with_suffix(".sha256").unlink(),
        lambda library: library.with_suffix(".sha256").write_bytes(b"\xff" * 64),
    ],
    ids=["truncated", "empty", "garbage", "changed", "no digest", "digest"],
)
def test_a_damaged_library_is_compiled_again(compiler, tmp_path, damage):
    calls = compiler()
    in_child(check_answer)  # this process has not mapped the file, so that damage in place is safe
    (library,) = kernels(tmp_path)
    written = library.read_bytes()
    damage(library)
    check_answer()
    assert compiles(calls) == 2
    assert library.read_bytes() == written
    in_child(check_answer)
    assert compiles(calls) == 2


def fails(number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def below_a_file(monkeypatch, folder: Path) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("PELLUCID_CACHE", str(folder / "file" / "cache"))


def without_a_home(monkeypatch, folder: Path) -> None:
    monkeypatch.delenv("PELLUCID_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~none").expanduser())


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (below_a_file, "file/cache"),
        (without_a_home, "~/.cache/pellucid"),
        (lambda monkeypatch, _: monkeypatch.setattr(os, "replace", fails(errno.ENOSPC)), "cache/kernels"),
        (lambda monkeypatch, _: monkeypatch.setattr(tempfile, "mkstemp", fails(errno.EROFS)), "cache/kernels"),
    ],
    ids=["below a file", "no home", "full", "read-only"],
)
def test_without_a_usable_cache_every_process_compiles(monkeypatch, tmp_path, spoil, named):
    spoil(monkeypatch, tmp_path)
    build._warn_not_kept.cache_clear()
    with pytest.warns(PellucidWarning, match=f"{named} .*, so every process compiles them again; .*PELLUCID_CACHE"):
        check_answer()
    check_answer(TEXT.replace("42", "43"), 43)  # the second one without a warning, which would be an error here
    assert not any((tmp_path / "temporary").iterdir())
    folder = tmp_path / "cache" / "kernels"
    assert not folder.exists() or not any(folder.iterdir())


def test_a_read_only_cache_that_has_the_library_is_used_without_a_word(compiler, monkeypatch):
    calls = compiler()
    in_child(check_answer)
    for module, name in ((os, "utime"), (os, "replace"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, fails(errno.EROFS))
    check_answer()
    assert compiles(calls) == 1


def test_no_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(BuildError, match="set TMPDIR"):
        load(TEXT)


@pytest.mark.parametrize("mode", [GROUP, OTHERS])
def test_a_cache_that_others_can_write_to_is_refused(compiler, tmp_path, mode):
    calls = compiler()
    in_child(check_answer)
    folder = tmp_path / "cache" / "kernels"
    folder.chmod(mode)
    with pytest.raises(BuildError, match=f"{folder} can be written to by other users.*PELLUCID_CACHE"):
        load(TEXT)
    assert compiles(calls) == 1


def test_a_cache_of_another_user_is_refused(monkeypatch, tmp_path):
    (tmp_path / "cache" / "kernels").mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BuildError, match=r"belongs to another user.*PELLUCID_CACHE"):
        load(TEXT)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PELLUCID_CACHE": "/one", "XDG_CACHE_HOME": "/two"}, "/one/kernels"),
        ({"XDG_CACHE_HOME": "/two"}, "/two/pellucid/kernels"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/three"}, "/three/.cache/pellucid/kernels"),
        ({"HOME": "/three"}, "/three/.cache/pellucid/kernels"),
    ],
)
def test_the_folder_of_the_cache(monkeypatch, variables, expected):
    for name in ("PELLUCID_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert build.cache_folder() == Path(expected)


# -- many at once ------------------------------------------------------------------------------------------------


def test_eight_threads_compile_a_text_once(compiler):
    calls = compiler(before="sleep 0.2")
    barrier = threading.Barrier(8)

    def load_together(_: int):
        barrier.wait()
        return load(TEXT)

    with ThreadPoolExecutor(8) as threads:
        libraries = list(threads.map(load_together, range(8)))
    assert len(set(map(id, libraries))) == 1
    assert libraries[0].answer() == 42
    assert compiles(calls) == 1


def test_different_texts_are_compiled_in_parallel(compiler, tmp_path):
    """Each compile fails unless the other one starts within 10 s."""
    wait = "n=$((n+1)); [ $n = 100 ] && exit 1; sleep 0.1"
    compiler(before=f"touch {tmp_path}/on.$$; n=0; while [ $(ls {tmp_path}/on.* | wc -l) -lt 2 ]; do {wait}; done")
    with ThreadPoolExecutor(2) as threads:
        libraries = threads.map(load, [TEXT, TEXT.replace("42", "43")])
        assert [library.answer() for library in libraries] == [42, 43]


def load_at_barrier(barrier) -> None:
    barrier.wait(10)
    check_answer()


@pytest.mark.parametrize("locks", [True, False])
def test_six_processes_at_once(compiler, monkeypatch, tmp_path, locks):
    calls = compiler(before="sleep 0.1")
    if not locks:
        monkeypatch.setattr(build, "fcntl", None)
    barrier = FORK.Barrier(6)
    in_children(6, load_at_barrier, barrier)
    assert compiles(calls) == 1 if locks else compiles(calls) >= 1
    compiled = compiles(calls)
    check_answer()
    assert compiles(calls) == compiled
    assert {path.suffix for path in (tmp_path / "cache" / "kernels").iterdir()} == {".c", ".so", ".sha256"}


def test_a_lock_that_is_never_given_back(compiler, monkeypatch, tmp_path):
    """Another process that hangs costs the wait of one time-out."""
    compiler()
    monkeypatch.setenv("PELLUCID_COMPILER_TIMEOUT", "1")
    monkeypatch.setattr(build.fcntl, "flock", fails(errno.EWOULDBLOCK))
    started = time.monotonic()
    check_answer()
    assert 1 <= time.monotonic() - started < 3


def test_a_fork_during_a_compile(compiler, tmp_path):
    """The child has no thread that would finish the compile of its parent."""
    compiler(before=f"touch {tmp_path}/started; sleep 0.5")
    with ThreadPoolExecutor(1) as threads, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        ours = threads.submit(load, TEXT)
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        in_child(check_answer)
        assert ours.result().answer() == 42
