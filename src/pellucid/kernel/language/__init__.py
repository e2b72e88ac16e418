"""What every kernel is written with: the few kinds of values, and their C and their Triton."""
