"""Layers without a state: a formula of one row of features, torch.nn's conventions around it."""
