"""Time a process from its imports to the first result of a cell that pellucid has never seen.

Usage: first_result.py THREADS
"""

from __future__ import annotations

import sys
import time

began = time.perf_counter()
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

torch_there = time.perf_counter()
import pellucid  # noqa: E402

pellucid_there = time.perf_counter()


def main() -> None:
    """Write a cell, make a layer, train a step; then compare, and print JSON."""
    torch.set_num_threads(int(sys.argv[1]))
    x = torch.randn((128, 32, 256), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()

    @pellucid.cell
    def gated(x, h, c, *, U, W, gamma=pellucid.constant(0.1), b=pellucid.zeros, tau: float = 5.0):
        """A formula of nobody's: a normalized gate before a leaky memory."""
        a, g = (F.layer_norm(x @ U + h @ W, (2 * h.shape[-1],)) * gamma + b).chunk(2, -1)
        c = c + (torch.tanh(g) - c) / tau
        h = torch.sigmoid(a) * torch.tanh(c)
        return h, c

    layer = gated(256, 128)
    output, _ = layer(x)
    output.sum().backward()
    first = time.perf_counter() - start

    import copy
    import json
    from dataclasses import asdict

    from pellucid.benchmark.comparison import agree, train

    backend = layer.backend
    agreement = agree(train, layer, copy.deepcopy(layer), x, by="naive")
    print(
        json.dumps(
            {
                "import_torch_s": torch_there - began,
                "import_pellucid_s": pellucid_there - torch_there,
                "first_s": first,
                "backend": backend,
                "agreement": asdict(agreement),
            }
        )
    )


main()
