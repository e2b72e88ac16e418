"""Whole models: their torch.nn layers exchanged for pellucid's, and back."""

from pellucid.models.swap import restore, swap

__all__ = ["restore", "swap"]
