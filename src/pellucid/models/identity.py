"""Where code asks which object a value is, or of which type: what a value that stands for another one cannot answer.

No operator can be overloaded for ``x is y`` and ``type(x)``. They are found in the instructions of a function, and
who runs it is told of the values in a question before it is answered; and of the global variables of every function.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

OF_OBJECTS = {"type", "id", "callable", "hasattr"}  # functions of Python's that tell what an object is


class Question(NamedTuple):
    """One that code asks.

    ``what`` is "is None" for whether a local variable is a constant such as that, "is" for any other identity, else the
    name of the function that is called, "type.forward" where that attribute of a type is all that is asked for;
    ``names`` are the local variables that it is asked of.
    """

    what: str
    names: frozenset[str]


class Globals(NamedTuple):
    """The global variables that a function reads, with the attributes that it reads of them, and those that it sets."""

    read: frozenset[tuple[str, ...]]
    written: frozenset[str]


class _Hearer(NamedTuple):
    """Whom `hearing` tells."""

    answered: Callable[[str, Any], None]
    silent: Callable[[str], bool]
    entered: Callable[[dict[str, Any], Globals], None]

    def begins(self, frame: FrameType) -> bool:
        """Tell of a function that begins; say whether it is to be listened to."""
        if self.silent(frame.f_globals.get("__name__", "")):
            return False
        self.entered(frame.f_globals, globals_of(frame.f_code))
        return bool(questions(frame.f_code))

    def asks(self, frame: FrameType, place: int) -> bool:
        """Tell of what the instruction at a place is about to ask; say whether it asks anything."""
        asked = questions(frame.f_code).get(place)
        if asked is None:
            return False
        known = frame.f_locals  # a view since Python 3.13, whose keys are no set
        for name in asked.names & {*known}:
            self.answered(asked.what, known[name])
        return True


def hearing(
    answered: Callable[[str, Any], None],
    silent: Callable[[str], bool],
    entered: Callable[[dict[str, Any], Globals], None],
) -> contextlib.AbstractContextManager[None]:
    """Call ``answered(what, value)`` for all that is asked by this thread, but in modules that are ``silent``.

    ``entered(namespace, globals)`` is called for every function that begins.
    """
    listen = _monitored if sys.version_info >= (3, 12) else _followed
    return listen(_Hearer(answered, silent, entered))


@contextlib.contextmanager
def _followed(hearer: _Hearer) -> Iterator[None]:
    def follow(frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if not hearer.begins(frame):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            hearer.asks(frame, frame.f_lasti)
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _monitored(hearer: _Hearer) -> Iterator[None]:
    """The same since Python 3.12, which does not tell a frame that begins of its own instructions."""
    monitoring: Any = vars(sys)["monitoring"]
    own = threading.get_ident()
    tool = next(number for number in range(5, -1, -1) if monitoring.get_tool(number) is None)

    def starts(_: CodeType, __: int) -> None:
        if threading.get_ident() == own:
            hearer.begins(sys._getframe(1))

    def is_met(_: CodeType, place: int) -> Any:
        if threading.get_ident() != own:
            return None
        frame = sys._getframe(1)
        heard = not hearer.silent(frame.f_globals.get("__name__", "")) and hearer.asks(frame, place)
        return None if heard else monitoring.DISABLE

    events = monitoring.events
    monitoring.use_tool_id(tool, "pellucid")
    try:
        monitoring.register_callback(tool, events.PY_START, starts)
        monitoring.register_callback(tool, events.INSTRUCTION, is_met)
        monitoring.restart_events()
        monitoring.set_events(tool, events.PY_START | events.INSTRUCTION)
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, events.PY_START, None)
        monitoring.register_callback(tool, events.INSTRUCTION, None)
        monitoring.free_tool_id(tool)


@functools.lru_cache(maxsize=1024)
def questions(code: CodeType) -> dict[int, Question]:
    """The questions of a function, by the place of the instruction that answers them."""
    instructions = list(dis.get_instructions(code))
    found = {}
    for place, instruction in enumerate(instructions):
        identity = instruction.opname == "IS_OP" or instruction.opname.endswith("_NONE")  # a jump
        if not identity and instruction.opname != "CALL":
            continue
        parts = [i for i in instructions[:place] if _is_within(i, instruction) and i.opname != "EXTENDED_ARG"]
        names = frozenset(name for part in parts for name in _locals(part))
        if identity:
            loads = [part for part in parts if part.opname != "LOAD_CONST"]
            found[instruction.offset] = Question("is None" if len(loads) == len(names) == 1 else "is", names)
        elif parts and parts[0].opname == "LOAD_GLOBAL" and parts[0].argval in OF_OBJECTS:
            behind = instructions[place + 1]
            attribute = parts[0].argval == "type" and _reads_attribute(behind)
            what = f"type.{behind.argval}" if attribute else parts[0].argval
            found[instruction.offset] = Question(what, names)
    return found


@functools.lru_cache(maxsize=1024)
def globals_of(code: CodeType) -> Globals:
    """The global variables of a function."""
    instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
    read = set()
    for place, instruction in enumerate(instructions):
        if instruction.opname == "LOAD_GLOBAL":
            behind = itertools.takewhile(_reads_attribute, instructions[place + 1 :])
            read.add((instruction.argval, *(i.argval for i in behind)))
    return Globals(frozenset(read), frozenset(i.argval for i in instructions if i.opname == "STORE_GLOBAL"))


def _reads_attribute(instruction: dis.Instruction) -> bool:
    return instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")


def _is_within(part: dis.Instruction, whole: dis.Instruction) -> bool:
    """Whether an instruction belongs to the expression of another one."""
    inner, outer = part.positions, whole.positions
    if inner is None or outer is None or None in inner or None in outer:
        return part.opname.startswith("LOAD_")  # as far as is known
    return (outer.lineno, outer.col_offset) <= (inner.lineno, inner.col_offset) and (
        inner.end_lineno,
        inner.end_col_offset,
    ) <= (outer.end_lineno, outer.end_col_offset)


def _locals(part: dis.Instruction) -> tuple[str, ...]:
    """The local variables that an instruction reads."""
    if not part.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return ()
    return part.argval if isinstance(part.argval, tuple) else (part.argval,)
