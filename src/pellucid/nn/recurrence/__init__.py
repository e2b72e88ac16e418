"""Recurrent layers: a cell over a sequence, torch.nn's and one's own."""
