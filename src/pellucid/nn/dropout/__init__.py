"""Dropout: one formula, and along which axes each member of the family shares a coin flip."""
