"""The page's modules as one script: every module becomes a function that returns what it exports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources

IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.MULTILINE)


def asset(name: str) -> str:
    """Read a file of the page's, ``core/dom.js``."""
    return resources.files("pellucid.explanation.page").joinpath(*name.split("/")).read_text(encoding="utf-8")


def script(kinds: Iterable[str]) -> str:
    """Return the script of a page with exhibits of these kinds."""
    written: dict[str, str] = {}
    for kind in kinds:
        _add(f"{kind}/view.js", written)
    _add("core/main.js", written)
    return "const modules = {};\n" + "".join(written.values())


def style(kinds: Iterable[str]) -> str:
    """Return the style sheet of a page with exhibits of these kinds."""
    return "\n".join(asset(name) for name in ("core/style.css", *(f"{kind}/style.css" for kind in kinds)))


def _add(name: str, written: dict[str, str]) -> None:
    """Write a module after those that it imports."""
    if name in written:
        return
    text = asset(name)
    for _, path in IMPORT.findall(text):
        _add(_beside(name, path), written)

    def imported(match: re.Match[str]) -> str:
        names = match[1].replace(" as ", ": ")
        return f'const {{{names}}} = modules["{_beside(name, match[2])}"];\n'

    exports = ", ".join(EXPORT.findall(text))
    body = EXPORT.sub("", IMPORT.sub(imported, text))
    written[name] = f'modules["{name}"] = (() => {{\n{body}return {{ {exports} }};\n}})();\n'


def _beside(name: str, path: str) -> str:
    """Return the module that ``path`` means in a module, ``../core/dom.js`` in ``dropout/view.js``."""
    place = name.split("/")[:-1]
    for part in path.split("/"):
        if part == "..":
            place.pop()
        elif part != ".":
            place.append(part)
    return "/".join(place)
