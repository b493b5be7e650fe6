"""RISE (Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import positive_int, positive_number
from camlib.inputs.noise import own_generator
from camlib.methods.base import Method, Reads
from camlib.methods.masks import Masks, RandomMasks, check_masked, mean_under, scores_under
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass


def rise(masks: Masks, scores: Tensor) -> Tensor:
    r"""Average the score over the masks that show a pixel, minus the average over all masks.

    .. math::
        \frac{\sum_i (s_i - \bar s) m_i}{\sum_i m_i} = \frac{\sum_i s_i m_i}{\sum_i m_i} - \bar s

    This is equation 5 of the paper over the drawn masks, minus a constant that does not change the heatmap. The paper's
    equation 6 divides by the masks' expectation instead. The limit is the same, but with finitely many masks a constant
    added to the score would add the unevenness of the masks to the map. The paper's score is the probability:
    :class:`camlib.targets.Probability`.

    Args:
        masks: (M, ...) in [0, 1], or :class:`camlib.methods.masks.RandomMasks`.
        scores: (N, M), the scores of each image with each mask applied.

    Returns:
        (N, ...), signed; zero where no mask shows the pixel.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.rise(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 4.0]]))
        tensor([[0., 1.]])
    """
    check_masked(masks, scores)
    return mean_under(masks, scores - scores.mean(1, keepdim=True))


class RISE(Method):
    r"""RISE: random masks; a pixel's value is how much the score rises when the pixel is visible. Needs no gradients.

    See :func:`camlib.functional.rise` for the equation; Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421. A mask
    is a grid of ``cells`` by ``cells`` zeros and ones, upsampled linearly to one cell more than the image, and cropped
    at random. Every image gets the same masks. The paper explains the probability and uses another divisor; the
    function's docstring describes the difference.

    ``N + N samples`` single-image forward passes for any number K of classes. The peak memory is that of a forward
    pass of ``chunk_size`` masked images, or of 64 masks, regardless of N and ``samples``, plus the scores
    (N, samples, K). The maps (N, ...) have the input's resolution.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method only reads inputs and scores.
        samples: how many masks; the paper uses 4000 for VGG-16 and 8000 for ResNet-50.
        cells: the number of mask cells along each side.
        probability: the probability that a cell is visible.
        generator: for the masks; without one, every call draws the same masks.
        relu: whether to set values below the mean score to zero; the paper does not.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``samples`` or ``cells`` is not a positive int, or ``probability`` is not
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
        """One of the unchanged image, and one for each mask."""
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
