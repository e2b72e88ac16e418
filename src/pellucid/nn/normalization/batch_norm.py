"""Batch normalization: averages over all axes but the channels, remembered for eval, of one process or several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pellucid.errors import label, shape_text
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.largest import most_deviations
from pellucid.kernel.tensors import unseen
from pellucid.nn.axes import space_axes
from pellucid.nn.component import SymbolShape
from pellucid.nn.lengths import known_any
from pellucid.nn.normalization.averages import Average, Over, Remembered, Synchronized
from pellucid.nn.normalization.by_torch import FAR, is_far, lies_as_picture
from pellucid.nn.normalization.formula import ALONE, Company
from pellucid.nn.normalization.normalization import SMALL, ChannelFirst, wrong_channels

_chosen: dict[Any, bool] = {}


class Remembering(ChannelFirst):
    """A member that may keep running statistics, and take them for the averages in eval."""

    num_features: int
    momentum: float | None
    affine: bool
    training: bool
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def average(self, x: Tensor, real: Tensor | None = None) -> Average:
        """Average the batch, or take what earlier batches left."""
        kept = [self._spread(value, x) for value in self._remembered(x).values()]
        return Remembered(x, *kept) if kept else self._batch_average(x, real)

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the shapes of γ, β and the running statistics; given an input, those of its averages too."""
        shapes = super().symbols(*inputs)
        for name, buffer in (("running_mean", self.running_mean), ("running_var", self.running_var)):
            if buffer is not None:
                shapes.append(SymbolShape(name, tuple(buffer.shape), ("channels",), f"norm.{name}", False))
        return shapes

    def _observes(self) -> bool:
        return self.training and self.track_running_stats

    def _remembered(self, x: Tensor) -> dict[str, Tensor]:
        return {} if self._reads_batch() else dict(zip(("running_mean", "running_var"), self._running(), strict=True))

    def _running(self) -> tuple[Tensor, Tensor]:
        """What earlier batches left."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            missing = "running_mean" if mean is None else "running_var"
            raise RuntimeError(
                f"{label(self)}: in eval, {missing} must be defined, but it is None. Call train(), or make the layer "
                "with track_running_stats=False if the statistics of each batch are meant."
            )
        return mean, var

    def _mixed(self, x: Tensor) -> tuple[int, ...]:
        return self._average_over(x) if self._reads_batch() else ()

    def _reads_batch(self) -> bool:
        raise NotImplementedError

    def _batch_average(self, x: Tensor, real: Tensor | None) -> Over:
        return Over(self._average_over(x), real)

    def _update(self, running: Tensor | None, value: Tensor, seen: Tensor, factor: float | Tensor) -> None:
        """Move a running statistic towards a batch's, (channels,), where the batch has ``seen`` one."""
        if running is not None:
            with _unnoticed(running):  # detached: torch.export cannot write `torch.no_grad` around a write into a file
                running.add_(torch.where(seen, (value.detach().to(running.dtype) - running) * factor, 0))


