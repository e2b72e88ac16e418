"""A loop over time as one kernel: planned, written in C or Triton, launched."""
