"""Nine speakers, told apart by utterances of different lengths."""
