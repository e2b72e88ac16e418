"""Python programs in processes of their own that start soon: forked from a process that has imported torch alone."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Every line is a program; it ends as a program that was started by itself would, after the last line of this one.
SERVER = """
import json, os, signal, sys, torch

for line in sys.stdin:
    given = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, file in enumerate((os.devnull, given["stdout"], given["stderr"])):
    os.dup2(os.open(file, os.O_RDWR), number)
signal.alarm(given["seconds"])
os.environ.clear()
os.environ.update(given["environment"])
sys.argv[1:] = given["arguments"]
code = given["code"]
del given, line, number, file, child
exec(code)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(code: str, *arguments: str, seconds: int = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program, with these variables of the environment besides those of this process."""
    surroundings = {**os.environ, **environment}
    if sys.platform != "linux":
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=seconds, check=False)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("stdout", "stderr")}
        for path in paths.values():
            path.touch()
        given = {"code": code, "arguments": arguments, "environment": surroundings, "seconds": seconds}
        server = _server()
        server.stdin.write(json.dumps(given | {name: str(path) for name, path in paths.items()}) + "\n")
        server.stdin.flush()
        ended = int(server.stdout.readline())
        texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    return subprocess.CompletedProcess([sys.executable, "-c", code, *arguments], ended, **texts)


def printed(code: str, *arguments: str, **environment: str) -> str:
    """What a program prints that ends well."""
    done = run(code, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def for_gpu(code: str, folder: Path, *arguments: str) -> str:
    """What a program prints in which Triton compiles for a GPU that is not here."""
    return printed(code, *arguments, TRITON_CACHE_DIR=str(folder / "triton"), TRITON_INTERPRET="0")
