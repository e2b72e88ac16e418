"""Runs a model under changed conditions and keeps what its layers read and returned; the model stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pellucid.errors import naming_layer
from pellucid.keeping import Inputs, copied, layer_by_layer, left_alone, seed_all
from pellucid.models.selection import places
from pellucid.models.structures import tensors

Mode = Literal["eval", "train", "norms"]  # the last one: eval, but batch norms average the batch
Replaced = Mapping[torch.nn.Module, Callable[[Any], Any]]


@dataclass(eq=False)
class Call:
    """A call of a layer: its place, what it was given, the tensors that it read and returned, whether in training."""

    layer: torch.nn.Module
    path: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    read: list[Tensor]
    training: bool
    given: list[Tensor] = field(default_factory=list)
    gives: list[bool] = field(default_factory=list)  # for each returned tensor, whether a gradient can pass


@dataclass(eq=False)
class Operation:
    """A call of one of torch's functions, and the layer in whose code it stands."""

    function: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    layer: torch.nn.Module
    path: str
    after: Call | None  # the call of a layer that ended last before


@dataclass(eq=False)
class Run:
    """What a run gave.

    Attributes:
        result: what the model returned.
        outputs: the tensors in it.
        begun: the calls of layers in the order in which they began.
        calls: those that ended, in that order, so those inside stand before the one around them.
        operations: of those functions that were asked for.
    """

    result: Any = None
    outputs: list[Tensor] = field(default_factory=list)
    begun: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    error: Exception | None = None


class Trial:
    """A model and its inputs."""

    def __init__(self, model: torch.nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.model = model
        self.inputs: Inputs = (tuple(args), dict(options))
        self.grad = False  # whether every run has gradients, for a forward that takes some itself
        self.paths = {layer: found[0] for layer, found in places(model).items()}

    def run(
        self,
        mode: Mode = "eval",
        *,
        inputs: Inputs | None = None,
        seed: int = 0,
        grad: bool = False,
        record: bool = False,
        values: bool = True,
        functions: frozenset[Any] = frozenset(),
        replaced: Replaced | None = None,
        weights: Mapping[str, Tensor] | None = None,
        then: Callable[[Run], None] | None = None,
        suppress: bool = False,
    ) -> Run:
        """Run the model.

        Args:
            mode: train leaves a model that is in training as it is, some layers of which may be in eval.
            inputs: other inputs than the model's own.
            seed: what is drawn inside.
            grad: with gradients.
            record: keep what every layer read and returned,
            values: with its numbers; else on the meta device.
            functions: whose calls to keep.
            replaced: what to make of the result of layers.
            weights: other weights, by name.
            then: what to do before the model is set back, a backward pass say.
            suppress: return an error of the model instead of raising it.
        """
        run = Run()
        with (
            left_alone(self.model),
            layer_by_layer(),
            torch.set_grad_enabled(grad or self.grad),
            contextlib.ExitStack() as stack,
        ):
            self._set(mode)
            seed_all(seed)
            recorder = _Recorder(self, run, values, functions)
            for layer in self.paths if record or functions else ():
                stack.callback(layer.register_forward_pre_hook(recorder.enter, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(recorder.leave, with_kwargs=True).remove)
            for layer, change in (replaced or {}).items():
                stack.callback(layer.register_forward_hook(_changing(change)).remove)
            if functions:
                stack.enter_context(recorder)
            try:
                args, options = copied(self.inputs if inputs is None else inputs)
                with naming_layer(self.model, "check"):
                    if weights:
                        run.result = torch.func.functional_call(self.model, dict(weights), args, options)
                    else:
                        run.result = self.model(*args, **options)
                run.outputs = [y.detach() for y in tensors(run.result)]
            except Exception as error:
                if not suppress:
                    raise
                run.error = error
            if then is not None and run.error is None:
                then(run)
        return run

    def _set(self, mode: Mode) -> None:
        if mode != "train":
            self.model.eval()
        elif not self.model.training:
            self.model.train()
        for layer in self.paths if mode == "norms" else ():
            if isinstance(layer, _BatchNorm):
                layer.training = True


class _Recorder(TorchFunctionMode):
    """Notes the calls of layers, by hooks, and of functions."""

    def __init__(self, trial: Trial, run: Run, values: bool, functions: frozenset[Any]) -> None:
        super().__init__()
        self.paths, self.made, self.values, self.functions = trial.paths, run, values, functions
        self.stack: list[Call] = []
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def enter(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A layer is called."""
        with torch._C.DisableTorchFunction():
            read = list(tensors((args, options)))
            call = Call(layer, self.paths[layer], args, options, self.keep(read), layer.training)
        self.stack.append(call)
        self.made.begun.append(call)

    def leave(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """A layer has returned."""
        while self.stack[-1].layer is not layer:  # left there by an exception that the model caught
            self.stack.pop()
        call = self.stack.pop()
        with torch._C.DisableTorchFunction():
            given = list(tensors(result))
            call.given, call.gives = self.keep(given), [t.requires_grad for t in given]
        self.made.calls.append(call)

    def keep(self, found: list[Tensor]) -> list[Tensor]:
        """Copy tensors, which the model may write into later; what has not changed since the last time only once."""
        if not self.values:
            return [torch.empty_like(t, device="meta", requires_grad=False) for t in found]
        for t in found:
            key = id(t), t._version
            if key not in self.kept:
                self.kept[key] = t, t.detach().clone()
        return [self.kept[id(t), t._version][1] for t in found]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted = function in self.functions and self.stack
        result = function(*args, **(kwargs or {}))
        if wanted:
            here = self.stack[-1]
            after = self.made.calls[-1] if self.made.calls else None
            value = self.keep([result])[0] if isinstance(result, Tensor) else result
            self.made.operations.append(Operation(function, args, kwargs or {}, value, here.layer, here.path, after))
        return result


def _changing(change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda layer, args, result: change(result)


def floating(found: list[Tensor]) -> list[Tensor]:
    """Return those that can have a gradient."""
    return [t for t in found if t.is_floating_point() or t.is_complex()]
