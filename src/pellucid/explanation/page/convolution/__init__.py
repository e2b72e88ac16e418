"""The exhibit of convolutions and poolings: the window over the input, and what it computes there."""
