"""Tests and benchmarks of a GPU in one go, within ten minutes: ``make gpu``, or ``python benchmarks/gpu.py``.

``pytest -m gpu`` comes first, then `pellucid bench gpu`, whatever the tests say. Beside the tests a few processes go
through the rows of the benchmark, for their kernels to be compiled and kept by then. The folder --out has afterwards:

- ``gpu.json``: the tests by number and the names of those that fail, and what `pellucid bench --json` writes;
- ``gpu.md``: the same as text and tables;
- ``tests.xml``: pytest's own report, with the output of every test that fails.

The exit status is 1 where a test or a comparison fails, or where something was stopped because its time was over.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 10  # which share the GPU: tests spend most of their time on compiling
AHEAD = 6  # processes that compile for the benchmark meanwhile
PATIENCE = 15.0  # seconds in which what is stopped may write what it knows
LAST_ROW = 30.0  # seconds that the last row of the benchmark may take


def main(arguments: Sequence[str] | None = None) -> int:
    """Test, measure, and write what was found."""
    parser = argparse.ArgumentParser(description="Tests and benchmarks of a GPU in one go.")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="a folder for what is written")
    parser.add_argument("--tests", type=float, default=240, metavar="SECONDS", help="at most for the tests")
    parser.add_argument("--bench", type=float, default=300, metavar="SECONDS", help="at most for the benchmark")
    parser.add_argument("--rows", metavar="TEXT", help="of the benchmark only these, see pellucid bench --help")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report, figures, table = (out / name for name in ("tests.xml", "gpu.json", "gpu.md"))
    for old in (report, figures, table):
        old.unlink(missing_ok=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as apart:  # where what is measured while others compute is not kept
        crowded = {**environment(), "PELLUCID_CACHE": apart}
        with compiling(0 if options.rows else AHEAD, crowded) as wait:
            tests = {**run(pytest(report), options.tests, crowded), **outcomes(report)}
            wait(options.tests - (time.perf_counter() - begin))
    bench = run(benchmark(figures, table, options.bench, options.rows), options.bench, environment())
    found = json.loads(figures.read_text()) if figures.exists() else {}
    figures.write_text(json.dumps({"tests": tests, "bench": bench, **found}, indent=2, ensure_ascii=False) + "\n")
    tables = table.read_text() if table.exists() else ""
    table.write_text(f"{summary(tests, bench)}\n{tables}")
    print(table.read_text() if bench["stopped"] else summary(tests, bench))
    return int(tests["status"] != 0 or bench["status"] != 0)


def pytest(report: Path) -> list[str]:
    """The command that runs all tests that want a GPU, and no others' files."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    count = min(PROCESSES, os.cpu_count() or 1)
    parallel = ["-n", str(count), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    options = ["-m", "gpu", "-rf", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--junitxml={report}"]
    return [sys.executable, "-m", "pytest", *options, *parallel, *files]


def benchmark(figures: Path, table: Path, seconds: float, rows: str | None) -> list[str]:
    """The command that measures, and begins no row that could not be done in time."""
    budget = max(0.0, seconds - LAST_ROW)
    options = ["gpu", "--budget", f"{budget:g}", "--json", str(figures), "--markdown", str(table)]
    chosen = ["--rows", rows] if rows else []
    return [sys.executable, "-c", "from pellucid.cli import main; main()", "bench", *options, *chosen]


@contextlib.contextmanager
def compiling(parts: int, environment: Mapping[str, str]) -> Iterator[Callable[[float], None]]:
    """Have all rows measured by so many processes, for what is compiled; they can be waited for, and then end."""
    commands = [ahead(part, parts) for part in range(parts)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(c, cwd=ROOT, env=environment, start_new_session=True, **quiet) for c in commands]

    def wait(seconds: float) -> None:
        last = time.perf_counter() + seconds
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, last - time.perf_counter()))

    try:
        yield wait
    finally:
        for process in processes:
            end(process)


def ahead(part: int, parts: int) -> list[str]:
    """The command that measures one of so many parts of the rows and says nothing."""
    return [sys.executable, "-c", f"from pellucid.benchmark.gpu import compile_rows; compile_rows({part}, {parts})"]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command and stop it when its time is over: its exit status, seconds, and whether it was stopped."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    stopped = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        stopped = True
        process.send_signal(signal.SIGINT)  # pytest then reports the tests that it ran
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        end(process)
    status = process.returncode or int(stopped)
    return {"status": status, "seconds": round(time.perf_counter() - begin, 1), "stopped": stopped}


def environment() -> Mapping[str, str]:
    """The sources beside this script are what is tested and measured, installed or not."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Processes there are enough of without those of torch.compile.
    return {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def outcomes(report: Path) -> dict[str, Any]:
    """How many tests there were by outcome, and the names of those that fail, from pytest's report."""
    if not report.exists():
        return {"passed": 0, "failed": [], "skipped": 0}
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if is_any(case, "failure", "error")]
    skipped = sum(is_any(case, "skipped") for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "failed": failed, "skipped": skipped}


def is_any(case: ElementTree.Element, *outcomes: str) -> bool:
    """Whether a test had one of these outcomes."""
    return any(case.find(outcome) is not None for outcome in outcomes)


def summary(tests: Mapping[str, Any], bench: Mapping[str, Any]) -> str:
    """The tests and the benchmark in a few lines."""
    count = f"{tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped"
    lines = [f"pytest -m gpu: {count}; {ended(tests)}", f"pellucid bench gpu: {ended(bench)}"]
    return "".join(f"- {line}\n" for line in [*lines, *(f"failed: {name}" for name in tests["failed"])])


def ended(step: Mapping[str, Any]) -> str:
    """How a step came to its end."""
    return f"{'stopped' if step['stopped'] else 'exit status ' + str(step['status'])} after {step['seconds']:g} s"


if __name__ == "__main__":
    sys.exit(main())
