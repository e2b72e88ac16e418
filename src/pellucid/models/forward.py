"""What a module's forward does with the modules inside, as a graph that holds as long as what decided it stays.

The forward is run once on proxies, by a copy of the module that notes what it reads of it. No other module, and nothing
of torch, behaves differently meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import gc
import inspect
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from pellucid.errors import below
from pellucid.keeping import HELD, MISSING, RandomState
from pellucid.models.identity import Globals, hearing

HOLDERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
CONSTANT = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, enum.Enum, type)
NUMBERS = (bool, int, float, complex, str, bytes)  # and what is written as they are
RECORDER = "_pellucid_recorder"


class Untraceable(BaseException):
    """A forward is more than a graph; the message says why. No ``except Exception`` in that forward catches it."""


class Like(NamedTuple):
    """A tensor of a shape."""

    shape: torch.Size


@dataclass
class Forward:
    """A forward as a graph: its placeholders are the tensors among its arguments, in order.

    ``reads`` are what it read of the module and of those inside: path, name and value; ``inside`` the names and classes
    of modules, by the path of what holds them; ``outside`` global variables, and attributes of global classes and
    libraries: namespace, name and value.
    """

    graph: fx.Graph
    reads: dict[tuple[str, str], Any]
    inside: dict[str, tuple[tuple[str, type], ...]]
    outside: list[tuple[dict[str, Any], str, Any]] = dataclasses.field(default_factory=list)

    def holds(self, module: torch.nn.Module) -> bool:
        """Whether the module is still as it was."""
        for path, names in self.inside.items():
            if _inside(at(module, path)) != names:
                return False
        for (path, name), value in self.reads.items():
            if not _is_same(functools.reduce(_read, name.split("."), at(module, path)), value):
                return False
        for space, name, value in self.outside:
            first, *rest = name.split(".")
            if not _is_same(functools.reduce(_read, rest, space.get(first, MISSING)), value):
                return False
        return True


def trace(
    module: torch.nn.Module,
    forward: Callable[..., Any],
    args: Sequence[Any],
    named: Mapping[str, Any],
    training: bool | None = None,
) -> Forward:
    """Run ``forward`` on the arguments, of which those that are `Tensor` itself stand for a tensor each.

    Those that are `Like` stand for a tensor of that shape, which may decide the way. ``training`` is the mode that
    module and all inside are taken to be in; by default each in its own.

    Raises:
        Untraceable: its way depends on numbers in tensors or on chance, it changes the module, or does more than a
            graph says.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(torch._C._len_torch_function_stack()):  # a mode around it would see calls that nobody makes
            stack.enter_context(torch.overrides._pop_mode_temporarily())
        return _traced(_Recorder(module, training), forward, args, named)


