"""Heatmaps in RGB colours, by any OpenCV or matplotlib colormap."""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.normalization import as_maps, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_COLORMAP = "jet"
"""The default colormap: red is high, blue is low."""

DEFAULT_SIGNED_COLORMAP = "coolwarm"
"""The default colormap of signed heatmaps: red is positive, blue is negative."""

LEVELS = 256
"""Entries of a colormap's lookup table."""


def colorize(heatmap: Any, colormap: Any = DEFAULT_COLORMAP) -> NDArray[np.uint8]:
    """Colour a heatmap; by default red is high and blue is low.

    Args:
        heatmap: (H, W) or (N, H, W) in [0, 1], a tensor or an array.
        colormap: a name that OpenCV or else matplotlib knows (jet, turbo, viridis, inferno, ...), or a matplotlib
            ``Colormap``. A name that both know is OpenCV's, as in grad-cam; torchcam and captum have matplotlib's jet,
            which is up to 34 levels apart: ``matplotlib.colormaps["jet"]``. Turbo and viridis are easier to read
            correctly than jet, whose brightness jumps.

    Returns:
        (H, W, 3) or (N, H, W, 3), RGB.

    Raises:
        CamlibValueError: values outside [0, 1] or not finite, or an unknown colormap; close names are suggested.

    Example:
        >>> import numpy as np
        >>> colorize(np.array([[0.0, 1.0]]), "jet")
        array([[[  0,   0, 128],
                [128,   0,   0]]], dtype=uint8)
    """
    values = checked_heatmap(heatmap, 0.0)
    return lookup_table(colormap)[_levels(values)]


def colorize_signed(heatmap: Any, colormap: Any = DEFAULT_SIGNED_COLORMAP) -> NDArray[np.uint8]:
    """Colour a signed heatmap with a diverging colormap, with zero in the middle.

    Args:
        heatmap: (H, W) or (N, H, W) in [-1, 1], as ``normalize(maps, "signed")`` gives it.
        colormap: as for :func:`camlib.colorize`; it needs a neutral middle, such as coolwarm, RdBu_r or bwr.

    Returns:
        (H, W, 3) or (N, H, W, 3), RGB.

    Raises:
        CamlibValueError: values outside [-1, 1] or not finite, or an unknown colormap.
    """
    values = checked_heatmap(heatmap, -1.0)
    return lookup_table(colormap)[_levels((values + 1) / 2)]


def checked_heatmap(heatmap: Any, lowest: float) -> NDArray[Any]:
    """Return a heatmap as an array (H, W) or (N, H, W), checked to lie in [``lowest``, 1].

    Raises:
        CamlibValueError: it has another shape or range.
    """
    tensor = as_maps(heatmap, "heatmap").detach().cpu()
    if tensor.dim() not in (2, 3):
        raise CamlibValueError(f"heatmap must have shape (H, W) or (N, H, W), got {tuple(tensor.shape)}")
    low, high = float(tensor.min()), float(tensor.max())
    if low < lowest or high > 1:
        advice = "normalize(maps), or the signed functions for signed maps"
        advice = 'normalize(maps, "signed")' if lowest < 0 else advice
        raise CamlibValueError(f"heatmap must lie in [{lowest:g}, 1], got [{shown(low)}, {shown(high)}]; use {advice}")
    array: NDArray[Any] = tensor.numpy()
    return array


def _levels(values: NDArray[Any]) -> NDArray[np.intp]:
    import numpy as np

    levels: NDArray[np.intp] = np.rint(values * (LEVELS - 1)).astype(np.intp)
    return levels


def lookup_table(colormap: Any) -> NDArray[np.uint8]:
    """Return a colormap's colours, (256, 3), RGB.

    Raises:
        CamlibValueError: neither OpenCV nor matplotlib knows the name.
        CamlibTypeError: neither a name nor a matplotlib colormap.
    """
    if isinstance(colormap, str):
        return _named(colormap)
    import matplotlib
    import numpy as np

    if not isinstance(colormap, matplotlib.colors.Colormap):
        raise CamlibTypeError(f"colormap must be a name or a matplotlib Colormap, got {type(colormap).__name__}")
    colors = colormap(np.linspace(0, 1, LEVELS))[:, :3]
    table: NDArray[np.uint8] = np.rint(colors * 255).astype(np.uint8)
    return table


@functools.lru_cache(maxsize=64)
def _named(name: str) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    known = {constant.removeprefix("COLORMAP_").lower(): constant for constant in dir(cv2) if "COLORMAP_" in constant}
    if name.lower() in known:
        ramp = np.arange(LEVELS, dtype=np.uint8)[:, None]
        return np.ascontiguousarray(cv2.applyColorMap(ramp, getattr(cv2, known[name.lower()]))[:, 0, ::-1], np.uint8)
    import matplotlib

    by_name = {other.lower(): other for other in matplotlib.colormaps}
    if name.lower() in by_name:
        return lookup_table(matplotlib.colormaps[name if name in matplotlib.colormaps else by_name[name.lower()]])
    close = difflib.get_close_matches(name.lower(), [*known, *by_name], n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "there are jet, turbo, viridis and coolwarm"
    raise CamlibValueError(f"neither OpenCV nor matplotlib has a colormap {name!r}; {hint}")
