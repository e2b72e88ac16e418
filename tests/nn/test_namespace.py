"""The drop-in namespace: every name of torch.nn is found under pellucid.nn too."""

from __future__ import annotations

import importlib
import types

import pytest
import torch

import fresh
from pellucid import nn

PUBLIC = [name for name in dir(torch.nn) if not name.startswith("_")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_of_torch_nn_resolves(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert ours is theirs or (ours.__module__.startswith("pellucid.nn") and ours.__name__ == theirs.__name__)
    assert name in dir(nn)


def test_star_import_brings_them_all():
    space: dict[str, object] = {}
    exec("from pellucid.nn import *", space)
    assert set(PUBLIC) <= set(space)
    assert space["GRU"] is nn.GRU


@pytest.mark.parametrize("name", [n for n in PUBLIC if isinstance(getattr(torch.nn, n), types.ModuleType)])
def test_submodules_import(name):
    assert importlib.import_module(f"pellucid.nn.{name}") is getattr(torch.nn, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Gru"):
        _ = nn.Gru


def test_submodules_of_submodules_are_torchs_own():
    code = (
        "import torch, pellucid.nn.utils.rnn, pellucid.nn.utils.parametrize, pellucid.nn.modules.linear\n"
        "from pellucid import nn\n"
        "assert pellucid.nn.utils.rnn is torch.nn.utils.rnn\n"
        "packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])\n"
        "assert isinstance(nn.GRU(2, 4)(packed)[0], pellucid.nn.utils.rnn.PackedSequence)\n"
        "assert pellucid.nn.modules.linear.Linear is torch.nn.Linear\n"
    )
    fresh.printed(code)
