"""What the tests of the explanations share."""

from __future__ import annotations

import torch

import pellucid
from pellucid.explanation import explain
from pellucid.explanation.report import Report

SENTENCE = "你个扑该!"


def quietly(subject, *inputs, **options) -> Report:
    return explain(subject, *inputs, show=False, **options)


@pellucid.cell
def noisy(x, h, *, U, W):
    return torch.tanh(x @ U + pellucid.dropout(h, 0.5, shared="time") @ W)
