"""What the tests of the page share: headless Chromium, a page that may load nothing, and what it complains of."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pellucid.explanation.page import html
from pellucid.explanation.report import Report

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def chromium() -> str:
    """Where Chromium is; without it the test is skipped, unless PELLUCID_NEEDS_CHROMIUM is set, as in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "Chromium is not installed (Debian: apt-get install chromium fonts-noto-cjk)"
        if os.environ.get("PELLUCID_NEEDS_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def started() -> Any:
    """Start headless Chromium, which ends with this process."""
    sync = pytest.importorskip("playwright.sync_api")
    playwright = sync.sync_playwright().start()
    atexit.register(playwright.stop)
    return playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)


def write(report: Report, path: Path) -> Path:
    """Write a report's page into a file."""
    path.write_text(html(report), encoding="utf-8", errors="replace")
    return path


IDLE: dict[str, Any] = {}  # pages that show nothing, by their options: a new one takes longer than what is shown in it


@contextmanager
def opened(browser: Any, path: Path, hash: str = "", viewport: Any = WIDE, **options: Any) -> Iterator[Any]:
    """Open a page's file without a network; whatever it complains of, or asks to load, fails the test."""
    wanted = repr((viewport, options))
    page = IDLE.pop(wanted, None) or browser.new_context(viewport=viewport, offline=True, **options).new_page()
    complaints: list[str] = []
    listeners = {
        "console": lambda message: complaints.append(f"{message.type}: {message.text}"),
        "pageerror": lambda error: complaints.append(f"error: {error}"),
        "request": lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.goto(path.as_uri() + (f"#{hash}" if hash else ""))
    try:
        yield page
        assert complaints == []
    except BaseException:
        page.context.close()
        raise
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    page.goto("about:blank")  # so that the next file begins anew, even if it is the same one
    IDLE[wanted] = page


def complaints_of_axe(page: Any, *impacts: str) -> list[str]:
    """What axe finds that is hard to use for some people, of these impacts, or all of it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if not impacts or v["impact"] in impacts]


def table(page: Any, key: str) -> list[list[str]]:
    """Read the cells of a grid as they are written: rows of texts."""
    return page.eval_on_selector(
        f'[data-grid="{key}"]',
        """grid => [...grid.querySelectorAll("tr")].map(row => [...row.querySelectorAll("[data-at]")].map(
             cell => cell.querySelector("input")?.value ?? cell.textContent)).filter(row => row.length)""",
    )


def number(text: str) -> float:
    """Read a number that the page wrote."""
    return float(text.replace("−", "-").replace(",", ""))


def resolution(text: str) -> float:
    """Half of the last digit that a number was written with: how far the true one may lie from it."""
    digits, _, power = text.replace("−", "-").partition("e")
    decimals = len(digits.partition(".")[2])
    return 0.5 * 10.0 ** (int(power or 0) - decimals)


def agree(text: str, value: float) -> bool:
    """Whether what the page wrote is a value, to the digits shown."""
    return abs(number(text) - value) <= resolution(text) * 1.001 + 1e-9 * abs(value)


def same(texts: list[list[str]], values: Tensor) -> None:
    """Every number of a grid is the value at its place, to the digits shown."""
    rows = values.double().tolist()
    assert [len(row) for row in texts] == [len(row) for row in rows]
    for written, row in zip(texts, rows, strict=True):
        for text, value in zip(written, row, strict=True):
            assert (text == "nan" and value != value) or agree(text, value), (text, value)
