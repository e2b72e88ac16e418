"""Formulas without time, and their gradients, as loops over the axes of memory."""
