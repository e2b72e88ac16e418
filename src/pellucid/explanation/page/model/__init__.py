"""The page of a whole model: the tree of its layers, opened and folded."""
