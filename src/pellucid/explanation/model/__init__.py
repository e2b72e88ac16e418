"""Explains a whole model: the tree of its layers, with what really went through them."""
