"""A report as JSON, and back.

The file holds ``{"pellucid": version, "report": {...}}``. Every part of the tree is an object of its fields, in the
names of `pellucid.explanation.report`, and of ``"kind"``, its class. Tuples are lists. A value's numbers are
``{"dtype": "float32", "shape": [2, 3], "numbers": [[...], [...]]}``, nested along their axes, each the shortest decimal
that gives the same number back in its dtype; ``shape`` is that of the numbers that are kept, the full shape stands
beside it in the value's own ``shape``. JSON knows no such numbers, so these are the strings "nan", "inf" and "-inf".
Fields that take no part in comparisons (``compare=False``) are not of the tree and stand in no file.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np

from pellucid.errors import kind_text
from pellucid.explanation import report as tree
from pellucid.explanation.model import tree as model_tree
from pellucid.explanation.model.tree import ModelReport
from pellucid.explanation.report import Report
from pellucid.version import __version__

KINDS = {
    name: kind
    for module in (tree, model_tree)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and is_dataclass(kind)
}


def dumps(report: Report | ModelReport) -> str:
    """Write a report as JSON."""
    content = {"pellucid": __version__, "report": _plain(report)}
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def load(path: str | Path) -> Any:
    """Read a `Report` or `ModelReport` that was saved as JSON: ``load("gru.json").save("gru.md")``.

    The layer itself is not in the file: what a page works out of it, other languages and pictures to play with, is
    missing from the page of such a report.

    Raises:
        ValueError: the file holds no report, or one of another version of pellucid that this one cannot read.
        OSError: the file cannot be read.
    """
    return loads(Path(path).expanduser().read_bytes(), str(path))


def loads(text: str | bytes, name: str = "the text") -> Any:
    """Read a report from JSON; ``name`` is what errors call it."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"load: {name} is not JSON ({error}); a report is saved by report.save('x.json')") from error
    if not isinstance(content, dict) or not {"pellucid", "report"} <= content.keys():
        raise ValueError(
            f"load: {name} holds no report, which would be {{'pellucid': version, 'report': {{...}}}}; "
            f"a report is saved by report.save('x.json')"
        )
    try:
        found = _read(content["report"], Report)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load: {name} was written by pellucid {content['pellucid']} and cannot be read by {__version__}: {error}; "
            f"save the report again with this version"
        ) from error
    if not isinstance(found, (Report, ModelReport)):
        raise ValueError(f"load: {name} holds {kind_text(found)}, not a report")
    return found


def _plain(value: Any) -> Any:
    """Turn a part of the tree into what JSON knows."""
    if is_dataclass(value):
        return {"kind": type(value).__name__} | {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "numbers": _numbers(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _numbers(array: np.ndarray) -> Any:
    if array.dtype.kind != "f":
        return array.tolist()
    shortest = array.astype(str).astype(np.float64)
    return _plain(shortest.tolist())


def _read(stored: Any, hint: Any) -> Any:
    """Build what a field of this type holds."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return tuple(
            _read(part, h) for part, h in zip(stored, repeat(inner[0]) if ... in inner else inner, strict=False)
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _read(part, inner[1]) for key, part in stored.items()}
    if isinstance(stored, dict):
        return _part(stored) if "kind" in stored else _array(stored)
    return float(stored) if hint is float else stored


def _array(stored: Mapping[str, Any]) -> np.ndarray:
    return np.array(stored["numbers"], dtype=object).astype(stored["dtype"]).reshape(stored["shape"])


def _part(stored: Mapping[str, Any]) -> Any:
    kind = KINDS.get(stored["kind"])
    if kind is None:
        raise ValueError(f"it has no part {stored['kind']!r}")
    known = _fields(kind)
    unknown = sorted(stored.keys() - known.keys() - {"kind"})
    missing = [name for name, f in known.items() if name not in stored and f.default is f.default_factory is MISSING]
    if unknown or missing:
        raise ValueError(f"its {stored['kind']} has other fields (unknown: {unknown}; missing: {missing})")
    hints = {name: eval(str(f.type), vars(sys.modules[kind.__module__])) for name, f in known.items()}
    return kind(**{name: _read(part, hints[name]) for name, part in stored.items() if name != "kind"})


def _fields(kind: type) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(kind) if f.compare}
