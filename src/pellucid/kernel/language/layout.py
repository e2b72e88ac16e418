"""What a fused loop reads and writes, whatever language it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pellucid.errors import Unsupported
from pellucid.formula.program import Abstract, Program, Stage
from pellucid.kernel.language.lower import Lowered

STORAGE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class Layout:
    """What a caller of a loop must know."""

    name: str
    matrices: tuple[str, ...]  # of any strides
    inputs: tuple[str, ...]  # contiguous; (time · batch, width), or of one row
    states: tuple[str, ...]  # each a buffer of slots (batch, width), and how many slots there are
    state_storage: str
    outputs: Mapping[str, tuple[tuple[int, ...], str]]  # without the new states: axes after time and batch, storage
    totals: Mapping[str, Abstract]  # sums over all rows: (parts, width) of real numbers, added to what is there
    output_is_state: int | None  # the state that is the output too; its buffer may be NULL


@dataclass(frozen=True)
class Work:
    """What a loop is to compute: a stage at every step, with its states before and after.

    ``storage`` is the type of the states' memory, ``output`` the layer's output if the stage has it and leaves zeros in
    it where steps are not real. New states are outputs too where they are ``read`` behind the loop.
    """

    name: str
    stage: Stage
    states: tuple[str, ...]
    new_states: tuple[str, ...]
    storage: str
    output: str | None = None
    read: tuple[str, ...] = ()


def works(program: Program, dtype: torch.dtype, training: bool) -> list[Work]:
    """Return the loops of a program: "forward", and with ``training`` what it saves and "backward".

    An output that is saved is left as it was computed at every step.
    """
    wanted = (program.output, *program.new_states, *(program.saved_steps if training else ()))
    produced = tuple(name for name in dict.fromkeys(wanted) if name in program.step.outputs)
    step = program.step.only(produced)
    output = None if training and program.output_is_saved else program.output
    found = [Work("forward", step, program.states, program.new_states, STORAGE[dtype], output)]
    if training:
        states, new, read = program.state_gradients, program.old_state_gradients, program.after.inputs
        found.append(Work("backward", program.back_step, states, new, real_of(dtype), read=read))
    return found


def real_of(dtype: torch.dtype) -> str:
    """The type in which a loop computes."""
    return "float64" if dtype == torch.float64 else "float32"


def layout(work: Work, lowered: Lowered) -> Layout:
    """Lay out a loop whose stage has been lowered."""
    results, values = work.stage.results, lowered.outputs
    outputs = [n for n, v in values.items() if (n not in work.new_states or n in work.read) and v.kind != "total"]
    return Layout(
        name=work.name,
        matrices=tuple(lowered.matrices),
        inputs=tuple(n for n, v in lowered.inputs.items() if v.kind == "memory" and n not in work.states),
        states=work.states,
        state_storage=work.storage,
        outputs={
            n: (results[n].shape[1:] if results[n].rows else (values[n].width,), storage_name(results[n].dtype))
            for n in outputs
        },
        totals={n: results[n] for n, v in values.items() if v.kind == "total"},
        output_is_state=work.new_states.index(work.output) if work.output in work.new_states else None,
    )


def storage_name(dtype: torch.dtype) -> str:
    """How a type of torch is called in memory; Unsupported where no kernel reads it."""
    if dtype not in STORAGE:
        raise Unsupported(f"a value of {dtype}")
    return STORAGE[dtype]
