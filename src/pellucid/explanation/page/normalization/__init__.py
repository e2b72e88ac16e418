"""The exhibit of normalization: which numbers share a mean and a variance, and what becomes of each."""
