"""What a layer shows of itself: idea, formula, shapes and their reasons, counts, and worked steps with real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pellucid.explanation.model.tree import ModelReport
from pellucid.explanation.report import Report
from pellucid.explanation.serialization import load

__all__ = ["ModelReport", "Report", "explain", "load"]


def explain(
    subject: torch.nn.Module | str | Any,
    *inputs: Any,
    lang: str = "en",
    show: bool = True,
    width: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    tokens: Sequence[str] | None = None,
    depth: int | None = None,
    runs: int | None = None,
    grad: bool | None = None,
    **options: Any,
) -> Any:
    """Explain a layer with the real numbers that it computes, or a whole model, and print the explanation.

    ::

        pellucid.explain("rnn", "你个扑该!", input_size=256, hidden_size=128)
        pellucid.explain("conv2d", kernel_size=3, dilation=2)
        pellucid.explain(model.encoder, x, lang="zh")
        pellucid.explain(model, x).layer("encoder.rnn")

    Every number comes from running the layer's own formula, and the result is compared with the layer's output. The
    layer is left as it was: its mode, its running statistics and its random draws. Of a batch the first sample is
    worked out; large values are shown in part.

    Of any other module, a whole model above all, the layers are shown as a tree: what each of them really read and
    returned, with the meaning of the axes, its parameters, what it computes and moves, and its time. The model runs
    in its own mode and is left as it was.

    Args:
        subject: a layer of pellucid, a layer of torch.nn that pellucid has a twin of, what ``pellucid.cell`` or
            ``pellucid.layer`` has made, a name such as "lstm", "conv2d" or "layernorm", or any other module.
        inputs: what the layer reads. A recurrent layer, a text convolution, a TCN and a 1-D convolution also take a
            sentence (a string, or a list of words), whose characters get random vectors. By default an example is
            drawn.
        lang: "en" or "zh".
        show: whether to show the explanation: it is printed, and in a notebook its page is displayed. What has just
            been shown is not shown once more as the value of the same cell; a later cell shows it again.
        width: the columns of the printed text; by default those of the terminal.
        steps: how many steps of a sequence, or positions of a window, are worked out.
        seed: decides what the explanation draws itself: example inputs, weights of a layer given by name, masks.
        tokens: names of the steps of a sequence, for an input that is already made of vectors.
        depth: of a model, how many levels of layers are printed; by default as many as fit into 60 lines of layers.
        runs: of a model, how often it is run to take the time, 1 by default; the median is shown.
        grad: of a model, whether it is run with gradients, for one whose forward needs them; by default it is not.
        options: for a layer or a model, further arguments of its forward (``lengths=``); for a name or a cell, the
            arguments of its constructor (``hidden_size=128``).

    Returns:
        The `Report` of a layer or the `ModelReport` of a model, a tree of strings and numbers;
        ``report.text(width)`` is the printed text, ``report.show()`` opens
        its page, ``report.save("x.html")`` writes it, or ``.svg``, ``.png``, ``.pdf``, ``.md``, ``.json``, ``.txt``.

    Raises:
        ValueError: an unknown name or language. TypeError: something that cannot be explained, or an argument that
            the layer does not have. What the layer raises for a wrong input is passed on.
    """
    from pellucid.explanation.subject import is_model, report_on  # the families import all of pellucid.nn

    report: Report | ModelReport
    if isinstance(subject, torch.nn.Module) and is_model(subject):
        from pellucid.explanation.model.origin import explain_model

        options |= {key: value for key, value in (("steps", steps), ("tokens", tokens)) if value is not None}
        runs = 1 if runs is None else runs
        report = explain_model(subject, inputs, options, lang, grad=bool(grad), runs=runs)
    else:
        # A cell may have an argument of one of these names, as a model's forward of those above.
        options |= {
            key: value for key, value in (("depth", depth), ("runs", runs), ("grad", grad)) if value is not None
        }
        report = report_on(subject, inputs, options, lang=lang, steps=steps, seed=seed, tokens=tokens)
        depth = None
    if show:
        from pellucid.explanation.notebook import explained

        explained(report, width, depth)
    return report
