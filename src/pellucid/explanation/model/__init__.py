"""Explains a whole model: the tree of its layers, with what really went through them."""

from __future__ import annotations

from pellucid.explanation.model.tree import ModelReport

__all__ = ["ModelReport"]
