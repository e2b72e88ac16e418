"""The memory of what kernels write: that it is reused, only when nobody looks at it any more, and within limits."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import os
import pickle
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fresh
from pellucid.errors import PellucidWarning
from pellucid.kernel import memory
from pellucid.kernel.memory import empty

MB = 2**20
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn),
)

KEPT = {"in use": 0}  # bytes that tests of other files, which ran before in this process, hold on to


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """An empty pool with a limit of 64 MB, on a machine with memory to spare."""
    gc.collect()
    memory.release()
    monkeypatch.setattr(memory, "_limit", 64 * MB)
    monkeypatch.setattr(memory, "_available_memory", lambda: math.inf)
    KEPT["in use"] = memory.statistics()["in use"]
    yield
    gc.collect()
    memory.release()
    gc.freeze()  # what is alive now was there before or is imported: the next test need not look at it


def floats(megabytes: float) -> torch.Tensor:
    return empty((int(megabytes * MB / 4),), torch.float32)


def reuses(of, *arguments) -> int:
    """How many blocks are reused by a call whose result is thrown away."""
    before = memory.statistics()["reuses"]
    of(*arguments)
    return memory.statistics()["reuses"] - before


def bytes_of(use: str) -> int:
    return memory.statistics()[use] - KEPT.get(use, 0)


def run(program: str, **environment: str) -> str:
    """What a Python process prints, errors included; it must end well."""
    done = fresh.run(f"import torch\nfrom pellucid.kernel import memory\n{program}", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# -- reuse -------------------------------------------------------------------------------------------------------


def test_work_space_of_inference_mode_is_written_to_behind_it():
    with torch.inference_mode():
        size = memory.scratch(0).numel() + 1000
        work = memory.scratch(size)
    assert work.numel() >= size
    assert not memory.scratch(size).is_inference()
    with memory.poison():
        assert (memory.scratch(size) == 255).all()


def test_memory_returns_by_itself_and_is_used_again():
    x = floats(4)
    assert (bytes_of("in use"), bytes_of("idle")) == (4 * MB, 0)
    x.fill_(3)
    del x
    assert (bytes_of("in use"), bytes_of("idle")) == (0, 4 * MB)
    reused = floats(4)
    assert (bytes_of("in use"), bytes_of("idle")) == (4 * MB, 0)
    assert bytes_of("reuses") >= 1
    assert (reused[1024:-1024] == 3).all()  # the stagger moves it within its page


@pytest.mark.parametrize(("size", "expected"), [(4.0, 1), (3.9, 1), (3.76, 1), (3.74, 0), (4.01, 0), (8.0, 0)])
def test_a_block_serves_its_size_and_slightly_smaller_ones(size, expected):
    floats(4)
    assert reuses(floats, size) == expected


def test_small_tensors_are_left_to_torch():
    assert floats(0.2).untyped_storage().resizable()
    assert bytes_of("in use") == bytes_of("idle") == 0
    assert not floats(0.25).untyped_storage().resizable()


def test_what_is_used_last_comes_back_first():
    first, second = floats(4).fill_(1), floats(4).fill_(2)
    del first, second
    assert floats(4)[-2000].item() == 2


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x[10:20],
        lambda x: x.detach(),
        lambda x: x.numpy()[5:],
        lambda x: x.untyped_storage(),
        lambda x: x.view(torch.int32)[None].T,
        lambda x: memoryview(x.numpy()),
        lambda x: torch.from_dlpack(x),
        lambda x: (torch.ones(x.shape, requires_grad=True) * x).sum(),  # saved by autograd
    ],
    ids=["slice", "detach", "numpy", "storage", "other dtype", "memoryview", "dlpack", "autograd"],
)
def test_memory_is_not_reused_while_anything_looks_at_it(keep):
    x = floats(1)
    kept = keep(x)
    del x
    assert reuses(floats, 1) == 0
    assert bytes_of("in use") == MB
    memory.release()
    del kept
    gc.collect()
    assert bytes_of("idle") == MB


def test_backward_returns_what_autograd_saved():
    weight = torch.ones(MB, requires_grad=True)
    for step in range(4):
        x = empty((MB,), torch.float32).fill_(step)
        y = (weight * x).sum()
        del x
        assert bytes_of("in use") == 4 * MB
        y.backward()
        assert bytes_of("in use") == 0
        assert (weight.grad == step).all()
        weight.grad = None


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = empty(x.shape, x.dtype)
        torch.mul(x, 2, out=y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return empty(y.shape, y.dtype).copy_(gradient * 2)


def test_an_output_may_be_changed_in_place_and_differentiated():
    x = torch.ones(300, 400, requires_grad=True)
    y = _Double.apply(x)
    y.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()  # the function had saved y: torch notices, as for every tensor
    y = _Double.apply(x)
    y[3:5].sum().backward()
    assert x.grad.sum() == 2 * 2 * 400


# -- ordinary tensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7, 0, 10**6), (3,), (1, 641, 1, 1023), (1024, 1024)], ids=str)
def test_shape_dtype_and_layout(shape, dtype):
    x, like = empty(shape, dtype), torch.empty(shape, dtype=dtype)
    assert (x.shape, x.dtype, x.stride(), x.device, type(x)) == (shape, dtype, like.stride(), like.device, torch.Tensor)
    assert x.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    assert not x._is_view()
    assert not x.requires_grad
    if x.numel():
        assert x.data_ptr() % 64 == 0
        x.fill_(1)
        assert x.float().sum() == x.numel() if not dtype.is_complex else x.real.sum() == x.numel()


def test_sizes_may_come_as_any_sequence():
    assert empty(torch.Size([600, 500]), torch.float32).shape == empty([600, 500], torch.float32).shape == (600, 500)


def test_neighbours_start_at_different_places_within_a_page():
    tensors = [floats(0.25) for _ in range(64)]
    assert len({x.data_ptr() % 4096 for x in tensors}) == 64
    ends = sorted((x.data_ptr(), x.data_ptr() + x.untyped_storage().nbytes()) for x in tensors)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


@pytest.mark.parametrize("size", [0.25, 0.3, 1.9, 2, 2.25, 3.3, 31])
def test_every_byte_may_be_written(size):
    tensors = [floats(size).fill_(i) for i in range(3)]
    assert all((x == i).all() for i, x in enumerate(tensors))


def test_copies_and_files_hold_the_tensor_only():
    x = floats(1).fill_(2)
    file = io.BytesIO()
    torch.save(x, file)
    assert file.tell() < MB + 10_000
    file.seek(0)
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), torch.load(file, weights_only=True), x.clone()):
        assert torch.equal(other, x)
        assert other.data_ptr() != x.data_ptr()


def test_a_storage_does_not_grow():
    x = floats(1)
    assert x.resize_(100).shape == (100,)
    with pytest.raises(RuntimeError, match="not resizable"):
        x.resize_(MB)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_shared_tensor_is_seen_by_another_process_and_its_block_returns():
    x = floats(1).fill_(2).share_memory_()
    assert x.is_shared()
    assert bytes_of("in use") == 0
    assert (x == 2).all()
    in_child(lambda: x.fill_(5))
    assert (x == 5).all()


class _Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [0.1, 1])
@pytest.mark.parametrize("mode", [_Passing, lambda: torch.device("meta"), torch.inference_mode, torch.no_grad])
def test_modes_and_the_default_device_change_nothing(mode, size):
    with mode():
        x = floats(size)
    assert type(x) is torch.Tensor
    assert x.device == torch.device("cpu")


def test_inside_a_compiled_operator():
    name = "pellucid_test_memory::double"

    @torch.library.custom_op(name, mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 2, out=empty(x.shape, x.dtype))

    double.register_fake(torch.empty_like)
    compiled = torch.compile(lambda x: double(x) + 1, backend="aot_eager", fullgraph=True)
    x = torch.rand(300, 400)
    for _ in range(3):
        assert torch.equal(compiled(x), x * 2 + 1)
    assert bytes_of("in use") == 0
    assert bytes_of("idle") > 0


# -- uninitialised elements --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5, 0), (11,), (700, 900)], ids=str)
@pytest.mark.parametrize("state", ["fresh", "reused", "off"])
def test_poison(dtype, shape, state, monkeypatch):
    if state == "reused":
        empty(shape, dtype).zero_()
    if state == "off":
        monkeypatch.setattr(memory, "_limit", 0)
    with memory.poison():
        x = empty(shape, dtype)
    if dtype.is_floating_point or dtype.is_complex:
        assert x.to(torch.complex128).isnan().all()
    else:
        assert (x == (True if dtype == torch.bool else torch.iinfo(dtype).max)).all()


@pytest.mark.parametrize("size", [100, memory.MOST_KEPT], ids=["kept", "too large to be kept"])
def test_poison_of_what_kernels_work_in(size):
    memory.scratch(size).zero_()
    with memory.poison():
        assert (memory.scratch(size) == 255).all()  # of a floating type: NaN


def test_poison_ends():
    floats(1).zero_()
    with pytest.raises(KeyError), memory.poison(), memory.poison():
        raise KeyError
    assert not floats(1)[1024:-1024].isnan().any()


def test_deterministic_mode_fills_as_torch_does(monkeypatch):
    floats(1).zero_()
    torch.use_deterministic_algorithms(True)
    try:
        assert floats(1).isnan().all()
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        floats(1).zero_()
        assert not floats(1)[1024:-1024].isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


# -- limits ------------------------------------------------------------------------------------------------------


def test_idle_memory_has_a_limit_and_the_longest_idle_goes_first():
    tensors = {size: floats(size) for size in (24, 16, 20, 28)}
    for size in (16, 24, 20, 28):
        del tensors[size]
        assert bytes_of("idle") <= 64 * MB
    assert bytes_of("idle") == (20 + 28) * MB
    assert [reuses(floats, size) for size in (20, 28)] == [1, 1]
    assert reuses(floats, 16) == 0


def test_a_block_beyond_the_limit_does_not_cost_the_others_their_place():
    floats(8)
    floats(80).fill_(1)
    assert bytes_of("idle") == 8 * MB


def test_set_limit():
    x = [floats(8) for _ in range(4)]
    del x
    memory.set_limit(20 * MB)
    assert bytes_of("idle") == 16 * MB
    memory.set_limit(0)
    assert bytes_of("idle") == 0
    assert floats(8).untyped_storage().resizable()  # torch's own
    with pytest.raises(ValueError, match="-1 bytes"):
        memory.set_limit(-1)


def test_what_was_lent_before_the_pool_was_switched_off_is_not_kept():
    x = floats(8)
    memory.set_limit(0)
    del x
    assert bytes_of("in use") == bytes_of("idle") == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_release_gives_memory_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tensors = [floats(size).fill_(1) for size in (0.5, 24, 30)]
    del tensors
    before = resident()
    assert memory.release() == 54.5 * MB
    assert before - resident() > 50 * MB
    assert memory.release() == bytes_of("idle") == 0


def test_no_more_is_idle_than_the_system_has_available(monkeypatch):
    looks = []
    monkeypatch.setattr(memory, "_available_memory", lambda: looks.append(1) or 20 * MB)
    monkeypatch.setattr(memory, "_looked", math.inf)
    x = [floats(8) for _ in range(4)]
    del x
    assert bytes_of("idle") == 32 * MB
    assert not looks
    monkeypatch.setattr(memory, "_looked", time.monotonic() - 2)
    floats(1)  # a new block is mapped
    assert bytes_of("idle") <= 20 * MB
    assert len(looks) == 1
    for _ in range(20):
        floats(1)
    assert len(looks) <= 1 + (time.monotonic() - memory._looked > memory.INTERVAL)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_the_systems_own_figures(monkeypatch):
    monkeypatch.undo()
    assert 0 < memory._available_memory() <= memory._physical_memory() * 64
    assert memory._available_memory() % 1024 == 0
    assert memory._physical_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_limit_of_a_container(monkeypatch, tmp_path):
    for text, limited in (("max\n", False), (f"{400 * MB}\n", True)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(memory, "CONTAINER", (str(tmp_path / "absent"), str(tmp_path / "memory.max")))
        assert (memory._default_limit() == 50 * MB) == limited


@pytest.mark.parametrize("given", ["2G", "", "-1", "1.5"])
def test_the_environment_sets_the_limit(monkeypatch, given):
    monkeypatch.setenv("PELLUCID_BUFFER_LIMIT", "123456789")
    assert memory._default_limit() == 123456789
    monkeypatch.setenv("PELLUCID_BUFFER_LIMIT", given)
    with pytest.warns(PellucidWarning, match="PELLUCID_BUFFER_LIMIT="):
        limit = memory._default_limit()
    monkeypatch.delenv("PELLUCID_BUFFER_LIMIT")
    assert limit == memory._default_limit() > 0


def test_the_environment_switches_the_pool_off():
    program = "x = memory.empty((1000, 1000), torch.float32); print(x.untyped_storage().resizable())"
    assert run(program, PELLUCID_BUFFER_LIMIT="0") == "True\n"
    assert run(program, PELLUCID_BUFFER_LIMIT="1000") == "False\n"


def test_idle_memory_makes_room_when_the_system_refuses(monkeypatch):
    floats(8)
    real, calls = memory._Block, []

    def refusing(capacity):
        calls.append(bytes_of("idle"))
        if len(calls) == 1:
            raise OSError(12, "Cannot allocate memory")
        return real(capacity)

    monkeypatch.setattr(memory, "_Block", refusing)
    assert not floats(9).untyped_storage().resizable()
    assert calls == [8 * MB, 0]


@pytest.mark.parametrize("shape", [(2**50,), (2**62, 2**10), (-5, 10**6), (-1, -(10**6)), (-1,), (2**61, 4)])
def test_impossible_sizes_raise_torchs_error(shape):
    floats(1)
    with pytest.raises(RuntimeError) as expected:
        torch.empty(shape)
    with pytest.raises(RuntimeError) as raised:
        empty(shape, torch.float32)
    if min(shape) > 0:
        assert str(raised.value).splitlines()[0] == str(expected.value).splitlines()[0]
    del raised  # its traceback holds the call's variables
    gc.collect()
    assert bytes_of("in use") == 0


# -- threads, finalizers, processes ------------------------------------------------------------------------------


def test_eight_threads():
    memory.set_limit(6 * MB)  # so that blocks are dropped all the time

    def work(thread: int) -> None:
        mine = []
        for i in range(300):
            value = thread * 1000 + i
            mine.append((floats((0.25, 0.4, 0.7, 1.1)[(i + thread) % 4]).fill_(value), value))
            if len(mine) > 3:
                x, value = mine.pop(i % 3)
                assert x[0] == value
                assert (x == value).all()
            if i % 50 == 0:
                memory.release()
            assert min(memory.statistics().values()) >= 0

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, i) for i in range(8)]:
            done.result()
    assert bytes_of("in use") == 0
    assert 0 < bytes_of("idle") <= 6 * MB


def test_memory_lent_in_one_thread_returns_in_another():
    tensors = [floats(1)]
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert reuses(floats, 1) == 1


class _Cycle:
    """Garbage that only the collector finds, with a finalizer that itself asks the pool for memory."""

    ends: list[bool]

    def __init__(self):
        self.me, self.tensor = self, floats(0.5).fill_(7)

    def __del__(self):
        untouched = bool((self.tensor == 7).all())
        floats(0.5)
        floats(0.6)
        memory.statistics()
        self.ends.append(untouched)


@pytest.mark.parametrize("limit", [64 * MB, MB])
def test_a_finalizer_may_run_at_every_line(limit):
    memory.set_limit(limit)
    lines = []
    _Cycle.ends = []

    def collect(frame, event, argument):
        if frame.f_code.co_filename != memory.__file__:
            return None
        if event == "line":
            lines.append(frame.f_code.co_name)
            _Cycle()
            gc.collect(0)
            memory.release()
        return collect

    before = sys.gettrace()
    sys.settrace(collect)
    try:
        x = [floats(size).fill_(i) for i, size in enumerate((0.5, 0.5, 0.6, 3, 0.5))]
        assert all((y == i).all() for i, y in enumerate(x))
        del x
        floats(0.5)
        memory.release()
        memory.statistics()
    finally:
        sys.settrace(before)
    assert _Cycle.ends == [True] * len(lines)
    assert set(lines) >= {"empty", "_lease", "_take_back", "_trim", "release", "statistics"}
    gc.collect()
    assert bytes_of("in use") == 0
    assert bytes_of("idle") <= limit


def in_child(function) -> None:
    """Run a function in a forked process, and see that it ends well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that the process has threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_nothing_is_shared():
    idle, x = [floats(1).fill_(1) for _ in range(3)], floats(1).fill_(2)
    del idle

    def child() -> None:
        assert bytes_of("idle") == 0
        assert bytes_of("in use") == MB
        assert (x == 2).all()
        x.fill_(3)
        more = [floats(1).fill_(4) for _ in range(5)]
        del more
        assert bytes_of("idle") == 5 * MB

    in_child(child)
    assert (x == 2).all()
    assert bytes_of("idle") == 3 * MB
    y = [floats(1) for _ in range(3)]
    assert all((z[1024:-1024] == 1).all() for z in y)


