"""Convolution: a windowed dot product, and the layers that are made of it."""
