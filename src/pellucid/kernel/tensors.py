"""Which tensors a kernel may compute on as they are, and how torch differentiates where it has to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.language.layout import STORAGE

_PLAIN = {Tensor, torch.nn.Parameter}


def unseen(*values: Any) -> bool:
    """Whether tensors are plain ones on a CPU or GPU, and no compiler, transform or mode looks on."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
    ):
        return False
    for value in values:
        if type(value) in _PLAIN:
            # The memory of what is negated by a flag, as that of z.conj().imag, holds other numbers.
            lies = value.layout is torch.strided and (value.is_cpu or value.is_cuda)
            if not lies or value.is_neg():
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def in_plain_python(*values: Any) -> bool:
    """Whether tensors are plain ones on the CPU, and no compiler, transform or mode looks on: C may read and write."""
    return unseen(*values) and all(value.is_cpu for value in values if isinstance(value, Tensor))


def in_memory(*tensors: Tensor) -> bool:
    """Whether tensors have numbers in memory: those of a class that answers operations itself may have none."""
    kinds: set[Any] = {*map(type, tensors)}
    return kinds <= _PLAIN or all(kind.__torch_dispatch__ is Tensor.__torch_dispatch__ for kind in kinds)


def runs(*tensors: Tensor) -> bool:
    """Whether C can compute on tensors as they are: plain ones, on the CPU, and seen by no transform or compiler."""
    return language(*tensors) == "c"


def language(*tensors: Tensor) -> str | None:
    """In which language a kernel may compute on tensors as they are: "c" on the CPU, "triton" on a GPU.

    None where they are no plain ones on one device, or a transform or compiler looks on. On the CPU Triton runs in its
    interpreter, where it is asked for.
    """
    if not unseen(*tensors):  # before all else: a compiler cannot look into it
        return None
    wanted = chosen_backend()
    if wanted not in ("auto", "c", "triton"):
        return None
    device = tensors[0].device
    for t in tensors:
        if t.dtype not in STORAGE or t.numel() == 0 or t.device != device:
            return None
    return None if wanted == "c" and device.type != "cpu" else language_for(tensors[0])


def language_for(x: Tensor) -> str:
    """The language of a kernel that computes on a tensor."""
    return "c" if x.is_cpu and chosen_backend() != "triton" else "triton"


def torch_has_to(gradient: Tensor) -> bool:
    """Whether torch has to compute with a gradient: it is differentiated again, mapped, or a compiler looks on."""
    batched = torch._C._functorch.is_legacy_batchedtensor(gradient)
    return torch.is_grad_enabled() or batched or not unseen(gradient)


def differentiate(reference: Callable[..., Tensor], tensors: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of what torch computes of tensors, which may be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        given = [stand_in(t) for t in tensors]
        y = reference(*given)
    return torch.autograd.grad(y, given, gradient, create_graph=again)


def stand_in(tensor: Tensor) -> Tensor:
    """A tensor with the history of another, to be read in its place where a gradient is differentiated again.

    The gradient of what is computed of it ends there. That of the other one may come a further way, where one tensor
    that is read was computed from another: of a layer that is applied twice, the input from the weights.
    """
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
