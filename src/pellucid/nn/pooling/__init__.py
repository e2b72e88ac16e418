"""Pooling: one number for what a window reads."""
