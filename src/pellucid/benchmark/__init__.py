"""`pellucid bench`: pellucid's layers beside torch.nn's, beside the Python loop and beside what the machine can do."""

from pellucid.benchmark.command import bench

__all__ = ["bench"]
