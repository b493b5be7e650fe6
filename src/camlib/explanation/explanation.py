"""The result of a call: the maps, and what they explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibTypeError
from camlib.explanation import files
from camlib.explanation.fields import check_fields
from camlib.explanation.joining import joined, sliced
from camlib.explanation.shown import Shown
from camlib.imaging.extent import Extent
from camlib.inputs.nested import map_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import camlib


@dataclass(frozen=True, eq=False)
class Explanation(Shown):
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
    pictures: Sequence[Any] | None = None
    """N pictures (H, W, 3), at their own resolution and without what the network did not see of them. Only
    :func:`camlib.explain` knows them. They are not saved."""
    class_names: Sequence[str] | None = None
    """Names of the classes by index, if :func:`camlib.explain` knows them."""
    reason: str = ""
    """Why :func:`camlib.explain` chose the method, if it did."""

    def __post_init__(self) -> None:
        check_fields(vars(self))

    def report(self, images: Any = None, **options: Any) -> camlib.reporting.Report:
        """Return a page of the explanation, as :func:`camlib.report` makes it.

        Args:
            images: the pictures; None for those of the explanation.
            **options: of :func:`camlib.report`. Class names are those of the explanation, unless others are given.

        Raises:
            CamlibTypeError: the explanation has no pictures and none are given.
            CamlibValueError: as for :func:`camlib.report`.
            CamlibRuntimeError: jinja2 is not installed.
        """
        import camlib  # the page is made above this package, which knows only its public name

        return camlib.report(self, self._given(images), **{"class_names": self.class_names} | options)

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

        Pictures are not written.

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
