"""Normalization: one formula, and over what each member of the family averages."""
