"""Modules and code of torch's that compute by pellucid's: one layer, several as one, arithmetic."""
