"""Whole models: their torch.nn layers exchanged for pellucid's, and back, and their silent mistakes."""

from pellucid.models.checks import check
from pellucid.models.swap import restore, swap

__all__ = ["check", "restore", "swap"]
