"""pellucid: neural-network components written once, as formulas."""

from pellucid.errors import CheckError, FormulaError, PellucidWarning, VerificationError
from pellucid.explanation import explain
from pellucid.formula.draws import dropout, noise, zoneout
from pellucid.formula.initializers import constant, ones, orthogonal, uniform, zeros
from pellucid.kernel.backends import backend
from pellucid.models import check, restore, swap
from pellucid.monte_carlo import monte_carlo
from pellucid.nn.recurrence.cell import Cell, cell
from pellucid.nn.rows.row_formula import Layer, layer
from pellucid.version import __version__ as __version__

__all__ = [
    "Cell",
    "CheckError",
    "FormulaError",
    "Layer",
    "PellucidWarning",
    "VerificationError",
    "backend",
    "cell",
    "check",
    "constant",
    "dropout",
    "explain",
    "layer",
    "monte_carlo",
    "noise",
    "ones",
    "orthogonal",
    "restore",
    "swap",
    "uniform",
    "zeros",
    "zoneout",
]