def _unnoticed(running: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Let autograd not notice that a running statistic is written to, as with torch's operator.

    That keeps the statistics for its gradient, which in training does not read them: a layer that is applied once more
    would take it for a mistake.
    """
    if not unseen(running) or running.is_inference():
        return contextlib.nullcontext()
    return torch.autograd._unsafe_preserve_version_counter(running)


class BatchNormFamily(Remembering):
    """What BatchNorm1d, 2d, 3d and SyncBatchNorm share.

    Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate
    shift", ICML 2015. In training the mean and the biased variance of the batch normalize; running averages (of the
    unbiased variance) are kept for eval. With lengths or a mask all counts are those of the real entries.

    Arguments, parameters and buffers: those of torch.nn's layer of the same name.

    Raises:
        ValueError: the input has a wrong number of axes, or one value per channel in training.
        RuntimeError: another number of channels than ``num_features``.
    """

    cast_by_autocast = False
    spaces: tuple[int, ...]  # how many axes of space there may be

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        names = space_axes(x.ndim)
        if x.ndim - 2 not in self.spaces:
            raise self._misfit(x, self._wanted(), _cure(x, self.spaces), ValueError)
        if self._reads_batch() and math.prod((x.shape[0], *x.shape[2:])) == 1 and not self._is_synchronized():
            raise ValueError(
                f"{label(self)}: Expected more than 1 value per channel when training, but the input has the shape "
                f"{shape_text(x.shape, names)}. Use a larger batch, or call eval()."
            )
        if self.training and self.eps <= 0:
            raise ValueError(f"{label(self)}: in training eps must be positive, but it is {self.eps}.")
        stored = self.weight if self.weight is not None else self.running_mean
        if stored is not None and x.shape[1] != len(stored):
            raise self._misfit(x, self._wanted(), wrong_channels(x, self.num_features), RuntimeError, names)
        return names

    def _wanted(self) -> str:
        names = [("batch", f"channels {self.num_features}", *space_axes(count + 2)[2:]) for count in self.spaces]
        return " or ".join(f"({', '.join(axes)})" for axes in names)

    def _typed(self) -> Tensor | None:
        return self.running_mean if self.weight is None else super()._typed()

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return (0, *range(2, x.ndim))

    def _reads_batch(self) -> bool:
        return self.training or (self.running_mean is None and self.running_var is None)

    def _is_synchronized(self) -> bool:
        return False

    def _remember(self, average: Any, x: Tensor, mu: Tensor, var: Tensor) -> None:
        if not self.training:
            return
        whole = type(average) is Over and average.real is None  # then the count is known, and more than 1
        count = average.count(x) if not whole else None
        if count is not None and known_any(count == 1):
            raise ValueError(
                f"{label(self)}: Expected more than 1 value per channel when training, but only one entry of "
                f"{shape_text(x.shape, space_axes(x.ndim))} is real. Use a larger batch, or call eval()."
            )
        if not self.track_running_stats:
            return
        factor = self._count_batch()
        if count is None:
            entries = x.numel() // x.shape[1]
            self._move(mu, var, factor, entries / (entries - 1))
            return
        unbiased = unbiased_of(var, count)
        seen = (count > 1).flatten()
        self._update(self.running_mean, mu.flatten(), seen, factor)
        self._update(self.running_var, unbiased.flatten(), seen, factor)

    def _count_batch(self) -> float | Tensor:
        """Count one batch more; return how far the running statistics move towards its own."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 1.0 if self.num_batches_tracked is None else 1.0 / self.num_batches_tracked.double()  # of all batches

    def _suits_operator(self, x: Tensor) -> bool:
        if super()._suits_operator(x):
            return True
        alone = not x.is_cuda and self._reads_batch() and not self._is_synchronized()
        return x.stride(1) == 1 and not (alone and self._kernel_is_faster(x))

    def _kernel_is_faster(self, x: Tensor) -> bool:
        """Whether the kernel is faster than torch's operator where channels lie side by side, as was measured once."""
        candidates = {"x": x, "weight": self.weight, "bias": self.bias}
        tensors = {name: t for name, t in candidates.items() if t is not None}
        wanted = tuple(name for name, t in tensors.items() if t.requires_grad and torch.is_grad_enabled())
        key = (self._observes(), x.shape, x.dtype, tuple(tensors), wanted, torch.get_num_threads())
        return remembered(_chosen, key, lambda: self._measured(x.detach(), wanted))

    def _measured(self, x: Tensor, wanted: Sequence[str]) -> bool:
        text = self.kernel_with(x, ALONE)
        if text is None:
            return False
        x = (x.unsqueeze(2) if lies_as_picture(x) else x).clone().requires_grad_("x" in wanted)

        def usual() -> Tensor:
            return torch.native_batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)[0]

        def kernel() -> Tensor:
            results = self._results(x, None, self._observes())
            return usual() if results is None else results[0]

        leaves = [t for t in (x, *self.parameters()) if t.requires_grad] if wanted else []
        gradients = f"gradients of {', '.join(wanted)}" if wanted else "no gradient"
        question = f"BatchNorm {str(x.dtype)[6:]} {rounded(x.shape)} channels last, {gradients}"
        return faster(question, text, usual, kernel, leaves)

    def _by_operator(self, input: Tensor) -> Tensor | None:
        if self._is_synchronized():
            return None
        if lies_as_picture(input):
            y = self._by_operator(input.unsqueeze(2))
            return None if y is None else y.squeeze(2)
        if not self._reads_batch():
            return self._by_running(input)
        running: tuple[Tensor | None, Tensor | None] = (None, None)
        factor = 0.0
        if self._observes():
            running, factor = (self.running_mean, self.running_var), float(self._count_batch())
        y, mean, rstd = torch.native_batch_norm(input, self.weight, self.bias, *running, True, factor, self.eps)
        if not is_far(mean, rstd):
            return y
        results = self._results(input, None, observed=False)  # its statistics were right, and have been remembered
        if results is None:
            return y
        self._was_run_by("c")
        return results[0]

    def _by_running(self, input: Tensor) -> Tensor | None:
        """Run torch's operator with what earlier batches left; None where a kernel is as fast, or more exact."""
        mean, var = self._running()
        if input.numel() >= SMALL or not most_deviations(mean, var, self.eps) < FAR:
            return None
        return torch.batch_norm(input, self.weight, self.bias, mean, var, False, 0.0, self.eps, False)

    def _move(self, mu: Tensor, var: Tensor, factor: float | Tensor, unbiased: float) -> None:
        """Move both running statistics towards those of a batch without padding."""
        with torch.no_grad():
            if self.running_mean is not None:
                dtype = self.running_mean.dtype
                weight = factor.to(dtype) if isinstance(factor, Tensor) else factor
                with _unnoticed(self.running_mean):
                    self.running_mean.lerp_(mu.flatten().to(dtype), weight)
            if self.running_var is not None:
                seen = var.flatten().to(self.running_var.dtype)
                with _unnoticed(self.running_var):
                    self.running_var.mul_(1 - factor)
                    if isinstance(factor, Tensor):
                        self.running_var.add_(seen * factor.to(seen.dtype), alpha=unbiased)
                    else:
                        self.running_var.add_(seen, alpha=factor * unbiased)


