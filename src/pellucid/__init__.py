"""pellucid: neural-network components written once, as formulas."""

from pellucid.errors import FormulaError, PellucidWarning
from pellucid.formula.draws import dropout
from pellucid.formula.initializers import constant, ones, orthogonal, uniform, zeros
from pellucid.kernel.launch import backend
from pellucid.nn.cell import Cell, cell

__all__ = [
    "Cell",
    "FormulaError",
    "PellucidWarning",
    "backend",
    "cell",
    "constant",
    "dropout",
    "ones",
    "orthogonal",
    "uniform",
    "zeros",
]
__version__ = "0.1.0"
