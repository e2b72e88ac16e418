"""Dropout to play with: one mask entry by entry, the crowd of masks, the thinned networks, and who shares a coin."""