@pytest.mark.parametrize(
    "keep",
    [
        "x",
        "import builtins, sys; builtins.kept = sys.kept = torch.kept = memory.kept = x[2:]",
        "a = [x]; a.append(a)",
        "w = torch.ones(1000, 1000, requires_grad=True); y = (w * x).sum()",
        # It waits, with memory of its own: torch aborts a process whose end meets a daemon thread in an operation.
        "import threading; ready = threading.Event()\n"
        "def wait(): kept = memory.empty((1000, 1000), torch.float32); work(); ready.set(); time.sleep(100)\n"
        "threading.Thread(target=wait, daemon=True).start(); ready.wait()",
        "import atexit; atexit.register(lambda: memory.empty((1000, 1000), torch.float32))",
        "class A:\n  def __del__(self): memory.empty((1000, 1000), torch.float32)\na = A()",
    ],
    ids=["global", "modules", "cycle", "graph", "daemon thread", "atexit", "finalizer"],
)
def test_the_end_of_the_process_is_quiet(keep):
    program = (
        "import time\nmemory.INTERVAL = 0\n"
        "work = lambda: memory.empty((1000, 1000), torch.float32).fill_(1).sum() and None\nwork()\n"
        f"x = memory.empty((1000, 1000), torch.float32).fill_(1)\n{keep}\nprint('end')"
    )
    assert run(program) == "end\n"


SETTLING = """
import resource
import torch
from pellucid.timing import settled

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.empty(size).fill_(1) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults(2**19)
with settled():
    for size in (2**19, 6 * 2**20):
        faults(size)
        print(first, faults(size))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of the C library of Linux")
def test_freed_memory_is_kept_once_settled():
    """torch's own: blocks of 2 MiB, four at a time, are taken from the system and given back every time before.

    Those of 24 MiB are kept too, though they are more than what the C library keeps at the end of its memory.
    """
    done = fresh.run(SETTLING)
    assert not done.returncode, done.stderr
    for line in done.stdout.splitlines():
        first, settled = map(int, line.split())
        assert settled < 50
        assert first > 20 * settled + 1000


def test_nothing_is_written_to_the_room():
    """torch fills what it allocates when its algorithms are to be deterministic: half a gigabyte, at every choice."""
    done = fresh.run("""
import resource
import torch
from pellucid.timing import settled

torch.use_deterministic_algorithms(True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with settled():
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
""")
    assert not done.returncode, done.stderr
    assert int(done.stdout) < 1000
