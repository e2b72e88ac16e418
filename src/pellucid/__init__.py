"""pellucid: neural-network components written once, as formulas."""

from pellucid.errors import FormulaError, PellucidWarning
from pellucid.formula.initializers import constant, ones, orthogonal, uniform, zeros

__all__ = ["FormulaError", "PellucidWarning", "constant", "ones", "orthogonal", "uniform", "zeros"]
__version__ = "0.1.0"
