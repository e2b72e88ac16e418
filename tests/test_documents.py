"""What people read: links lead somewhere, languages say the same figures, folders stand as they are said to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PAIRS = [path for path in DOCUMENTS if path.with_suffix(".zh-CN.md").exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_a_document_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_tables_have_the_same_figures_in_both_languages(path):
    def figures(name: str) -> list[list[str]]:
        lines = path.with_name(name).read_text(encoding="utf-8").splitlines()
        return [re.findall(r"\d[\d.]* ?(?:ms|µs|%|×)", line) for line in lines if line.startswith("|")]

    found = figures(path.name)
    assert found == figures(path.with_suffix(".zh-CN.md").name)
    assert any(found) == ("|" in path.read_text(encoding="utf-8"))


def test_documents_are_in_both_languages():
    assert {path.name for path in PAIRS} == {"README.md", "how-it-runs.md", "performance.md"}


def test_folders_import_only_what_stands_before_them():
    order = re.findall(r"^- `(\w+)/`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"formula", "kernel", "benchmark"} <= {*order}
    for place, folder in enumerate(order):
        for path in (ROOT / "src" / "pellucid" / folder).rglob("*.py"):
            found = re.findall(
                r"^ *from pellucid(?:\.(\w+)[\w.]*)? import (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
            )
            assert not {module or name for module, name in found} & {*order[place + 1 :]}, path
