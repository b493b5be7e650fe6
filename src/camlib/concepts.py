"""Deep feature factorisation: the concepts that a set of images shares (Collins et al. 2018)."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibValueError, check_class_names, positive_int
from camlib.imaging import as_pictures, normalize
from camlib.imaging.extent import Covered, resized_to_input
from camlib.imaging.resizing import checked_grid
from camlib.inputs.noise import own_generator
from camlib.layers.layouts import with_grid
from camlib.methods.base import Layer, one_pass
from camlib.methods.eigen_cam import EigenCAM
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.precision import restored
from camlib.passes.tail import replaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEPS = 4
"""Sweeps over the columns of a factor in each iteration of the factorisation."""


CELL = 2.6
"""Width of a picture in the figure, in inches."""
WIDEST = 32
"""Most characters in a line of the legend."""
FAINTEST = 0.3
"""The tint's opacity follows the concept's strength; below this fraction of its maximum the tint is transparent."""


@dataclass(frozen=True, eq=False)
class Concepts:
    """What :func:`camlib.deep_feature_factorization` found.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> found = camlib.deep_feature_factorization(model, torch.rand(3, 3, 64, 64), concepts=2)
        >>> found.heatmaps().shape
        torch.Size([3, 2, 64, 64])
    """

    maps: Tensor
    """(N, K, h, w), not negative; how strongly each concept is present at each position, on one scale for all."""
    vectors: Tensor
    """(K, C), not negative; each concept's direction in the layer's features, of unit length; zero if fewer concepts
    explain the features completely."""
    scores: Tensor
    """(N, K, classes), the outputs for each image when its features are replaced by a single concept. Anything that
    bypasses the layer's grid, such as a class token or a skip connection, is unchanged. The logit y of a binary network
    counts as the two classes -y and y."""
    error: float
    """The norm of what the factorisation leaves unexplained, divided by the norm of the features."""
    layer: str
    """Name of the layer."""
    input_size: tuple[int, ...] | None
    """(H, W) of the input, or None if it held no images."""
    covered: Covered | None = None
    """Which part of the images the layer covers; None for the whole."""

    def __repr__(self) -> str:
        return (
            f"Concepts({self.vectors.shape[0]} at {self.layer!r}: maps {tuple(self.maps.shape)}, scores "
            f"{tuple(self.scores.shape)}, {self.error:.1%} of the features unexplained)"
        )

    def heatmaps(self, size: tuple[int, ...] | None = None) -> Tensor:
        """Return the maps at the input's resolution, or another, each concept divided by its maximum over all images.

        A concept that is equally strong everywhere, in all images, becomes zero: it locates nothing.

        Raises:
            CamlibValueError: ``size`` is invalid, or it is missing and the input held no images.
        """
        size = self.input_size if size is None else size
        if size is None:
            raise CamlibValueError("the inputs held no images, so their size is unknown; give size=(height, width)")
        extent, origin = (None, None) if self.covered is None else (self.covered.extent, self.covered.origin)
        resized = resized_to_input(self.maps, checked_grid(size, self.maps.dim() - 2), extent, self.input_size, origin)
        together = resized.transpose(0, 1)  # (K, N, H, W): each concept has one scale for all images
        flat = together.reshape(together.shape[0], -1, together.shape[-1])
        return normalize(flat, "max").reshape(together.shape).transpose(0, 1)

    def plot(self, images: Any, class_names: Sequence[str] | None = None) -> Figure:
        """Draw each picture next to its concepts, each in its own colour, with a legend of the classes they support.

        Args:
            images: the pictures, as for :meth:`camlib.Explanation.overlays`.
            class_names: names for the class indices.

        Returns:
            A matplotlib figure, not shown.
        """
        return plot_concepts(self, images, class_names)


def deep_feature_factorization(
    model: nn.Module,
    images: Any,
    concepts: int = 4,
    layer: Layer = None,
    *,
    forward: Any = None,
    iterations: int = 200,
    generator: torch.Generator | None = None,
) -> Concepts:
    r"""Factor the features of a set of images into concepts that they share.

    The activations at all positions of all images form a matrix A (N h w x C), with negative values set to zero. It is
    factored into non-negative parts, :math:`\min_{W, V \ge 0} |A - W V|^2`: the rows of V are the concepts, the columns
    of W say where each of them is. Collins, Achanta and Süsstrunk 2018, https://arxiv.org/abs/1806.10206. Each concept
    is then scored: the tail runs with the product of its column and row, :math:`W_k V_k`, in place of A.

    ``1 + concepts`` forward passes, no gradients; finding the layer takes one more.

    Args:
        model: as for :class:`camlib.methods.Method`.
        images: what the model takes; at least one image, preferably several that have something in common.
        concepts: K, the number of concepts.
        layer: one layer, by name or module; None to find it.
        forward: as for :class:`camlib.methods.Method`; the outputs must be class scores (N, classes).
        iterations: the number of iterations of alternating least squares.
        generator: for the starting point; without one, every call starts from the same point.

    Returns:
        The concepts, the strongest first.

    Raises:
        CamlibValueError: ``concepts`` or ``iterations`` is less than 1, there are several layers, there are more
            concepts than positions or channels, or no feature is positive.
        CamlibTypeError: the outputs are not class scores.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> found = camlib.deep_feature_factorization(model, torch.rand(3, 3, 64, 64), concepts=2)
        >>> found.maps.shape, found.vectors.shape, found.scores.shape
        (torch.Size([3, 2, 2, 2]), torch.Size([2, 512]), torch.Size([3, 2, 4]))
    """
    for what, count in (("concepts", concepts), ("iterations", iterations)):
        positive_int(what, count)
    reader = EigenCAM(model, layer, forward=forward)
    with one_pass([reader], images, None) as (forward_pass,):
        if len(forward_pass.layers) != 1:
            raise CamlibValueError(f"concepts need exactly one layer, got {' and '.join(forward_pass.layers)}")
        (name,) = forward_pass.layers
        features = forward_pass.activations(name).relu()
        matrix = features.movedim(1, -1).reshape(-1, features.shape[1])
        if concepts > min(matrix.shape) or not bool(matrix.any()):
            raise CamlibValueError(
                f"layer {name!r} gives {matrix.shape[0]} positions of {matrix.shape[1]} channels"
                f"{'' if matrix.any() else ', none of them positive'}, too few for {concepts} concepts"
            )
        strengths, vectors = nonnegative_factors(matrix, concepts, iterations, own_generator(generator))
        error = float((matrix - strengths @ vectors).norm() / matrix.norm())
        maps = strengths.reshape(len(features), *features.shape[2:], concepts).movedim(-1, 1)
        scores = []
        for k in range(concepts):
            alone = maps[:, k, None] * vectors[k].reshape(-1, *[1] * (maps.dim() - 2))
            scores.append(_class_scores(forward_pass, name, alone))
    return Concepts(maps, vectors, torch.stack(scores, 1), error, name, forward_pass.size, forward_pass.covered(name))


def _class_scores(forward_pass: ForwardPass, layer: str, grid: Tensor) -> Tensor:
    """The scores (N, classes) with features (N, C, ...) on a layer's grid; tokens that are not on the grid stay."""
    network, layout = forward_pass.network, forward_pass.layout(layer)
    change = replaced(network.module, layer, lambda own: with_grid(layout, own, grid))
    with restored(forward_pass.precision), change:
        outputs = targets.two_class_logits(targets.class_logits(network.scored(forward_pass.inputs)))
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def nonnegative_factors(
    matrix: Tensor, rank: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Factor a non-negative matrix by hierarchical alternating least squares (Cichocki and Phan 2009).

    It is accelerated as in Gillis and Glineur 2012, https://arxiv.org/abs/1107.5194: several sweeps share the products
    with the matrix, which are the most expensive step.

    Args:
        matrix: (P, C), not negative.
        rank: K.
        iterations: each makes :data:`SWEEPS` sweeps over the columns of W and over the rows of V.
        generator: for the starting point.

    Returns:
        W (P, K) and V (K, C), not negative, with the longest column of W first. The rows of V have unit length; if
        fewer than K concepts explain the matrix completely, the last rows and columns may be zero.
    """
    start = (matrix.mean() / rank).sqrt()

    def drawn(*shape: int) -> Tensor:
        uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        return start * uniform.to(matrix)

    left, right = drawn(matrix.shape[0], rank), drawn(rank, matrix.shape[1])
    for _ in range(iterations):
        _improve(left, matrix @ right.T, right @ right.T)
        _improve(right.T, matrix.T @ left, left.T @ left)
    length = right.norm(dim=1)
    left, right = left * length, right / torch.where(length > 0, length, 1)[:, None]
    order = left.norm(dim=0).argsort(descending=True)
    return left[:, order], right[order]


def _improve(factor: Tensor, product: Tensor, gram: Tensor) -> None:
    """Solve in place for each column of a factor in turn, with the others fixed; negative values become zero."""
    known = (gram.diagonal() > 0).nonzero().flatten().tolist()
    for k in known * SWEEPS:
        factor[:, k] += (product[:, k] - factor @ gram[:, k]) / gram[k, k]
        factor[:, k].clamp_(min=0)


def plot_concepts(concepts: Concepts, images: Any, class_names: Sequence[str] | None) -> Figure:
    """Draw each picture and its concepts; see :meth:`camlib.concepts.Concepts.plot`."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    from camlib.plotting.figures import Figure

    check_class_names(class_names)
    count, dims = concepts.maps.shape[1], concepts.maps.dim() - 2
    if dims != 2:
        raise CamlibValueError(
            f"the maps {tuple(concepts.maps.shape)} are not of images (N, C, H, W); draw concepts.heatmaps() yourself"
        )
    pictures = as_pictures(images)
    if len(pictures) != len(concepts.maps):
        raise CamlibValueError(f"{len(concepts.maps)} factored images need as many pictures, got {len(pictures)}")
    palette = np.array([colormaps["tab10" if count <= 10 else "tab20"](k % 20)[:3] for k in range(count)])
    resized = functools.cache(concepts.heatmaps)  # pictures of one size share them
    height, width = pictures[0].shape[:2]
    figure = Figure(
        figsize=(2 * CELL + 3.4, max(2.6, len(pictures) * (CELL * height / width + 0.2))), layout="constrained"
    )
    axes = figure.subplots(len(pictures), 2, squeeze=False)
    for n, (line, picture) in enumerate(zip(axes, pictures, strict=True)):
        heatmaps = resized(picture.shape[:2])[n].cpu().numpy()
        strongest = heatmaps.argmax(0)
        strength = heatmaps.max(0)
        opacity = (np.clip((strength - FAINTEST) / (1 - FAINTEST), 0, 1) * 0.7)[..., None]
        line[0].imshow(picture)
        line[1].imshow((1 - opacity) * picture / 255 + opacity * palette[strongest])
        for ax in line:
            ax.set_axis_off()
    axes[0][0].set_title("picture", fontsize=9)
    axes[0][1].set_title("its strongest concept", fontsize=9)
    handles = [Patch(color=palette[k], label=_label(concepts, k, class_names)) for k in range(count)]
    figure.legend(
        handles=handles,
        loc="outside right upper",
        fontsize=8,
        frameon=False,
        title=f"{concepts.layer}: scores of each concept alone",
        title_fontsize=9,
    )
    return figure


def _label(concepts: Concepts, k: int, class_names: Sequence[str] | None) -> str:
    """The concept's number and the class for which it alone gives the highest score, averaged over the images."""
    mean = concepts.scores[:, k].mean(0)
    best = int(mean.argmax())
    if class_names is not None and best >= len(class_names):
        raise CamlibValueError(f"class_names has {len(class_names)} names, but class {best} scored highest")
    name = f"class {best}" if class_names is None else class_names[best]
    return textwrap.fill(f"concept {k}: {name} ({float(mean[best]):.1f})", WIDEST)
