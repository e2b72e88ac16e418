"""Memory for what kernels write on the CPU, reused from call to call.

A buffer fresh from the allocator costs a page fault for every 4 KiB, which takes longer than the arithmetic that
fills it, and a training step wants the same sizes as the step before. So a large tensor's memory comes from a pool,
to which it returns when the tensor's storage dies (the tensor, its views, whatever autograd saved). Measured on two
cores with 4 KiB pages, filling 50 MB of float32 with one thread: 19 ms in ``torch.empty``, 5 ms in a pool's new block
(huge pages), 1.6 ms in a used one; :func:`empty` and the return together take 5 µs, ``torch.empty`` 2 µs.

- A block is an anonymous private mapping, which :mod:`mmap` gives back to the system when it is dropped. What lies in
  whole 2 MiB pages asks for huge ones: fewer faults, and the processor finds its addresses faster.
- Tensors start at 64 places in turn within a page. Buffers that all start at the same place compete for the same few
  lines of the first cache: a loop over 14 of them took 3 times as long (50 ms, 16 ms when staggered), over 10 of them
  1.4 times.
- Idle memory has a limit: 2 GiB, or an eighth of the machine's (the container's) memory if that is less;
  ``PELLUCID_BUFFER_LIMIT`` in bytes, or :func:`set_limit`. 0 switches the pool off. What has been idle the longest goes
  first. Nor may more be idle than the system has available for everybody, looked up at most once a second.
  ``MADV_FREE``, by which the system could take idle pages whenever it needs them, is not used: while another thread
  of the process runs it costs a tenth of the time to fill the block, at every return, and with 4 KiB pages more than
  the filling. A process that computes no more keeps its idle memory until :func:`release`.
- Nothing takes a lock: a finalizer may run anywhere, in the middle of these functions too. Whoever has popped a block
  from its deque owns it, and the idle bytes are counted anew instead of being kept in a sum.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import mmap
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import PellucidWarning

ALIGNMENT = 64  # bytes; where vectors are stored
THRESHOLD = 256 * 2**10  # bytes; smaller tensors are left to torch
HUGE_PAGE = 2 * 2**20  # bytes
STAGGER = 4096  # bytes; the places at which tensors start lie within so many
STEP = 576  # bytes from one tensor's place to the next one's: an odd number of cache lines, so that all have their turn
MOST_KEPT = 2**22  # bytes of a Python thread that wait for its next call
MOST_IDLE = 2 * 2**30  # bytes
UNKNOWN_MEMORY = 8 * 2**30  # bytes; where the system does not say how much it has
INTERVAL = 1.0  # seconds between two looks at the available memory
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows: neither

_blocks: dict[int, int] = {}  # the bytes of every block there is
_idle: dict[int, deque[_Block]] = {}  # by capacity; the longest idle first
_starts = itertools.count(step=STEP)
_reuses = 0
_kept = threading.local()
_poison = False
_looked = -math.inf


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a contiguous CPU tensor whose elements are not initialised.

    It is an ordinary tensor, except that its storage refuses to grow: ``resize_`` and ``out=`` raise RuntimeError where
    they would need more memory. With ``torch.use_deterministic_algorithms`` it is filled as ``torch.empty`` is.

    Args:
        shape: the size of every axis.
        dtype: any but the quantized ones.

    Raises:
        RuntimeError: a negative size, or more memory than there is; torch's own error.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    lease = _lease(size) if size >= THRESHOLD and _limit else None
    if lease is None:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        fill = _poison
    else:
        # resize_ gives the shape in place: view would return a tensor that autograd takes for a view.
        tensor = torch.frombuffer(lease, dtype=dtype, count=count).resize_(shape)
        fill = _poison or _must_fill()
    return tensor.fill_(_conspicuous(dtype)) if fill else tensor


def allocate(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, strides: Sequence[int] | None = None
) -> Tensor:
    """Return memory for what a kernel writes, on any device.

    ``strides`` are those of a tensor without gaps whose axes are in another order.
    """
    tensor = empty(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)
    return tensor if strides is None or tensor.stride() == strides else tensor.as_strided_(shape, strides)


def scratch(size: int) -> Tensor:
    """Memory for a kernel to work in, with room to be `aligned`; every Python thread keeps what is not much."""
    size += ALIGNMENT
    if size > MOST_KEPT:
        return empty((size,), torch.uint8)
    work = getattr(_kept, "work", None)
    if work is None or work.numel() < size:
        with torch.inference_mode(False):  # it outlives the mode of this call
            work = _kept.work = torch.empty((size,), dtype=torch.uint8, device="cpu")
    return work.fill_(_conspicuous(work.dtype)) if _poison else work


def aligned(tensor: Tensor) -> int:
    """The first address in a tensor's memory at which vectors are stored; it needs up to `ALIGNMENT` bytes for that."""
    return -(-tensor.data_ptr() // ALIGNMENT) * ALIGNMENT


def release() -> int:
    """Give all idle memory back to the system; return its bytes."""
    released = 0
    for blocks in list(_idle.values()):
        with contextlib.suppress(IndexError):
            while True:
                released += blocks.popleft().capacity
    return released


def set_limit(size: int) -> None:
    """Let at most so many bytes be idle, from now on and in all threads; 0 switches the pool off.

    Raises:
        ValueError: a negative number.
    """
    global _limit
    if size < 0:
        raise ValueError(f"the limit of idle memory is {size} bytes, but a number from 0 is expected; 0 is no pool")
    _limit = size
    _trim()


def statistics() -> dict[str, int]:
    """Return the bytes "in use" and "idle", the "limit" of the idle ones, and the number of "reuses".

    While other threads use the pool the figures are approximate.
    """
    idle = _idle_bytes()
    used = max(0, sum(list(_blocks.values())) - idle)
    return {"in use": used, "idle": idle, "limit": _limit, "reuses": _reuses}


@contextlib.contextmanager
def poison() -> Iterator[None]:
    """Fill every new tensor, in all threads, with NaN (the largest integer, True): what a kernel leaves out shows."""
    global _poison
    before, _poison = _poison, True
    try:
        yield
    finally:
        _poison = before


# -- blocks ------------------------------------------------------------------------------------------------------


class _Block(mmap.mmap):
    """Memory for one tensor at a time."""

    capacity: int  # bytes
    start: int  # where the capacity begins
    since: float  # the time at which it became idle, in seconds

    def __new__(cls, capacity: int) -> _Block:
        huge = capacity // HUGE_PAGE * HUGE_PAGE
        # The address space that aligns to a huge page is never touched, and so costs no memory.
        block = super().__new__(cls, -1, capacity + STAGGER + (HUGE_PAGE if huge else 0), **PRIVATE)
        block.capacity, block.start = capacity, 0
        if huge:
            block.start = -torch.frombuffer(block, dtype=torch.uint8).data_ptr() % HUGE_PAGE
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a system built without them
                    block.madvise(mmap.MADV_HUGEPAGE, block.start, huge)
        _blocks[id(block)] = capacity
        return block

    def __del__(self, blocks: dict[int, int] = _blocks) -> None:
        blocks.pop(id(self), None)


class _Lease(np.ndarray):
    """The bytes of one tensor in a block. torch keeps it as long as the storage; its end returns the block."""

    __slots__ = ()

    def __del__(self) -> None:
        _take_back(self.base)  # type: ignore[arg-type]  # the block that it was made over


# At exit modules fall apart before the last tensors do; the memory goes with the process.
atexit.register(delattr, _Lease, "__del__")
atexit.register(globals().__setitem__, "_looked", math.inf)  # nor is there an open() to look with


def _lease(size: int) -> _Lease | None:
    """Lend ``size`` bytes, None where the system has no such memory."""
    global _reuses
    step = 1 << (size - 1).bit_length() - 4  # an eighth of the power of two below
    capacity = -(-size // step) * step
    blocks = _idle.get(capacity)
    if blocks is None:
        blocks = _idle.setdefault(capacity, deque())
    try:
        block = blocks.pop()  # the last used, of which the caches may still hold something
        _reuses += 1
    except IndexError:
        _trim()
        try:
            block = _Block(capacity)
        except (OSError, OverflowError, MemoryError):
            release()
            try:
                block = _Block(capacity)
            except (OSError, OverflowError, MemoryError):
                return None
    return _Lease((size,), np.uint8, block, block.start + next(_starts) % STAGGER)


def _take_back(block: _Block) -> None:
    if block.capacity <= _limit:
        block.since = time.monotonic()
        _idle[block.capacity].append(block)
        _trim()


def _trim() -> None:
    """Drop what has been idle the longest until the rest is allowed."""
    global _looked
    limit: float = _limit
    if time.monotonic() >= _looked + INTERVAL:
        _looked = time.monotonic()
        limit = min(limit, _available_memory())
    while _idle_bytes() > limit:
        oldest, since = None, math.inf
        for blocks in list(_idle.values()):
            with contextlib.suppress(IndexError):  # empty, perhaps only now
                if blocks[0].since < since:
                    oldest, since = blocks, blocks[0].since
        if oldest is not None:
            with contextlib.suppress(IndexError):
                oldest.popleft()


def _idle_bytes() -> int:
    return sum([capacity * len(blocks) for capacity, blocks in list(_idle.items())])


def _must_fill() -> bool:
    return torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def _conspicuous(dtype: torch.dtype) -> float:
    """The value that torch, too, chooses for memory that must not stay uninitialised."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


# -- the system --------------------------------------------------------------------------------------------------


def _available_memory() -> float:
    """The bytes that new work could have without harm to others; infinity where the system does not say."""
    try:
        with open("/proc/meminfo", "rb", buffering=0) as file:
            found = re.search(rb"MemAvailable:\s*(\d+) kB", file.read(4096))
    except OSError:
        return math.inf
    return int(found[1]) * 1024 if found else math.inf


def _physical_memory() -> int:
    """The bytes of the machine's memory, or of the container's if they are fewer."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CONTAINER:
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:  # "max" is no number: no limit
            sizes.append(int(file.read()))
    return min(sizes, default=UNKNOWN_MEMORY)


def _default_limit() -> int:
    given = os.environ.get("PELLUCID_BUFFER_LIMIT")
    if given is not None:
        if given.isdecimal():
            return int(given)
        warnings.warn(
            f"PELLUCID_BUFFER_LIMIT={given!r} is not a number of bytes and is ignored; unset it or correct it",
            PellucidWarning,
            stacklevel=2,
        )
    return min(MOST_IDLE, _physical_memory() // 8)


_limit = _default_limit()
if hasattr(os, "register_at_fork"):
    # What the child keeps, the parent must copy page by page before it writes there.
    os.register_at_fork(after_in_child=release)
