"""Heatmaps without their pictures, as a small PNG for notebooks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camlib.imaging import colorize
from camlib.imaging.colors import colorize_signed

SHOWN = 8
"""The largest number of heatmaps in the PNG."""

BAND, GAP = 16, 2
"""Height of a signal's band, and space between heatmaps, in pixels."""


def strip(heatmaps: Tensor, *, signed: bool) -> bytes:
    """Return the first of heatmaps (M, *grid) side by side; the middle frames of clips, and bands for signals.

    Where they are NaN, it is white.

    Args:
        heatmaps: in [0, 1].
        signed: whether they are in [-1, 1] instead.
    """
    import cv2

    arranged = _ARRANGED[heatmaps.dim() - 1](heatmaps[:SHOWN])
    colored = (colorize_signed if signed else colorize)(arranged.nan_to_num())
    colored[arranged.isnan().cpu().numpy()] = 255
    encoded: bytes = cv2.imencode(".png", colored[..., ::-1])[1].tobytes()
    return encoded


def _side_by_side(heatmaps: Tensor) -> Tensor:
    """Heatmaps (M, H, W) in a row, with a gap after each."""
    return torch.nn.functional.pad(heatmaps, (0, GAP)).movedim(0, 1).flatten(1)


def _bands(heatmaps: Tensor) -> Tensor:
    """Heatmaps (M, L) as bands, one below the other, with a gap after each."""
    return torch.nn.functional.pad(heatmaps[:, None].expand(-1, BAND, -1), (0, 0, 0, GAP)).flatten(0, 1)


_ARRANGED: dict[int, Callable[[Tensor], Tensor]] = {
    1: _bands,
    2: _side_by_side,
    3: lambda heatmaps: _side_by_side(heatmaps[:, heatmaps.shape[1] // 2]),
}
"""How heatmaps are arranged, by their dimensions."""