class BatchNorm1d(BatchNormFamily, torch.nn.BatchNorm1d):
    """Normalize each channel over the batch. Input and output: (batch, channels) or (batch, channels, length).

    Arguments: those of ``torch.nn.BatchNorm1d``; ``lengths`` count along the last axis. See `BatchNormFamily`.
    """

    spaces = (0, 1)


class BatchNorm2d(BatchNormFamily, torch.nn.BatchNorm2d):
    """Normalize each channel over batch and space. Input and output: (batch, channels, height, width).

    Arguments: those of ``torch.nn.BatchNorm2d``; ``mask`` is (batch, height, width). See `BatchNormFamily`.
    """

    spaces = (2,)


class BatchNorm3d(BatchNormFamily, torch.nn.BatchNorm3d):
    """Normalize each channel over batch and space. Input and output: (batch, channels, depth, height, width).

    Arguments: those of ``torch.nn.BatchNorm3d``; ``mask`` is (batch, depth, height, width). See `BatchNormFamily`.
    """

    spaces = (3,)


class SyncBatchNorm(BatchNormFamily, torch.nn.SyncBatchNorm):
    """Normalize each channel over the batches of all processes. Input and output: (batch, channels, *space).

    Arguments: those of ``torch.nn.SyncBatchNorm``. On the CPU too (gloo): the averages of the formula are then
    all-reduced, differentiably; processes may have batches of different sizes. With a single process, and in eval,
    it is BatchNorm. See `BatchNormFamily`.
    """

    spaces = (0, 1, 2, 3)
    process_group: Any

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        if x.ndim >= 2 and x.shape[1] == 0:
            cure = "number of input channels should be non-zero."
            raise self._misfit(x, self._wanted(), cure, ValueError, space_axes(x.ndim))
        return super().axes(x)

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        """Put a SyncBatchNorm in the place of every BatchNorm of a model, with its parameters and buffers."""
        made = module
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            options = module.eps, module.momentum, module.affine, module.track_running_stats, process_group
            made = cls(module.num_features, *options).train(module.training)
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(made, name, getattr(module, name))
        for name, child in module.named_children():
            made.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return made

    def _is_synchronized(self) -> bool:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.process_group) > 1

    def _batch_average(self, x: Tensor, real: Tensor | None) -> Over:
        axes = self._average_over(x)
        return Synchronized(axes, real, self.process_group) if self._is_synchronized() else Over(axes, real)

    def _by_kernel(self, input: Tensor, real: Tensor | None, company: Company = ALONE) -> Tensor | None:
        return None if self._is_synchronized() else super()._by_kernel(input, real, company)

    def _plain(self, input: Tensor) -> Tensor:
        if self._is_synchronized() and input.device.type == "cpu":
            return self._by_formula(input, None)
        return super()._plain(input)


def unbiased_of(var: Tensor, count: Tensor) -> Tensor:
    """Return the unbiased variance of ``count`` entries (int), their quotient as exact as the biased one."""
    entries = count.to(torch.promote_types(var.dtype, torch.float32))
    return var * (entries / (entries - 1).clamp(min=1))


def _cure(x: Tensor, spaces: tuple[int, ...]) -> str:
    if x.ndim - 1 in spaces:
        return "If it is one sample, x.unsqueeze(0) makes it a batch."
    return "Is it another of BatchNorm1d, 2d and 3d?" if 2 <= x.ndim <= 5 else "Its axes can be joined by x.flatten()."