def _traced(recorder: _Recorder, forward: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Forward:
    values = [recorder.placeholder(a) if a is Tensor or isinstance(a, Like) else a for a in args]
    options = {name: recorder.placeholder(a) if a is Tensor or isinstance(a, Like) else a for name, a in named.items()}
    chance = RandomState(recorder.module)
    try:
        with recorder.following_calls():
            result = forward(recorder.twin, *values, **options)
        recorder.graph.output(recorder.create_arg(result))
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(
            f"its forward is no fixed graph: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    finally:
        drawn = chance.moved()
        if drawn:
            chance.again()
    if drawn:
        raise Untraceable("its forward draws random numbers itself")
    module = recorder.module
    inside = dict(_structure(module, ""))
    for node in recorder.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            *names, _ = node.target.split(".")
            for count in range(len(names) + 1):
                path = ".".join(names[:count])
                inside[path] = _inside(at(module, path))
    return Forward(recorder.graph, recorder.reads, inside, recorder.outside)


class _Recorder(fx.proxy.GraphAppendingTracer):
    """Writes the graph, and what is read of the module."""

    def __init__(self, module: torch.nn.Module, training: bool | None) -> None:
        super().__init__(fx.Graph())
        self.module = module
        self.mode = {} if training is None else {"training": training}
        self.reads: dict[tuple[str, str], Any] = {}
        self.outside: list[tuple[dict[str, Any], str, Any]] = []
        self.around = _surroundings()
        self.calling: list[Any] = []  # functions of C that are being called
        self.twin = self.copy(module, "", {})

    def copy(self, module: torch.nn.Module, path: str, known: dict[torch.nn.Module, Any]) -> Any:
        """A copy of a module, and of those inside, which tells what is read of it."""
        if module in known:
            return known[module]
        try:
            kind: Any = type(module)
            twin = known[module] = object.__new__(_recorded(kind))
        except TypeError as error:
            raise Untraceable(f"{type(module).__name__} cannot be looked into") from error
        held = {
            "_modules": {
                name: None if child is None else self.copy(child, below(path, name), known)
                for name, child in module._modules.items()
            },
            "_parameters": _Live(self, path, module._parameters),
            "_buffers": _Live(self, path, module._buffers),
        }
        object.__getattribute__(twin, "__dict__").update({**vars(module), **held, **self.mode, RECORDER: (self, path)})
        return twin

    @contextlib.contextmanager
    def following_calls(self) -> Iterator[None]:
        """Know which functions of C are being called by this thread."""

        def follow(_: Any, event: str, argument: Any) -> None:
            if event == "c_call":
                self.calling.append(argument)
            elif event.startswith("c_") and self.calling:
                self.calling.pop()

        before: Any = sys.getprofile()
        written_in_c = not (before is None or callable(before))  # as cProfile's, which starts and stops by itself
        if written_in_c:
            before.disable()
        collects = gc.isenabled()
        gc.disable()  # what it calls, whoever wrote that, would be heard as a part of the forward
        sys.setprofile(follow)
        try:
            with hearing(self.hear, _is_silent, self.enter):
                yield
        finally:
            if collects:
                gc.enable()
            sys.setprofile(None if written_in_c else before)
            if written_in_c:
                before.enable()

    def enter(self, space: dict[str, Any], names: Globals) -> None:
        """A function begins, which reads and sets global variables."""
        if names.written:
            raise Untraceable(f"its forward sets {min(names.written)!r}, a global variable")
        own = space.get("__name__", "").split(".")[0] not in sys.stdlib_module_names  # of which Python's decide nothing
        for path in names.read if own else ():
            value = space.get(path[0], MISSING)
            if isinstance(value, torch.nn.Module):
                raise Untraceable(f"its forward reads {path[0]!r}, a global module, which may change unseen")
            count = 1
            while count < len(path) and (isinstance(value, type) or _is_library(value)):
                value, count = getattr(value, path[count], MISSING), count + 1
            name = ".".join(path[:count])
            if isinstance(value, Collection) and not isinstance(value, (*CONSTANT, tuple, frozenset, Tensor)):
                raise Untraceable(
                    f"its forward reads {name!r}, a global {type(value).__name__}, which may change unseen"
                )
            if isinstance(value, (*CONSTANT, tuple)) and not isinstance(value, type) and _is_constant(value):
                self.outside.append((space, name, value))

    def hear(self, what: str, value: Any) -> None:
        """Something is asked of an object, which the value that stands for it answers otherwise than itself."""
        kind = type(value)
        if issubclass(kind, fx.Proxy):
            told = what == "is None" and not _may_be_none(value.node)
            told = told or (what in ("is None", "callable", "hasattr") and issubclass(kind, _Given))
        elif RECORDER in getattr(value, "__dict__", ()):
            told = what != "type" and (
                not what.startswith("type.") or _has_every_heir(kind, what.removeprefix("type."))
            )
        else:
            told = True
        if not told:
            raise Untraceable(f"its forward asks what a value is, by {what}")

    def placeholder(self, like: Any) -> fx.Proxy:
        """A tensor of the caller's."""
        node = self.graph.placeholder(f"given_{len(self.graph.nodes)}")
        return _Shaped(node, self, like.shape) if isinstance(like, Like) else _Given(node, self)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The value of an operation."""
        return _Value(node, self)

    def create_node(self, *args: Any, **named: Any) -> fx.Node:
        """Write an operation, unless a context around it says more than the graph can."""
        if _surroundings() != self.around:
            raise Untraceable("its forward changes torch's modes on the way")
        return super().create_node(*args, **named)

    def create_arg(self, a: Any) -> Any:
        """Write an argument, or what the forward returns; of a class of its own only what is sure to be made again."""
        kind = type(a)
        if issubclass(kind, np.generic) and issubclass(kind, NUMBERS):
            return a.item()  # NumPy's float64 is a float, but is not written as one
        if issubclass(kind, NUMBERS) and kind not in NUMBERS and not issubclass(kind, enum.Enum):
            raise Untraceable(f"its forward hands a {kind.__name__} on")
        if (
            isinstance(a, (fx.Proxy, *CONSTANT))
            or kind in (tuple, list, dict, slice, range)
            or hasattr(kind, "_fields")
        ):
            return super().create_arg(a)
        if dataclasses.is_dataclass(a) and all(f.init for f in dataclasses.fields(a)):
            given = {f.name: self.create_arg(getattr(a, f.name)) for f in dataclasses.fields(a)}
            return self.create_node("call_function", kind, (), given)
        raise Untraceable(f"its forward hands a {kind.__name__} on")

    def call(self, path: str, args: tuple[Any, ...], named: dict[str, Any]) -> fx.Proxy:
        """A call of a module inside."""
        return self.create_proxy("call_module", path, args, named)

    def note(self, path: str, name: str, value: Any) -> Any:
        """Something was read that decides the way; of an object, what is read of it."""
        if _is_constant(value):
            self.reads[path, name] = value
            return value
        if isinstance(value, (Tensor, Collection)) or callable(value) or not hasattr(value, "__dict__"):
            raise Untraceable(f"its forward reads {name!r}, a {type(value).__name__}, which may change unseen")
        return _Seen(self, path, name, value)


class _Value(fx.Proxy):
    """A value on the way, of any type. What writes to it is told from what makes another one."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if _asked_by_torch(self):
            return type(self)
        raise Untraceable("its forward depends on the type of a value on the way")

    @classmethod
    def __torch_function__(cls, *call: Any) -> Any:
        """Write a call of torch's; as a proxy of any kind, which does not ask the others for their class."""
        return fx.Proxy.__torch_function__.__func__(fx.Proxy, *call)  # type: ignore[attr-defined]


def _asked_by_torch(value: Any) -> bool:
    """Whether a function of torch's wants to know the class of a value, which it would take for a tensor's memory."""
    calling = value.tracer.calling
    return bool(calling) and calling[-1] is not isinstance


def _in_place(name: str) -> Callable[..., fx.Proxy]:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(_Value, f"__i{_name}__", _in_place(f"i{_name}"))


class _Given(_Value):
    """A tensor that the forward was called with."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self) if _asked_by_torch(self) else Tensor

    def __getattr__(self, name: str) -> Any:
        if not hasattr(Tensor, name) and not name.startswith("__"):
            raise Untraceable(f"its forward reads {name!r} of a tensor, which not every tensor has")
        return super().__getattr__(name)


class _WithShape(_Given):
    """A tensor whose shape is known."""

    shape: torch.Size

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size along an axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    def numel(self) -> int:
        """The number of entries."""
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]


class _Shaped(_WithShape):
    """One that the forward was called with."""

    def __init__(self, node: fx.Node, tracer: _Recorder, shape: torch.Size) -> None:
        super().__init__(node, tracer)
        self.shape = shape


class _Parameter(_WithShape):
    """A parameter or buffer: what is asked of it but its numbers is noted."""

    def __init__(self, node: fx.Node, tracer: _Recorder, path: str, name: str, value: Tensor) -> None:
        super().__init__(node, tracer)
        self.known = path, name, value

    def _noted(self, what: str) -> Any:
        path, name, value = self.known
        return self.tracer.note(path, f"{name}.{what}", getattr(value, what))  # type: ignore[attr-defined]

    shape = property(lambda self: self._noted("shape"))
    dtype = property(lambda self: self._noted("dtype"))
    device = property(lambda self: self._noted("device"))


class _Seen:
    """An object that a module refers to, such as its configuration: attributes may be read."""

    def __init__(self, *what: Any) -> None:
        object.__setattr__(self, "_pellucid_seen", what)

    def __getattribute__(self, name: str) -> Any:
        recorder, path, own, value = object.__getattribute__(self, "_pellucid_seen")
        return recorder.note(path, f"{own}.{name}", getattr(value, name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise Untraceable(f"its forward sets {name!r} of what it refers to")


class _Live(dict[str, Any]):
    """Parameters or buffers, read when the graph runs."""

    def __init__(self, recorder: _Recorder, path: str, found: dict[str, Any]) -> None:
        super().__init__(found)
        self.recorder, self.path = recorder, path

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is None:
            self.recorder.note(self.path, name, None)
            return None
        self.recorder.note(self.path, f"{name}.__class__", type(value))  # not None, which decides the way
        node = self.recorder.create_node("get_attr", below(self.path, name), (), {})
        return _Parameter(node, self.recorder, self.path, name, value)

    def _gone_through(self, *_: Any) -> Any:
        raise Untraceable("its forward goes through its parameters or buffers, of which each may change")

    items = values = get = pop = __iter__ = _gone_through


@functools.cache
def _recorded(kind: Any) -> Any:
    """A class whose objects tell what is read of them, and that they were called."""

    def read(self: Any, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name == "__class__":
            return kind
        value = object.__getattribute__(self, name)
        if name == "__dict__" and not _is_silent(sys._getframe(1).f_globals.get("__name__", "")):
            raise Untraceable("its forward reads all of its attributes")
        if name.startswith("__") or name in (RECORDER, *HELD) or RECORDER not in own:
            return value
        recorder, path = own[RECORDER]
        fixed = inspect.getattr_static(kind, name, MISSING)
        method = isinstance(fixed, (property, staticmethod, classmethod)) or callable(fixed)
        if name in own or not method:
            return recorder.note(path, name, value)
        return value

    def read_held(self: Any, name: str) -> Any:
        try:
            return kind.__getattr__(self, name)
        except AttributeError:
            if RECORDER in (own := object.__getattribute__(self, "__dict__")):
                recorder, path = own[RECORDER]
                recorder.reads[path, name] = MISSING
            raise

    def write(self: Any, name: str, value: Any) -> None:
        raise Untraceable(f"its forward sets {name!r}")

    def call(self: Any, *args: Any, **named: Any) -> fx.Proxy:
        recorder, path = object.__getattribute__(self, "__dict__")[RECORDER]
        return recorder.call(path, args, named)

    methods = {"__getattribute__": read, "__getattr__": read_held, "__setattr__": write, "__call__": call}
    made: Any = type(kind.__name__, (kind,), methods)
    made._given_to_heirs = frozenset(name for name in vars(made) if name not in methods and not name.startswith("__"))
    for name in made._given_to_heirs:  # by __init_subclass__; of this class that of the module's own is asked
        delattr(made, name)
    return made


def _has_every_heir(kind: Any, name: str) -> bool:
    """Whether an attribute of a recorded class is the same of the module's own, and of the one that a fused module has.

    The forward is not, but where each heir is given one, so that who asks for it knows of heirs.
    """
    if name == "forward":
        return name in kind._given_to_heirs
    return name == "__name__" or (
        not name.startswith("__") and inspect.isroutine(inspect.getattr_static(kind, name, None))
    )


def _is_same(now: Any, value: Any) -> bool:
    return now is value or (type(now) is type(value) and now == value)


def _read(value: Any, name: str) -> Any:
    return getattr(value, name, MISSING)


def _is_library(value: Any) -> bool:
    """Whether a value is a module of Python's, but of torch's, whose names stay."""
    return isinstance(value, types.ModuleType) and value.__name__.split(".")[0] != "torch"


def _is_silent(name: str) -> bool:
    """Whether what the code of a module asks is no question of the forward's: it knows of values like these."""
    return name == __name__ or name.split(".")[0] == "torch"


def _may_be_none(node: fx.Node) -> bool:
    """Whether a value on the way may be None: what a module gave, a part of that, or an attribute."""
    if node.target is operator.getitem:
        return _may_be_none(node.args[0])  # type: ignore[arg-type]
    return node.op == "call_module" or node.target in (getattr, torch.nn.functional.multi_head_attention_forward)


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    if inspect.isfunction(value):
        return all(_is_constant(cell.cell_contents) for cell in value.__closure__ or ())
    return isinstance(value, CONSTANT) or (inspect.isroutine(value) and not _is_bound(value))


def _is_bound(routine: Any) -> bool:
    """Whether a routine belongs to an object, which it may read or change unseen."""
    return not isinstance(getattr(routine, "__self__", None), (type(None), type, types.ModuleType))


def modes() -> tuple[Any, ...]:
    """The modes of torch that decide what its operations do, and that a forward may ask for."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
    )


def _surroundings() -> tuple[Any, ...]:
    """All that a context manager may have set."""
    return (
        *modes(),
        torch._C._len_torch_function_stack(),
        is_saving_watched(),
    )


def is_saving_watched() -> bool:
    """Whether a hook sees all that is kept for a gradient, as a checkpoint's does, which counts it."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _structure(module: torch.nn.Module, path: str) -> Iterator[tuple[str, tuple[tuple[str, type], ...]]]:
    """The names and classes of the modules inside, and of those in lists of them."""
    yield path, _inside(module)
    for name, child in module._modules.items():
        if isinstance(child, HOLDERS):
            yield from _structure(child, below(path, name))


def _inside(module: Any) -> tuple[tuple[str, type], ...]:
    return () if module is MISSING else tuple([(name, type(child)) for name, child in module._modules.items()])


def at(module: Any, path: str) -> Any:
    """The module at a path; `MISSING` where there is none."""
    for name in path.split(".") if path else ():
        module = module._modules.get(name, MISSING) if module is not MISSING else module
    return module
