"""Clips, which are volumes and videos: some of their frames, and the same frames with their heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging import as_rgb
from camlib.plotting.panels import Panels
from camlib.plotting.rows import LOWEST, PLAIN, FigureRow, Style, add_colorbar, colors, heading, laid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAMES = 8
"""The largest number of frames of a clip in the figure."""

CELL = 1.5
"""Width of a frame in the figure, in inches."""

_CHANNELS = (1, 3, 4)


def as_clips(images: Any, count: int, size: tuple[int, ...] | None = None) -> list[NDArray[np.uint8]]:
    """Return a batch of clips, a sequence of clips or one clip as a list of RGB clips.

    Args:
        images: a list or tuple of clips, which may differ in size; an array (N, T, H, W, C) or, grey, (N, T, H, W);
            a tensor (N, C, T, H, W), (N, T, C, H, W) or, grey, (N, T, H, W); or one clip that is an array or a tensor.
        count: N.
        size: (T, H, W) of the explained clips, if known; a tensor of grey clips must have it.

    Returns:
        Clips (T, H, W, 3), uint8.

    Raises:
        CamlibTypeError: as :func:`as_clip`.
        CamlibValueError: as :func:`as_clip`.
    """
    of_grey = getattr(images, "ndim", None) == 4
    if isinstance(images, Tensor):
        grey_batch = of_grey and tuple(images.shape) == (count, *(size or ()))
    else:
        grey_batch = of_grey and not _in_color(images)
    batch = grey_batch or getattr(images, "ndim", None) == 5 or isinstance(images, (list, tuple))
    return [as_clip(clip) for clip in images] if batch else [as_clip(images)]


def as_clip(clip: Any) -> NDArray[np.uint8]:
    """Return one clip as RGB, (T, H, W, 3), uint8.

    Args:
        clip: an array (T, H, W, 3), (T, H, W, 1) or (T, H, W); a tensor (3, T, H, W), (1, T, H, W), (T, 3, H, W),
            (T, 1, H, W) or (T, H, W), where the first of the two axes counts as the channels if both may be; or a list
            of frames, each as :func:`camlib.imaging.as_rgb` takes them. Arrays and tensors are uint8, or floating point
            in [0, 1].

    Raises:
        CamlibTypeError: another type of clip or of numbers.
        CamlibValueError: another shape, frames of different sizes, or values outside [0, 1].
    """
    import numpy as np

    frames = [as_rgb(frame) for frame in _frames(clip)]
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) != 1:
        raise CamlibValueError(f"a clip must have one or more frames of one size, got sizes {sorted(sizes)}")
    return np.stack(frames)


def _frames(clip: Any) -> Any:
    import numpy as np

    if isinstance(clip, Tensor):
        if clip.dim() == 4 and clip.shape[0] in (1, 3):
            return clip.movedim(0, 1)
        if clip.dim() != 3 and not (clip.dim() == 4 and clip.shape[1] in (1, 3)):
            raise CamlibValueError(
                "a tensor clip must be channels-first, (3, T, H, W) or (1, T, H, W), or be its frames, (T, 3, H, W), "
                "(T, 1, H, W) or (T, H, W), got "
                f"{tuple(clip.shape)}; give one channel of a volume with several, clip[:1]; for channels last, pass "
                "an array: clip.numpy()"
            )
    elif isinstance(clip, np.ndarray):
        if clip.ndim != 3 and not (clip.ndim == 4 and _in_color(clip)):
            raise CamlibValueError(
                f"an array clip must have shape (T, H, W, 3), (T, H, W, 1) or (T, H, W), got {clip.shape}; give one "
                "channel of a volume with several"
            )
    elif not isinstance(clip, (list, tuple)):
        raise CamlibTypeError(
            "a clip must be an array (T, H, W, 3), a tensor (3, T, H, W) or a list of frames, got "
            f"{type(clip).__name__}"
        )
    return clip


def _in_color(array: Any) -> bool:
    return array.shape[-1] in _CHANNELS


def layout_of_clips(rows: Sequence[FigureRow]) -> Panels:
    """Return the panels of :func:`draw_clips`."""
    columns = max(len(evenly_spaced(len(row.picture), FRAMES)) for row in rows)
    _, height, width = rows[0].heatmap.shape
    tall = len(rows) * (2 * CELL * height / width + 0.5) + 0.1
    return Panels(2 * len(rows), columns, (max(columns * CELL, 3) + 1.2, max(tall, LOWEST)))


def draw_clips(rows: Sequence[FigureRow], style: Style, axes: Any) -> None:
    """Draw two lines of axes for each row: evenly spaced frames, and the same frames with their heatmaps."""
    for ax in axes.flat:
        ax.set_axis_off()
    for above, below, row in zip(axes[::2], axes[1::2], rows, strict=True):
        numbers = evenly_spaced(len(row.picture), FRAMES)
        overlays = laid(row.picture[numbers], row.heatmap[numbers], style)
        for column, number in enumerate(numbers):
            above[column].imshow(row.picture[number])
            below[column].imshow(overlays[column])
            above[column].set_title(f"frame {number}", fontsize=8, loc="left")
        title = f"{heading(row)}\nframe {numbers[0]}"  # may extend over its neighbours
        above[0].set_title(title, fontsize=8, loc="left", **PLAIN)
    add_colorbar(axes.flat[0].figure, axes, colors(style), style)


def evenly_spaced(length: int, most: int) -> list[int]:
    """Up to ``most`` of ``length`` positions, evenly spaced, including the first and the last.

    Example:
        >>> evenly_spaced(16, 4), evenly_spaced(3, 8)
        ([0, 5, 10, 15], [0, 1, 2])
    """
    count = min(length, most)
    return [round(place * (length - 1) / max(count - 1, 1)) for place in range(count)]
