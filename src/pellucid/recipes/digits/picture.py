"""A picture of a digit as MNIST would have it: from any file to 28×28 pixels, and those shown in a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.recipes.digits.data import SIZE
from pellucid.recipes.errors import RecipeError

BOX = 20  # pixels of a side of the square that the ink is scaled to
CENTRE = 14.0  # where the centre of mass comes to lie, in both directions
LEAST_CONTRAST = 0.1  # between paper and ink, of that between black and white
FAINT = 0.2  # of the strongest ink: what is fainter counts as paper
SHADES = " ░▒▓█"


def read_picture(path: Path) -> Tensor:
    """Read a picture file, of any size and colour, dark on light or light on dark, as (28, 28) from 0 to 1, ink.

    Raises:
        RecipeError: Pillow is not installed; there is no such file, it is no picture, a broken or a blank one.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise RecipeError("pictures are read by Pillow, which is missing: pip install 'pellucid[train]'") from error
    if not os.path.isfile(path):  # Path.is_file raises where a sentence is too long for a name
        what = "that is a folder" if os.path.isdir(path) else "there is no such file"
        raise RecipeError(f"{path}: {what}. A network of digits reads picture files, PNG or JPEG.")
    try:
        with Image.open(path) as file:
            grey = _grey(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        raise RecipeError(f"{path}: that is no picture. A network of digits reads PNG or JPEG.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise RecipeError(f"{path}: the picture cannot be read, it is broken or too large ({error}).") from error
    try:
        return as_mnist(grey)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _grey(image: Any) -> np.ndarray:
    """Return the brightness of every pixel, (height, width), from 0 to 1.

    What is transparent is paper: white, or black where all that is opaque is light.
    """
    if image.mode.startswith(("I", "F")):
        depth = np.asarray(image.convert("F"))
        return depth / max(65535.0 if image.mode.startswith("I") else 1.0, float(depth.max()))
    pixels = np.asarray(image.convert("RGBA").convert("LA"), dtype=np.float64) / 255
    brightness, opacity = pixels[..., 0], pixels[..., 1]
    opaque = opacity.sum()
    paper = 0.0 if opacity.min() < 1 and opaque and (brightness * opacity).sum() / opaque > 0.5 else 1.0
    return brightness * opacity + paper * (1 - opacity)


def as_mnist(grey: np.ndarray) -> Tensor:
    """Make of a grey picture, (height, width) from 0, black, to 1, white, what MNIST would have: (28, 28), ink 1.

    The border says what the paper is. The ink's bounding box is scaled so that its longer side has 20 pixels, and laid
    so that its centre of mass is the centre of the 28×28.

    Raises:
        RecipeError: there is no ink.
    """
    from PIL import Image

    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = float(np.median(border))
    lighter, darker = float(grey.max()) - paper, paper - float(grey.min())
    contrast = max(lighter, darker)
    if contrast < LEAST_CONTRAST:
        raise RecipeError("the picture is blank: there is nothing darker or lighter than its border")
    ink = np.clip((grey - paper if lighter > darker else paper - grey) / contrast, 0, 1)
    ink = np.where(ink < FAINT, 0, ink)
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = BOX / max(ink.shape)
    height, width = (max(1, round(side * factor)) for side in ink.shape)
    scaled = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    small = np.clip(np.asarray(scaled), 0, 1)
    small = small / small.max()
    placed = np.zeros((SIZE, SIZE), np.float32)
    top, left = _place(small.sum(1)), _place(small.sum(0))
    placed[top : top + height, left : left + width] = small
    return torch.from_numpy(placed)


def _place(mass: np.ndarray) -> int:
    """Return where a side begins that has its centre of mass in the centre, as far as it then fits."""
    centre = float((mass * np.arange(len(mass))).sum() / mass.sum())
    return min(max(round(CENTRE - centre), 0), SIZE - len(mass))


def blocks(picture: Tensor) -> str:
    """Draw a picture (height, width) from 0 to 1 with block characters, two for each pixel."""
    shades = (picture.clamp(0, 1) * (len(SHADES) - 1)).round().int().tolist()
    return "\n".join("".join(SHADES[shade] * 2 for shade in row) for row in shades)
