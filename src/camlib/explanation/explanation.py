"""The result of a call: the maps, and what they explain."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, items, number, positive_int
from camlib.explanation import files
from camlib.explanation.fields import check_fields
from camlib.explanation.joining import joined, sliced
from camlib.explanation.titles import title
from camlib.imaging import DEFAULT_COLORMAP, is_constant, normalize
from camlib.imaging.extent import Extent, cells_of_input, resized_to_input
from camlib.imaging.resizing import SIZES, checked_grid
from camlib.inputs.nested import map_tensors
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


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the network looked: one map for each image, or K of them, and what was explained.

    Tensors are detached and lie on the model's device. Indexing and iteration go by image and keep the batch
    axis; ``len`` is the number of images; a notebook shows the heatmaps.

    Everything below also applies to signals, volumes and videos: a map (h, w) of a picture is (l,) for a signal, and
    (t, h, w) for a volume or a video. :attr:`dims` is the number of these axes.

    Raises:
        CamlibTypeError: a field has another type.
        CamlibValueError: the shapes of maps and scores do not match, or those of extent, input size and maps.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> explanation = cam(torch.rand(3, 3, 64, 64))
        >>> explanation.heatmaps().shape, len(explanation), explanation[0].maps.shape
        (torch.Size([3, 64, 64]), 3, torch.Size([1, 2, 2]))
    """

    maps: Tensor
    """(N, h, w), or (N, K, h, w) with a class axis; at the layer's resolution, not normalised, float32 or more."""
    scores: Tensor
    """(N,) or (N, K); the scores that were explained, raw outputs unless the target says otherwise; NaN where there is
    no score, as for a class-agnostic method and a model whose outputs hold no classes."""
    outputs: Any
    """What the model returned, detached; None if it contains no tensors. NaN for images that are :attr:`missing`."""
    target: Tensor | str
    """Class indices, (N,) or (N, K), or the name of another target. The class that a model predicted for an image that
    is :attr:`missing` means nothing."""
    method: str
    """The method's name for display, with that of a smoothing behind it, as in "grad_cam, noise averaging"."""
    layer: str
    """The layer's name for display; several names are joined by ``" + "``."""
    input_size: tuple[int, ...] | None
    """(H, W) of the input, or None if it held no image; (L,) of a signal, (T, H, W) of a volume or a video."""
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    """Each layer's own maps, at its own resolution. If the explanation has several, they have no :attr:`extent`."""
    extent: Extent = None
    """(H, W) in input pixels that the maps cover, if that is not the input, as where a detector pads its pictures at
    the right and at the bottom, or where a network crops or pads images, or has convolutions without padding."""
    class_agnostic: bool = False
    """True if the method ignores the target; then the maps explain no particular class, whatever ``target`` holds."""
    origin: Extent = None
    """Where the maps begin, in input pixels along each axis, if they have an :attr:`extent` and do not begin at the
    input's first pixel. Heatmaps are zero where no cell is."""
    quantity: str = "score"
    """The quantity that was explained. It is "logit" for classes, also where the model ends in a softmax or sigmoid
    whose logits camlib has found; "probability", "detection score", "similarity"; or "score" for a function."""
    relu: bool = True
    """Whether negative values were set to zero; False for maps made with ``relu=False``, even if none is negative."""

    def __post_init__(self) -> None:
        check_fields(vars(self))

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

    def overlays(self, images: Any, colormap: Any = DEFAULT_COLORMAP, alpha: float | str = 0.5) -> NDArray[np.uint8]:
        """Overlay the heatmaps on the images, at the images' resolution; pictures without a map stay as they are.

        Args:
            images: a list or a batch of pictures as for :func:`camlib.overlay`. They must show exactly what
                the network saw; if its input was cropped or padded, restore the heatmap with a geometry first. Volumes
                and videos are arrays (N, T, H, W, 3) or gray (N, T, H, W), tensors (N, 3, T, H, W) or (N, 1, T, H, W),
                or lists of clips or of lists of frames. Give one channel of a volume with several.
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
        pictures = read(self.dims, images, len(self), self.input_size)
        size = common_size(pictures)
        heatmaps = self.heatmaps(size, "signed" if self.signed else "minmax").reshape(len(pictures), -1, *size)
        style = Style(colormap, alpha, signed=self.signed)
        return overlaid(pictures, heatmaps, style).reshape(*self.scores.shape, *size, 3)

    def plot(
        self,
        images: Any,
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
            class_names: names for the class indices.
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
        for picture, one in zip(read(self.dims, images, len(self), self.input_size), self, strict=True):
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
        return title(self.target, self.scores, self.class_agnostic, class_names, k)

    def to(self, *args: Any, **kwargs: Any) -> Explanation:
        """Return the explanation with every tensor moved or cast by ``Tensor.to``; indices stay integers."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else tensor.to(moved.device)  # bfloat16 has no 257

        return Explanation(**map_tensors(move, vars(self)))

    def cpu(self) -> Explanation:
        """Return the explanation on the CPU."""
        return self.to("cpu")

    def numpy(self) -> NDArray[Any]:
        """Return the maps as an array; bfloat16, which NumPy lacks, as float32."""
        return files.as_array(self.maps)

    @staticmethod
    def cat(explanations: Sequence[Explanation]) -> Explanation:
        """Join explanations of the same method, layer and kind of target along the images.

        Outputs are joined if they are tensors, or lists with an entry for each image; other outputs are dropped.

        Raises:
            CamlibValueError: there are no explanations, or they differ in more than their images.
        """
        if not isinstance(explanations, Sequence) or not all(isinstance(one, Explanation) for one in explanations):
            raise CamlibTypeError(f"explanations must be a list of them, got {explanations!r}")
        return Explanation(**joined([vars(explanation) for explanation in explanations]))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the explanation to an ``.npz`` file of plain arrays: no pickle, outputs only if they are a tensor.

        If that fails, an older file stays as it was.
        """
        files.save(path, vars(self))

    @staticmethod
    def load(path: str | PathLike[str], max_bytes: int = files.MAX_BYTES) -> Explanation:
        """Read an explanation that :meth:`save` wrote, onto the CPU. Nothing is unpickled.

        Args:
            path: the file.
            max_bytes: the most bytes of all arrays together, by default 1 GiB; a small file can hold large arrays.

        Raises:
            CamlibTypeError: ``path`` is not a path.
            CamlibValueError: :meth:`save` did not write the file, or it is damaged or too large.
        """
        return files.load(path, Explanation, max_bytes)

    def __len__(self) -> int:
        return self.maps.shape[0]

    def __iter__(self) -> Iterator[Explanation]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice) -> Explanation:
        """Return the explanation of one image, or of a slice of them; the batch axis stays."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        if not isinstance(index, slice):
            raise CamlibTypeError(f"index must be an int or a slice, got {type(index).__name__}")
        return Explanation(**sliced(vars(self), index))

    def __repr__(self) -> str:
        size = "?" if self.input_size is None else " x ".join(map(str, self.input_size))
        target = self.target if isinstance(self.target, str) else self.target.tolist()
        shown = str(target) if len(str(target)) <= 40 else f"{str(target)[:37]}..."
        where = f" at {self.layer!r}" if self.layer else ""
        return (
            f"Explanation({self.method}{where}: maps {tuple(self.maps.shape)} {self.maps.dtype} for inputs of {size}, "
            f"target {shown})"
        )

    def _repr_png_(self) -> bytes:
        """The first heatmaps as a PNG, side by side; the middle frame of a volume or a video, a band for a signal."""
        first = self[:SHOWN]
        heatmaps = first.heatmaps(
            self.input_size or tuple(self.maps.shape[-self.dims :]), "signed" if self.signed else "minmax"
        ).flatten(0, -self.dims - 1)
        return strip(heatmaps, signed=self.signed)


_normalize = normalize  # the method's argument has the same name
