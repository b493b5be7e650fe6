"""The result of a call: the maps, and what they explain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.explanation import files
from camlib.explanation.titles import explained
from camlib.imaging import DEFAULT_COLORMAP, is_constant, normalize, resize
from camlib.imaging.resizing import SIZES, checked_grid
from camlib.inputs.nested import map_tensors
from camlib.plotting import common_size, draw, lay, read
from camlib.plotting.rows import FigureRow, Style
from camlib.plotting.strip import SHOWN, strip

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_INPUTS = {1: "signal", 2: "picture", 3: "volume or video"}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the network looked: one map for each image, or K of them, and what was explained.

    Tensors are detached and lie on the model's device. Indexing and iteration go by image and keep the batch
    axis; ``len`` is the number of images; a notebook shows the heatmaps.

    What is said of images goes for signals and for volumes and videos, too: where it says (h, w), a signal's map has
    (l,), and a volume's or a video's (t, h, w). :attr:`dims` tells which.

    Raises:
        CamlibValueError: maps and scores do not go together, or the extent has no input that it would extend.

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
    """(N,) or (N, K); the scores that were explained, raw outputs unless the target says otherwise; NaN where the
    method explains no score (a class-agnostic one, of a model whose outputs hold no classes)."""
    outputs: Any
    """What the model returned, detached; None for objects in which no tensors are found."""
    target: Tensor | str
    """Class indices, (N,) or (N, K), or the name of another target."""
    method: str
    """Name of the method, a key of :data:`camlib.METHODS` or a method's own; of a smoothing the names of what it wraps
    and of itself, such as "grad_cam, noise averaging"."""
    layer: str
    """Name of the layer; of several, joined by ``" + "``."""
    input_size: tuple[int, ...] | None
    """(H, W) of the input, or None if it held no picture; (L,) of a signal, (T, H, W) of a volume or a video."""
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    """Each layer's own maps, at its own resolution."""
    extent: tuple[float, ...] | None = None
    """(H, W) in input pixels that the maps cover, where that is more than the input; a detector pads its pictures at
    the right and at the bottom."""
    class_agnostic: bool = False
    """Whether the method ignores the target: its maps explain no class, whatever ``target`` says."""

    def __post_init__(self) -> None:
        if self.dims not in SIZES or self.maps.shape[: self.scores.dim()] != self.scores.shape:
            raise CamlibValueError(
                f"maps must have the axes of the scores and then one to three of their own, (N, h, w) for (N,) or "
                f"(N, K, h, w) for (N, K), got {tuple(self.maps.shape)} for {tuple(self.scores.shape)}"
            )
        if self.extent is not None and (
            self.input_size is None or not len(self.extent) == len(self.input_size) == self.dims
        ):
            raise CamlibValueError(
                f"extent {self.extent} must extend the input along each of the maps' {self.dims} axes, whose "
                f"input_size is {self.input_size}"
            )

    @property
    def dims(self) -> int:
        """1 for maps of signals, (N, l); 2 for pictures, (N, h, w); 3 for volumes and videos, (N, t, h, w)."""
        return self.maps.dim() - self.scores.dim()

    @property
    def has_class_axis(self) -> bool:
        """Whether there are K maps for each image, (N, K, h, w)."""
        return self.scores.dim() == 2

    @property
    def degenerate(self) -> Tensor:
        """(N,) or (N, K) bool, true where the map is constant or has no positive evidence; its heatmap is all zeros.

        Padding is left out: cells wholly outside the input do not count.
        """
        cells = self.maps
        if self.extent is not None and self.input_size is not None:
            for axis, covered, inside in zip(range(-self.dims, 0), self.extent, self.input_size, strict=True):
                reached = round(min(inside / covered, 1) * cells.shape[axis], 6)  # 25.000000001 cells are 25
                cells = cells.narrow(axis, 0, math.ceil(reached))
        return is_constant(cells, self.dims) | (cells.flatten(-self.dims).amax(-1) <= 0)

    def heatmaps(self, size: tuple[int, ...] | None = None, normalize: str = "minmax") -> Tensor:
        """Resize the maps, cut off what lies outside the input, then normalise each image and class on its own.

        Args:
            size: (H, W) of the heatmaps; the input's by default. Bilinear, with half-pixel centres. For signals
                (L,), linear; for volumes and videos (T, H, W), trilinear.
            normalize: a method of :func:`camlib.imaging.normalize`. With "signed" and "none" negative values are kept,
                so that only constant maps come out as zeros, and with "none" not even these.

        Returns:
            (N, H, W) or (N, K, H, W), in [0, 1]; with "signed" in [-1, 1]. A volume or a video is scaled as a
            whole, so that its frames can be compared.

        Raises:
            CamlibValueError: no size is given and the input had none, or a wrong one.
        """
        if size is None:
            size = self.input_size
            if size is None or len(size) != self.dims:
                raise CamlibValueError(
                    f"the inputs held no {_INPUTS[self.dims]} whose size is known; give size={SIZES[self.dims]}"
                )
        heatmaps = _normalize(self._resized(checked_grid(size, self.dims)), normalize, self.dims)
        if normalize in ("signed", "none"):
            return heatmaps
        return heatmaps.masked_fill(self.degenerate.reshape(*self.scores.shape, *[1] * self.dims), 0)

    def _resized(self, size: tuple[int, ...]) -> Tensor:
        """The maps with each pixel of ``size`` over its pixels of the input; the padding is cut off."""
        if self.extent is None or self.input_size is None:
            return resize(self.maps, size)
        sides = zip(size, self.extent, self.input_size, strict=True)
        maps = resize(self.maps, tuple(max(side, round(side * covered / full)) for side, covered, full in sides))
        inside: tuple[Any, ...] = (..., *map(slice, size))
        return maps[inside]

    def overlays(self, images: Any, colormap: Any = DEFAULT_COLORMAP, alpha: float | str = 0.5) -> NDArray[np.uint8]:
        """Lay the heatmaps over the images, each at the images' own resolution.

        Args:
            images: as :func:`camlib.imaging.overlay` takes them: a list, or a batch. They must show what the network
                saw: for cropped or padded inputs, take the heatmap back with a geometry first. Volumes and videos:
                arrays (N, T, H, W, 3) or grey (N, T, H, W), tensors (N, 3, T, H, W) or (N, 1, T, H, W), or a list
                of such or of lists of frames. A volume of several channels is not a picture: give one of them.
            colormap: as for :func:`camlib.imaging.colorize`.
            alpha: opacity of the heatmap in [0, 1], or "heat" for opacity that follows importance.

        Returns:
            (N, H, W, 3) or (N, K, H, W, 3), RGB, uint8; (N, T, H, W, 3) or (N, K, T, H, W, 3) for volumes and
            videos.

        Raises:
            CamlibValueError: not one picture for each image explained, pictures of different sizes, or signals,
                which :meth:`plot` draws.
        """
        if self.dims == 1:
            raise CamlibValueError(
                f"maps {tuple(self.maps.shape)} are of signals, which are no pictures to lay a heatmap over; "
                "explanation.plot(signals) draws each before its heatmap"
            )
        pictures = read(self.dims, images, len(self))
        size = common_size(pictures)
        return lay(pictures, self.heatmaps(size).reshape(len(pictures), -1, *size), colormap, alpha).reshape(
            *self.scores.shape, *size, 3
        )

    def plot(
        self,
        images: Any,
        class_names: Sequence[str] | None = None,
        colormap: Any = DEFAULT_COLORMAP,
        alpha: float | str = 0.5,
    ) -> Figure:
        """Draw original, heatmap and overlay side by side, a row for each image and class, with a colour bar.

        A volume or a video is drawn as up to eight of its frames, evenly spaced, over the same frames with their
        heatmap; a signal as lines before a background in the heatmap's colours.

        Args:
            images: as for :meth:`overlays`; signals: arrays or tensors (N, C, L) or (N, L), or a list of (C, L) or
                (L,).
            class_names: names for the class indices.
            colormap: as for :meth:`overlays`.
            alpha: as for :meth:`overlays`.

        Returns:
            A matplotlib figure, not shown.
        """
        source = f"{self.method} at {self.layer}" if self.layer else self.method
        return draw(self.dims, self._rows(images, class_names), Style(colormap, alpha, source))

    def _rows(self, images: Any, class_names: Sequence[str] | None) -> list[FigureRow]:
        """A row of the figure for each image and class."""
        rows = []
        for picture, one in zip(read(self.dims, images, len(self)), self, strict=True):
            size = picture.shape[: self.dims]
            heatmaps = one.heatmaps(size).reshape(-1, *size).detach().cpu().numpy()
            empty = one.degenerate.flatten().tolist()
            rows += [
                FigureRow(picture, heatmap, one.title(k, class_names), empty[k]) for k, heatmap in enumerate(heatmaps)
            ]
        return rows

    def title(self, k: int = 0, class_names: Sequence[str] | None = None) -> str:
        """Return what map ``k`` of the first image explains, and the score, if it explains one.

        Raises:
            CamlibTypeError: ``class_names`` is a single string.
            CamlibValueError: the class has no name.
        """
        what, score = explained(self.target, self.class_agnostic, class_names, k), float(self.scores[0].flatten()[k])
        if self.class_agnostic or math.isnan(score):
            return what
        return f"{what}: score {score:.2f}" if isinstance(self.target, Tensor) else f"{what}: {score:.2f}"

    def to(self, *args: Any, **kwargs: Any) -> Explanation:
        """Return the explanation with every tensor moved or cast as by ``Tensor.to``; indices stay integers."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else tensor.to(moved.device)  # bfloat16 has no 257

        return self._map(move)

    def cpu(self) -> Explanation:
        """Return the explanation on the CPU."""
        return self.to("cpu")

    def numpy(self) -> NDArray[Any]:
        """Return the maps as an array; bfloat16, which NumPy lacks, as float32."""
        return files.as_array(self.maps)

    @staticmethod
    def cat(explanations: Sequence[Explanation]) -> Explanation:
        """Join explanations of the same method, layer and kind of target along the images.

        Outputs are joined if they are tensors, or lists with an entry for each image; otherwise the result has none.

        Raises:
            CamlibValueError: nothing to join, or they do not go together.
        """
        if not explanations:
            raise CamlibValueError("nothing to join: explanations is empty")
        first = explanations[0]
        for other in explanations[1:]:
            for (name, one), another in zip(_kind(first).items(), _kind(other).values(), strict=True):
                if one != another:
                    raise CamlibValueError(f"explanations differ in {name}: {one!r} and {another!r}")

        def join(get: Any) -> Any:
            parts = [get(explanation) for explanation in explanations]
            return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]

        outputs: Any = None
        if isinstance(first.outputs, Tensor):
            outputs = join(lambda e: e.outputs)
        elif _per_image(first):
            outputs = [entry for explanation in explanations for entry in explanation.outputs]
        layers = {name: torch.cat([e.layers[name] for e in explanations]) for name in first.layers}
        return dataclasses.replace(
            first,
            maps=join(lambda e: e.maps),
            scores=join(lambda e: e.scores),
            target=join(lambda e: e.target),
            outputs=outputs,
            layers=layers,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the explanation to an ``.npz`` file of plain arrays: no pickle, outputs only if a tensor."""
        tensors = {"maps": self.maps, "scores": self.scores, "target": self.target, "outputs": self.outputs}
        tensors |= {f"layers/{name}": maps for name, maps in self.layers.items()}
        header = {name: getattr(self, name) for name in ("method", "layer", "input_size", "extent", "class_agnostic")}
        header["target"] = self.target if isinstance(self.target, str) else None
        files.save(path, {name: one for name, one in tensors.items() if isinstance(one, Tensor)}, header)

    @staticmethod
    def load(path: str | PathLike[str]) -> Explanation:
        """Read what :meth:`save` wrote, onto the CPU. Nothing is unpickled.

        Raises:
            CamlibValueError: the file is not one of these.
        """
        return files.load(path, Explanation._from_file)

    @staticmethod
    def _from_file(tensors: dict[str, Tensor], header: dict[str, Any]) -> Explanation:
        layers = {name: maps for name, maps in tensors.items() if name.startswith("layers/")}
        return Explanation(
            maps=tensors["maps"],
            scores=tensors["scores"],
            outputs=tensors.get("outputs"),
            target=tensors["target"] if header["target"] is None else header["target"],
            method=header["method"],
            layer=header["layer"],
            input_size=tuple(header["input_size"]) if header["input_size"] else None,
            layers={name.removeprefix("layers/"): maps for name, maps in layers.items()},
            extent=tuple(header["extent"]) if header.get("extent") else None,  # older files have none
            class_agnostic=bool(header.get("class_agnostic", False)),
        )

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
        rows = len(self)

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index] if tensor.dim() and tensor.shape[0] == rows else tensor

        picked = self._map(pick)
        return dataclasses.replace(picked, outputs=self.outputs[index]) if _per_image(self) else picked

    def _map(self, function: Any) -> Explanation:
        return dataclasses.replace(
            self,
            maps=function(self.maps),
            scores=function(self.scores),
            outputs=map_tensors(function, self.outputs),
            target=function(self.target) if isinstance(self.target, Tensor) else self.target,
            layers={name: function(maps) for name, maps in self.layers.items()},
        )

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
        """The first heatmaps in a row, as a PNG; of volumes and videos the middle frame, of signals a band each."""
        first = self[:SHOWN]
        heatmaps = first.heatmaps(self.input_size or tuple(self.maps.shape[-self.dims :])).flatten(0, -self.dims - 1)
        return strip(heatmaps)


def _kind(explanation: Explanation) -> dict[str, Any]:
    """What two explanations must share to be joined."""
    outputs = explanation.outputs
    return {
        "method": explanation.method,
        "layer": explanation.layer,
        "class_agnostic": explanation.class_agnostic,
        "input_size": explanation.input_size,
        "extent": explanation.extent,
        "has_class_axis": explanation.has_class_axis,
        "map shape": tuple(explanation.maps.shape[1:]),
        "target": explanation.target if isinstance(explanation.target, str) else "class indices",
        "layers": {name: tuple(maps.shape[1:]) for name, maps in explanation.layers.items()},
        "output shape": tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else None,
        "outputs": "a list with an entry for each image" if _per_image(explanation) else "another kind",
    }


def _per_image(explanation: Explanation) -> bool:
    """Whether the outputs are a list with an entry for each image, as detectors return it.

    A list of tensors is one of heads instead, each a batch.
    """
    outputs = explanation.outputs
    return (
        isinstance(outputs, list)
        and len(outputs) == len(explanation)
        and not any(isinstance(entry, (Tensor, list, tuple)) for entry in outputs)
    )


_normalize = normalize  # the method's argument has the same name
