"""RISE (Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import positive_int, positive_number
from camlib.inputs.noise import own_generator
from camlib.methods.base import Method, Reads
from camlib.methods.masks import Masks, RandomMasks, mean_under, scores_under
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass


def rise(masks: Masks, scores: Tensor) -> Tensor:
    r"""Average the score of the masks that show a pixel, less the average of all.

    .. math::
        \frac{\sum_i (s_i - \bar s) m_i}{\sum_i m_i} = \frac{\sum_i s_i m_i}{\sum_i m_i} - \bar s

    Equation 5 of the paper, the drawn masks taken for all there are, less a constant that no heatmap shows. In its
    place the paper's equation 6 divides by the masks' expectation: the same in the limit, but there a constant that is
    added to the score adds the unevenness of the masks to the map. The paper's score is the probability:
    :class:`camlib.targets.Probability`.

    Args:
        masks: (M, ...) in [0, 1], or :class:`camlib.methods.masks.RandomMasks`.
        scores: (N, M), of each image through each mask.

    Returns:
        (N, ...), signed; zero where no mask shows the pixel.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.rise(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 4.0]]))
        tensor([[0., 1.]])
    """
    return mean_under(masks, scores - scores.mean(1, keepdim=True))


class RISE(Method):
    r"""RISE: random masks; a pixel counts as much as the score is higher where it can be seen. No gradients.

    See :func:`camlib.functional.rise` for the equation; Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421. A mask
    is a grid of ``cells`` by ``cells`` zeros and ones, upsampled linearly to one cell more than the picture has, and
    cut out of that at random. Every image gets the same masks. The paper explains the probability, and divides
    otherwise: see there.

    ``N + N samples`` forward passes of an image, for any number K of classes. At the peak there are ``chunk_size``
    masked images and what their forward pass holds, or 64 masks, whatever N and ``samples`` are; besides, scores
    (N, samples, K). The maps (N, ...) have the input's resolution.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: none; the whole network is looked at from outside.
        samples: how many masks; the paper takes 4000 for VGG-16 and 8000 for ResNet-50.
        cells: of a mask, along each side.
        probability: of a cell to be seen.
        generator: for the masks; without one, every call draws the same.
        relu: whether to cut off what is below the mean score; the paper does not.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``samples`` or ``cells`` is not a positive int, or ``probability`` not
            between 0 and 1.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.RISE(torchvision.models.resnet18(num_classes=4).eval(), samples=20)
        >>> cam(torch.rand(2, 3, 64, 64), camlib.targets.Probability()).maps.shape
        torch.Size([2, 64, 64])
    """

    name: ClassVar[str] = "rise"
    reads: ClassVar[Reads] = "inputs"
    needs_gradients: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        layer: Any = None,
        *,
        samples: int = 4000,
        cells: int = 7,
        probability: float = 0.5,
        generator: torch.Generator | None = None,
        relu: bool = False,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, relu=relu, **options)
        self.chunks = Chunks(chunk_size, progress)
        self.samples = positive_int("samples", samples)
        self.cells = positive_int("cells", cells)
        self.probability = positive_number("probability", probability, below=1)
        self.generator = generator

    @property
    def forward_passes(self) -> int:
        """One of each image as it is, and one under each mask."""
        return 1 + self.samples

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.rise`, for each class."""
        images = forward_pass.inputs.images
        masks = RandomMasks(
            tuple(images.shape[2:]),
            self.samples,
            self.cells,
            self.probability,
            own_generator(self.generator),
            images,
        )
        of_classes = scores_under(forward_pass.perturbed(self.name, self.chunks), masks, torch.mul)
        return {"": forward_pass.stacked([rise(masks, scores) for scores in of_classes])}
