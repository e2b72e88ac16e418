"""What all tests share: one thread for their small tensors, and errors for pellucid's own warnings."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
