"""What an explanation shows: heatmaps, overlays, figures, a page."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, items, number, positive_int
from camlib.explanation.titles import title
from camlib.imaging import DEFAULT_COLORMAP, is_constant, normalize
from camlib.imaging.extent import Extent, cells_of_input, resized_to_input
from camlib.imaging.resizing import SIZES, checked_grid
from camlib.plotting import common_size, draw, draw_into, overlaid, read
from camlib.plotting.pictures import draw_grid
from camlib.plotting.rows import EMPTY, MISSING, FigureRow, Style, on_one_scale
from camlib.plotting.strip import SHOWN, strip

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Scale = Literal["each", "all"]
"""Whether each map of a figure is scaled alone, or all by the same factor."""

_INPUTS = {1: "signal", 2: "image", 3: "volume or video"}


class Shown(ABC):
    """What is shown of the fields of an explanation, which :class:`camlib.Explanation` holds and describes."""

    maps: Tensor
    scores: Tensor
    target: Tensor | str
    method: str
    layer: str
    input_size: tuple[int, ...] | None
    extent: Extent
    class_agnostic: bool
    origin: Extent
    relu: bool
    pictures: Sequence[Any] | None
    class_names: Sequence[str] | None

    def __len__(self) -> int:
        return self.maps.shape[0]

    def __iter__(self) -> Iterator[Self]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def __getitem__(self, index: int | slice) -> Self: ...

    @property
    def dims(self) -> int:
        """1 for the maps (N, l) of signals, 2 for (N, h, w) of pictures, 3 for (N, t, h, w) of volumes and videos."""
        return self.maps.dim() - self.scores.dim()

    @property
    def has_class_axis(self) -> bool:
        """Whether there are K maps for each image, (N, K, h, w)."""
        return self.scores.dim() == 2

    @property
    def missing(self) -> Tensor:
        """(N,) bool, true for images without a map, all of whose values are NaN.

        Methods with ``on_nonfinite="nan"`` give it to images for which a number is not finite.
        """
        return self.maps.isnan().flatten(1).all(1)

    @property
    def degenerate(self) -> Tensor:
        """(N,) or (N, K) bool, true where the map is constant or nowhere positive; its heatmap is all zeros.

        Cells that lie entirely in the padding do not count. Images that are :attr:`missing` are not degenerate.
        """
        cells = cells_of_input(self.maps, self.extent, self.input_size, self.origin)
        return is_constant(cells, self.dims) | (cells.flatten(-self.dims).amax(-1) <= 0)

    @property
    def signed(self) -> bool:
        """Whether maps may hold negative values, as evidence against what is explained."""
        return not self.relu or bool((self.maps < 0).any())

    def heatmaps(self, size: tuple[int, ...] | None = None, normalize: str = "minmax") -> Tensor:
        """Resize the maps, cut off the padding, then normalise each image and class separately.

        Args:
            size: (H, W) of the heatmaps; by default the input's. Interpolation is bilinear with half-pixel centres;
                linear for signals (L,), trilinear for volumes and videos (T, H, W).
            normalize: a method of :func:`camlib.normalize`. "signed" and "none" keep negative values: with
                "signed" only constant maps become zeros, with "none" no map does.

        Returns:
            (N, H, W) or (N, K, H, W), in [0, 1]; with "signed" in [-1, 1]. A volume or a video is scaled as a
            whole, so that its frames can be compared. NaN for images that are :attr:`missing`.

        Raises:
            CamlibValueError: the size has a wrong form, or none is given and the input's is unknown; or some values of
                a map are not finite.
        """
        if size is None:
            size = self.input_size
            if size is None or len(size) != self.dims:
                raise CamlibValueError(
                    f"the inputs held no {_INPUTS[self.dims]} whose size is known; give size={SIZES[self.dims]}"
                )
        missing = self.missing.reshape(-1, *[1] * (self.maps.dim() - 1))
        maps = self.maps.masked_fill(missing, 0)
        resized = resized_to_input(maps, checked_grid(size, self.dims), self.extent, self.input_size, self.origin)
        heatmaps = _normalize(resized, normalize, self.dims).masked_fill(missing, torch.nan)
        if normalize in ("signed", "none"):
            return heatmaps
        return heatmaps.masked_fill(self.degenerate.reshape(*self.scores.shape, *[1] * self.dims), 0)

    def overlays(
        self, images: Any = None, colormap: Any = DEFAULT_COLORMAP, alpha: float | str = 0.5
    ) -> NDArray[np.uint8]:
        """Overlay the heatmaps on the images, at the images' resolution; pictures without a map stay as they are.

        Args:
            images: a list or a batch of pictures as for :func:`camlib.overlay`; None for those of the explanation. They
                must show exactly what the network saw; if its input was cropped or padded, restore the heatmap with a
                geometry first. Volumes and videos are arrays (N, T, H, W, 3) or gray (N, T, H, W), tensors
                (N, 3, T, H, W) or (N, 1, T, H, W), or lists of clips or of lists of frames. Give one channel of a
                volume with several.
            colormap: as for :func:`camlib.colorize`. If the maps are :attr:`signed`, zero is in the middle, and
                coolwarm takes the place of jet, which has no middle.
            alpha: opacity of the heatmap in [0, 1], or "heat" for opacity that follows importance.

        Returns:
            (N, H, W, 3) or (N, K, H, W, 3), RGB, uint8; (N, T, H, W, 3) or (N, K, T, H, W, 3) for volumes and
            videos.

        Raises:
            CamlibValueError: not as many pictures as images, pictures of different sizes, or maps of signals, which
                only :meth:`plot` draws.
        """
        if self.dims == 1:
            raise CamlibValueError(
                f"maps {tuple(self.maps.shape)} of signals have no overlays; explanation.plot(signals) draws each "
                "signal in front of its heatmap"
            )
        pictures = self._read(images)
        size = common_size(pictures)
        heatmaps = self.heatmaps(size, "signed" if self.signed else "minmax").reshape(len(pictures), -1, *size)
        style = Style(colormap, alpha, signed=self.signed)
        return overlaid(pictures, heatmaps, style).reshape(*self.scores.shape, *size, 3)

    def plot(
        self,
        images: Any = None,
        class_names: Sequence[str] | None = None,
        colormap: Any = DEFAULT_COLORMAP,
        alpha: float | str = 0.5,
        titles: Sequence[str] | None = None,
        scale: Scale = "each",
        columns: int | None = None,
        figsize: tuple[float, float] | None = None,
        axes: Any = None,
    ) -> Figure:
        """Draw original, heatmap and overlay side by side, in a row for each image and class, with a colour bar.

        Maps that are :attr:`signed` have colours from "against" to "for", with zero in the middle.

        Up to eight frames of a volume or a video are drawn, evenly spaced, above the same frames with their heatmap. A
        signal is drawn as lines in front of its heatmap.

        Args:
            images: as for :meth:`overlays`. Signals are arrays or tensors (N, C, L) or (N, L), or a list of (C, L) or
                (L,).
            class_names: names for the class indices; None for those of the explanation, if it has any.
            colormap: as for :meth:`overlays`.
            alpha: as for :meth:`overlays`.
            titles: a title for each row, in place of the class and its score.
            scale: "each" to scale each map alone, "all" for one scale, by which maps can be compared.
            columns: for pictures, draws each picture followed by its overlays, in lines of so many: a compact figure of
                several classes. None for a row of three for each.
            figsize: width and height of the figure in inches; None for a size that fits the rows.
            axes: axes of a figure of your own to draw into, one Axes or an array or a list of them. For pictures, as
                many as there are images and classes for the overlays alone, or three times as many for all; for
                signals, one for each; for volumes and videos, two lines of their frames for each. The colour bar takes
                its room from them.

        Returns:
            A matplotlib figure, not shown; that of the axes, if they are given.

        Raises:
            CamlibTypeError: axes that are none of matplotlib.
            CamlibValueError: not one title for each row, another scale, or columns of signals, volumes or videos; axes
                of another number or of several figures, or together with columns or a size.

        Example:
            >>> import camlib, torch, torchvision
            >>> from matplotlib import pyplot
            >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
            >>> images = torch.rand(1, 3, 64, 64)
            >>> figure, (left, *others) = pyplot.subplots(1, 4, figsize=(8, 2))
            >>> bars = left.bar(range(4), [0.1, 0.2, 0.3, 0.4])
            >>> cam(images, camlib.TopK(3)).plot(images, axes=others) is figure
            True
            >>> pyplot.close(figure)
        """
        if not isinstance(scale, str) or scale not in ("each", "all"):
            raise CamlibValueError(f'scale must be "each" or "all", got {scale!r}')
        source = f"{self.method} at {self.layer}" if self.layer else self.method
        rows = self._rows(images, class_names, together=scale == "all")
        if titles is not None:
            titles = items("titles", titles, "a list of strings")
            if len(titles) != len(rows):
                raise CamlibValueError(f"{len(rows)} rows need as many titles, got {len(titles)}")
            rows = [row._replace(title=str(title)) for row, title in zip(rows, titles, strict=True)]
        style = Style(colormap, alpha, source, self.signed, scale == "all")
        if axes is not None:
            if columns is not None or figsize is not None:
                raise CamlibValueError("axes have their places and their size; leave out columns= and figsize=")
            return draw_into(axes, self.dims, rows, style)
        if columns is not None and self.dims != 2:
            raise CamlibValueError(f"columns={columns!r} is for pictures, and the maps are of {_INPUTS[self.dims]}s")
        sides = () if figsize is None else items("figsize", figsize, "a width and a height in inches")
        if figsize is not None and len(sides) != 2:
            raise CamlibValueError(f"figsize must be a width and a height in inches, got {figsize!r}")
        sides = [number("each side of figsize", side, above=0, at_most=100) for side in sides]
        figure = (
            draw(self.dims, rows, style)
            if columns is None
            else draw_grid(rows, style, positive_int("columns", columns))
        )
        if sides:
            figure.set_size_inches(*sides)
        return figure

    def _rows(self, images: Any, class_names: Sequence[str] | None, *, together: bool) -> list[FigureRow]:
        """The figure's rows, one for each image and class."""
        rows = []
        normalize = "none" if together else "signed" if self.signed else "minmax"
        for picture, one in zip(self._read(images), self, strict=True):
            size = picture.shape[: self.dims]
            heatmaps = one.heatmaps(size, normalize).reshape(-1, *size).detach().cpu().numpy()
            empty = (is_constant(one.maps, self.dims) if self.signed else one.degenerate).flatten().tolist()
            remarks = [MISSING] * len(empty) if bool(one.missing) else [EMPTY if found else "" for found in empty]
            rows += [
                FigureRow(picture, heatmap, one.title(k, class_names), remarks[k]) for k, heatmap in enumerate(heatmaps)
            ]
        return on_one_scale(rows, signed=self.signed) if together else rows

    def title(self, k: int = 0, class_names: Sequence[str] | None = None) -> str:
        """Return what map ``k`` of the first image explains, with the score if there is one; or that it is missing.

        Classes have the explanation's names, unless others are given.

        Raises:
            CamlibTypeError: ``class_names`` is a single string, or ``k`` is no int.
            CamlibValueError: the class has no name, or there is no map ``k``.
        """
        if isinstance(k, bool) or not isinstance(k, numbers.Integral):
            raise CamlibTypeError(f"k must be an int, got {k!r}")
        count = self.scores[:1].numel()
        if not 0 <= k < count:
            raise CamlibValueError(f"k must be from 0 to {count - 1}: there are {count} maps per image; got {k}")
        if bool(self.missing[0]):
            return MISSING
        names = self.class_names if class_names is None else class_names
        return title(self.target, self.scores, self.class_agnostic, names, k)

    def _given(self, images: Any) -> Any:
        """The images, or the pictures of the explanation."""
        if images is None and self.pictures is None:
            raise CamlibTypeError(
                "the explanation has no pictures, which only camlib.explain keeps with the maps; give them, as in "
                "explanation.plot(pictures)"
            )
        return self.pictures if images is None else images

    def _read(self, images: Any) -> list[NDArray[Any]]:
        return read(self.dims, self._given(images), len(self), self.input_size)

    def _repr_png_(self) -> bytes:
        """The first heatmaps as a PNG, side by side; the middle frame of a volume or a video, a band for a signal."""
        first = self[:SHOWN]
        heatmaps = first.heatmaps(
            self.input_size or tuple(self.maps.shape[-self.dims :]), "signed" if self.signed else "minmax"
        ).flatten(0, -self.dims - 1)
        return strip(heatmaps, signed=self.signed)


_normalize = normalize  # the method's argument has the same name
