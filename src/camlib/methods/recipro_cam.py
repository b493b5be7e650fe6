"""Recipro-CAM (Byun and Lee 2022, https://arxiv.org/abs/2209.14074), also for vision transformers (2310.02588)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, boolean
from camlib.methods.arithmetic import check_tensor
from camlib.methods.base import Layer, LayerMethod
from camlib.methods.tails import tail_of, with_changed_grid
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass


def recipro_cam(scores: Tensor) -> Tensor:
    r"""Subtract the lowest score of an image: :math:`s(A \circ m_{ij}) - \min_{ab} s(A \circ m_{ab})`.

    The mask :math:`m_{ij}` is 1 at cell ij of all channels and 0 elsewhere; or a Gaussian of three cells along each
    axis, :math:`(\tfrac14, \tfrac12, \tfrac14)`, whose centre is ij. The paper also divides by the range of the
    scores, as a heatmap does.

    Args:
        scores: (N, ...), the score of each image for the mask of each cell.

    Returns:
        (N, ...), not negative.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.recipro_cam(torch.tensor([[[-1.0, 2.0], [0.0, 1.0]]]))
        tensor([[[0., 3.],
                 [1., 2.]]])
    """
    check_tensor("scores", scores, "(N, ...)", scores)
    if scores.dim() < 2 or not scores.numel():
        raise CamlibValueError(f"scores must be (N, ...), without empty axes, got {tuple(scores.shape)}")
    return scores - scores.flatten(1).amin(1).reshape(-1, *[1] * (scores.dim() - 1))


class ReciproCAM(LayerMethod):
    """Recipro-CAM: the score when only one cell of the layer keeps its features. Needs no gradients.

    See :func:`camlib.functional.recipro_cam` for the equation; Byun and Lee 2022, https://arxiv.org/abs/2209.14074.
    The paper's score is the softmax probability: :class:`camlib.targets.Probability`. In a vision transformer the class
    token keeps its features, as in ViT-Recipro-CAM, https://arxiv.org/abs/2310.02588.

    The lowest score is the map's zero, so the map does not tell evidence against a class from no evidence. If the tail
    is a mean over positions and one linear layer, the map is the signed CAM minus its lowest value, divided by the
    number of cells; there :class:`camlib.CAM` is faster, and its zero means no evidence. The maps are never negative,
    so ``relu`` has no effect.

    For any number K of classes, ``N`` single-image forward passes, and ``N + N h w`` single-image passes of the tail.
    The peak memory is that of ``chunk_size`` copies of an image's features with the activations of the tail, plus the
    scores (N, h w, K). If the tail needs more of the network than the layer's output, as for the layer that is found
    for a vision transformer, all of these passes run the whole network, and a warning says so. Under autocast the tail
    runs in full precision.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        gaussian: whether to keep the neighbours of the cell, too, with Gaussian weights, as the paper on vision
            transformers does; the map is then smoother and coarser.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``gaussian`` is not a bool; ``chunk_size`` or ``progress`` is invalid.
        CamlibTypeError: when called, if ``reshape`` copies the features.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.ReciproCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "recipro_cam"
    needs_gradients: ClassVar[bool] = False
    compiles: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        layer: Layer = None,
        *,
        gaussian: bool = False,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.gaussian = boolean("gaussian", gaussian)
        self.chunks = Chunks(chunk_size, progress)

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :func:`camlib.functional.recipro_cam`, for each class."""
        activations, features = forward_pass.activations(layer), forward_pass.features[layer]
        tail, _ = tail_of(forward_pass, layer, "Recipro-CAM", "cell")
        count, grid = len(activations), activations.shape[2:]
        image, cell = (
            index.flatten()
            for index in torch.meshgrid(
                torch.arange(count, device=activations.device),
                torch.arange(math.prod(grid), device=activations.device),
                indexing="ij",
            )
        )

        def outputs(rows: slice) -> object:
            copies = features.index_select(0, image[rows])
            masks = _masks(cell[rows], grid, self.gaussian)[:, None]
            masked = with_changed_grid(forward_pass, layer, copies, lambda grids: grids.mul_(masks))
            return tail(masked, image[rows])

        scores = forward_pass.perturbed(self.name, self.chunks).of_outputs(image, outputs)
        of_classes = scores.reshape(count, *grid, -1).unbind(-1)
        return forward_pass.stacked([recipro_cam(one) for one in of_classes])


def _masks(cells: Tensor, grid: tuple[int, ...], gaussian: bool) -> Tensor:
    """The masks (cells, *grid) of numbered cells."""
    masks = torch.ones(len(cells), *[1] * len(grid), device=cells.device)
    for axis, (size, centre) in enumerate(zip(grid, torch.unravel_index(cells, grid), strict=True)):
        apart = (torch.arange(size, device=cells.device) - centre[:, None]).abs()
        weights = (2.0 - apart).clamp(min=0) / 4 if gaussian else (apart == 0).float()
        masks = masks * weights.reshape(-1, *[size if other == axis else 1 for other in range(len(grid))])
    return masks
