"""Handwritten digits, read by LeNet-5."""
