"""What a component computes: the author's function, its shapes, its gradient, its schedule."""
