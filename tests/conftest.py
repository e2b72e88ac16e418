"""What all tests share: one thread for small tensors, patience with slow machines, fixtures of several files."""

from __future__ import annotations

import gc
import os
import tempfile
from html import escape
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
if "PELLUCID_CACHE" not in os.environ:  # what the tests compile stays out of the user's cache, and serves all workers
    _folder = tempfile.TemporaryDirectory(prefix="pellucid-kernels-")
    os.environ["PELLUCID_CACHE"] = _folder.name
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU, by numpy
# Most of what a kernel costs a test is the optimiser, at -O1 still a third more than at -Og; test_first_result.py runs
# what users get.
os.environ.setdefault("PELLUCID_CFLAGS", "-Og")
# CI repeats the same examples at every run; elsewhere every run tries new ones.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("patient"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Let the garbage collector look at what tests make alone, and not at torch and all tests again each time."""
    gc.disable()
    collected = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return collected


def pytest_runtest_setup(item):
    """A test of a GPU is left out where there is none, and one of Triton's interpreter where that does not run."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("interpreter") and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a GPU Triton compiles; these run in its interpreter")


def pytest_unconfigure():
    """Let it see everything again: nanobind tells of every object that outlives the interpreter."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def kernels_are_faster():
    """Let kernels run whatever is measured to be faster, and multiply what would be too small for them."""
    with pytest.MonkeyPatch.context() as patched:  # one of its own: a test may undo its patches
        for chooser in ("nn.recurrence.torch_recurrence", "kernel.small"):
            patched.setattr(f"pellucid.{chooser}.faster", lambda *_: False)
        patched.setattr("pellucid.kernel.recurrence.products.LEAST_PRODUCTS", 0)
        yield


@pytest.fixture
def few_samples(monkeypatch):
    """Let models be timed briefly when they are verified."""
    monkeypatch.setattr("pellucid.models.verification.TIMED_SECONDS", 0)
    monkeypatch.setattr("pellucid.models.verification.SAMPLES", 1)


@pytest.fixture
def small_benchmark(monkeypatch):
    """Let the benchmark measure the machine's limit on small matrices, and time briefly."""
    monkeypatch.setattr("pellucid.benchmark.limit.PRODUCT", 64)
    monkeypatch.setattr("pellucid.benchmark.limit.COPIED", 2**16)
    monkeypatch.setattr("pellucid.benchmark.comparison.TIMED_SECONDS", 0.0)
    monkeypatch.setattr("pellucid.benchmark.comparison.WARM_SECONDS", 0.0)


@pytest.fixture
def drawn(monkeypatch):
    """Let short stand-ins take the place of the page and the figures."""
    page = ModuleType("page")
    page.html = lambda report: f"<!doctype html><html><body><p>{escape(report.title)}</p></body></html>"
    figure = ModuleType("figure")
    figure.svg = lambda report: f'<svg xmlns="http://www.w3.org/2000/svg"><text>{escape(report.title)}</text></svg>'
    figure.thumbnail = figure.svg
    figure.png = lambda report: b"\x89PNG"
    figure.pdf = lambda report: b"%PDF-"
    for user in ("saving", "notebook"):
        for module in (page, figure):
            monkeypatch.setattr(f"pellucid.explanation.{user}.{module.__name__}", module)
    monkeypatch.setattr("pellucid.explanation.gallery.figure", figure)
    return SimpleNamespace(page=page, figure=figure)


class Ran(list):
    """The names of the kernels that ran since the last look."""

    def take(self) -> list[str]:
        found = list(self)
        self.clear()
        return found


@pytest.fixture
def ran(monkeypatch) -> Ran:
    """Let row programs take small inputs and those whose channels lie side by side, and note which ran."""
    from pellucid.kernel.rows import nested_c
    from pellucid.nn.dropout import dropout
    from pellucid.nn.normalization import normalization
    from pellucid.nn.normalization.batch_norm import BatchNormFamily
    from pellucid.nn.normalization.layer_norm import GroupNorm

    found, call = Ran(), nested_c.Kernel.run

    def noted(self, *args, **options):
        found.append(self.nest.name)
        return call(self, *args, **options)

    monkeypatch.setattr(nested_c.Kernel, "run", noted)
    monkeypatch.setattr(normalization, "SMALL", 0)
    monkeypatch.setattr(dropout, "FEW_COINS", 0)
    for family in (normalization.NormalizationFamily, BatchNormFamily, GroupNorm):
        monkeypatch.setattr(family, "_suits_operator", lambda self, x: False)
    return found


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, one for all tests of a process."""
    from pages import started

    return started()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
