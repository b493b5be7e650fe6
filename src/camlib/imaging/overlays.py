"""Heatmaps over pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibValueError, number
from camlib.imaging.colors import DEFAULT_COLORMAP, DEFAULT_SIGNED_COLORMAP, checked_heatmap, colorize, colorize_signed
from camlib.imaging.resizing import resize
from camlib.imaging.rgb import as_pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def overlay(image: Any, heatmap: Any, colormap: Any = DEFAULT_COLORMAP, alpha: float | str = 0.5) -> NDArray[np.uint8]:
    """Overlay a heatmap on a picture: ``(1 - alpha) * picture + alpha * colour``, rounded.

    Args:
        image: a picture or a batch of pictures as for :func:`camlib.imaging.as_rgb`: PIL, uint8, or floating point in
            [0, 1]; arrays channels-last, tensors channels-first.
        heatmap: (h, w), or (N, h, w) for a batch, in [0, 1]; resized bilinearly to the picture's size.
        colormap: as for :func:`camlib.colorize`.
        alpha: opacity of the heatmap in [0, 1]; or "heat", to use the heatmap as its own opacity, so that unimportant
            pixels stay unchanged.

    Returns:
        (H, W, 3), or (N, H, W, 3) for a batch, RGB.

    Raises:
        CamlibValueError: a wrong shape or range, or not one heatmap for each picture.
        CamlibTypeError: a picture, heatmap or alpha of an unknown type.

    Example:
        >>> import numpy as np
        >>> overlay(np.zeros((4, 6, 3), np.uint8), np.eye(2)).shape
        (4, 6, 3)
    """
    return _overlay(image, heatmap, alpha, 0.0, lambda values: colorize(values, colormap))


def overlay_signed(
    image: Any, heatmap: Any, colormap: Any = DEFAULT_SIGNED_COLORMAP, alpha: float | str = 0.5
) -> NDArray[np.uint8]:
    """Overlay a signed heatmap in [-1, 1] on a picture, with arguments as for :func:`camlib.overlay`.

    With ``alpha="heat"`` the opacity is the heatmap's magnitude.
    """
    return _overlay(image, heatmap, alpha, -1.0, lambda values: colorize_signed(values, colormap))


def _overlay(image: Any, heatmap: Any, alpha: float | str, lowest: float, color: Any) -> NDArray[np.uint8]:
    import numpy as np

    pictures, values = as_pictures(image), checked_heatmap(heatmap, lowest)
    one = values.ndim == 2
    heatmaps = values[None] if one else values
    if len(pictures) != len(heatmaps) or one != (
        getattr(image, "ndim", 3) < 4 and not isinstance(image, (list, tuple))
    ):
        raise CamlibValueError(
            f"{len(pictures)} pictures need {len(pictures)} heatmaps, (N, h, w) for a batch and (h, w) for a single "
            f"one, got {tuple(values.shape)}"
        )
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise CamlibValueError(f"pictures of a batch must have one size, got {sorted(sizes)}; overlay them one by one")
    laid = [
        _blend(picture, resize(values, picture.shape[:2]), alpha, color)
        for picture, values in zip(pictures, heatmaps, strict=True)
    ]
    return laid[0] if one else np.stack(laid)


def _blend(picture: NDArray[np.uint8], heatmap: NDArray[Any], alpha: float | str, color: Any) -> NDArray[np.uint8]:
    import numpy as np

    opacity = (
        np.abs(heatmap)[..., None]
        if isinstance(alpha, str) and alpha == "heat"
        else number("alpha", alpha, at_least=0, at_most=1, instead='"heat"')
    )
    blended = (1 - opacity) * picture.astype(np.float64) + opacity * color(heatmap)
    rounded: NDArray[np.uint8] = np.rint(blended).astype(np.uint8)
    return rounded
