"""Score-CAM (Wang et al. 2020), SS-CAM (Wang et al. 2020) and IS-CAM (Naidu et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from camlib import targets
from camlib.errors import CamlibValueError, positive_int
from camlib.imaging.extent import Covered
from camlib.imaging.normalization import is_constant
from camlib.inputs.noise import check_noise, normal, own_generator
from camlib.methods.arithmetic import check_alike, check_tensor, over_channels
from camlib.methods.base import Layer, LayerMethod
from camlib.methods.masks import channel_masks
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass

Variation = Callable[[Tensor, Tensor], Tensor]


Weights = Literal["softmax", "probability"]
"""What the weights of the channels are."""


def score_cam(activations: Tensor, scores: Tensor, weights: Weights = "softmax") -> Tensor:
    r"""Weight each channel by the score of the image masked by it: :math:`\sum_k \operatorname{softmax}_k(s_k) A_k`.

    The paper subtracts the score of a baseline image from each :math:`s_k`, which cancels in the softmax.

    Args:
        activations: (N, C, ...).
        scores: (N, C), the scores of the image with each channel's mask applied; -inf for channels to ignore.
        weights: "softmax" over the channels; or "probability" if the scores are probabilities, which weight the
            channels as they are: :math:`\sum_k s_k A_k`.

    Returns:
        (N, ...), signed where activations are.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.score_cam(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[3.0, 3.0]]))
        tensor([[[0.5000, 0.5000]]])
    """
    check_alike(activations)
    check_tensor("scores", scores, "(N, C)", activations, 2)
    _check(weights)
    of_channels = scores.softmax(1) if weights == "softmax" else scores.masked_fill(scores == -torch.inf, 0)
    return over_channels(of_channels, activations)


def _check(weights: object) -> None:
    if not isinstance(weights, str) or weights not in get_args(Weights):
        raise CamlibValueError(f'weights must be "softmax" or "probability", got {weights!r}')


class ScoreCAM(LayerMethod):
    r"""Score-CAM: a channel's weight is the score of the image masked by it. Needs no gradients.

    The score of channel k is :math:`s_k = s(x \circ \operatorname{minmax}(\operatorname{up}(A_k)))`: A_k is upsampled
    to the image, normalised to [0, 1], and multiplied with the image; a constant channel's mask is 0. See
    :func:`camlib.functional.score_cam` for the map; Wang et al. 2020, https://arxiv.org/abs/1910.01279. In the authors'
    code a channel's weight is the probability of the class for the masked image, without a softmax over the channels:
    ``weights="probability"``.

    ``N + N C`` single-image forward passes for any number K of classes, none of them of a baseline image; the constant
    channels of an image share one. The peak memory is that of a forward pass of ``chunk_size`` masked images,
    regardless of C and N, plus the scores (N, C, K). On a CPU masked images have the channels-last memory layout,
    which is faster. Under autocast the passes run in its precision.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        channels: None to use all channels. A number uses only that many channels of each image, those with the highest
            variance over positions, and ignores the others: ``N + N channels`` passes, an approximation.
        weights: as for :func:`camlib.functional.score_cam`. With "probability", the score of a class is its softmax or
            sigmoid; other scores stay as they are and must not be negative.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``channels`` is neither None nor a positive int, or ``weights`` is
            unknown; when called, if scores that are to be weights are negative.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.ScoreCAM(torchvision.models.resnet18(num_classes=4).eval(), channels=16)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "score_cam"
    needs_gradients: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        layer: Layer = None,
        *,
        channels: int | None = None,
        weights: Weights = "softmax",
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size, progress)
        self.channels = None if channels is None else positive_int("channels", channels)
        _check(weights)
        self.weights = weights
        self.samples = 1

    @property
    def forward_passes(self) -> int | None:
        """None: the number depends on how many channels the layer has."""
        return None

    def about(self, forward_pass: ForwardPass) -> ForwardPass:
        """Return the pass with the probabilities of its classes, if these are the weights."""
        target = forward_pass.target
        if self.weights == "softmax" or not isinstance(target, targets.BoundLogits):
            return forward_pass
        return forward_pass.about(targets.Confidence(target.classes).bind(forward_pass.outputs.raw))

    def variation(self, like: Tensor) -> Variation:
        """Return a function of masks (rows, ...) and their sample numbers (rows,) that varies masks between samples.

        Args:
            like: a mask that gives the shape, device and type.
        """
        return lambda masks, sample: masks

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :func:`camlib.functional.score_cam`, for each class."""
        activations = forward_pass.activations(layer)
        constant = is_constant(activations.flatten(2), 1)
        looked_at = self._looked_at(activations)
        shared = constant & looked_at  # their mask is zero: one row for all of an image's constant channels
        first = shared & (shared.cumsum(1) == 1)
        rows = (looked_at & ~shared | first).nonzero()
        scores = self._scores(forward_pass, activations, rows, forward_pass.covered(layer))
        table = scores.new_full((*constant.shape, *scores.shape[1:]), -torch.inf)
        table[rows[:, 0], rows[:, 1]] = scores
        of_first = table[torch.arange(len(table), device=table.device), first.int().argmax(1)]
        table = torch.where(shared.reshape(*shared.shape, *[1] * (table.dim() - 2)), of_first[:, None], table)
        of_classes = table.unbind(2) if table.dim() == 3 else (table,)
        if self.weights == "probability":
            forward_pass.checks.never(((scores < 0) & scores.isfinite()).any(), _negative)
        return forward_pass.stacked([score_cam(activations, one, self.weights) for one in of_classes])

    def _looked_at(self, activations: Tensor) -> Tensor:
        """(N, C) bool: which channels are used."""
        variances = activations.flatten(2).var(2, correction=0)
        if self.channels is None or self.channels >= variances.shape[1]:
            return torch.ones_like(variances, dtype=torch.bool)
        highest = variances.topk(self.channels, 1).indices
        return torch.zeros_like(variances, dtype=torch.bool).scatter_(1, highest, True)

    def _scores(self, forward_pass: ForwardPass, activations: Tensor, rows: Tensor, covered: Covered | None) -> Tensor:
        """The score (rows,) or (rows, K) of each pair (image, channel), averaged over the samples of its mask."""
        image, channel = (each.repeat_interleave(self.samples) for each in rows.unbind(1))
        sample = torch.arange(self.samples, device=rows.device).repeat(len(rows))
        size = tuple(forward_pass.inputs.images.shape[2:])
        varied = self.variation(activations.new_empty(size))

        def through(images: Tensor, chunk: slice) -> Tensor:
            masks = channel_masks(activations[image[chunk], channel[chunk]], size, covered)
            return images * varied(masks, sample[chunk])[:, None].to(images.dtype)

        scores = forward_pass.perturbed(self.name, self.chunks).of_images(image, through)
        return scores.reshape(-1, self.samples, *scores.shape[1:]).mean(1)


def _negative() -> CamlibValueError:
    return CamlibValueError(
        'weights="probability" takes the scores as weights, and some are negative; explain a class or a probability, '
        'or leave weights at "softmax"'
    )


class SSCAM(ScoreCAM):
    r"""SS-CAM: Score-CAM with the score of each channel averaged over noisy masks.

    .. math::
        s_k = \frac{1}{n} \sum_{j=1}^{n} s(x \circ (M_k + \sigma \epsilon_j)), \quad \epsilon_j \sim \mathcal{N}(0, 1)

    with Score-CAM's mask M_k; n and sigma are ``samples`` and ``sigma``. The noise is drawn for each pixel, and is the
    same for every channel and image. Wang et al. 2020, https://arxiv.org/abs/2006.14255.

    ``N + N C samples`` single-image forward passes; otherwise like :class:`ScoreCAM`.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        samples: the number of noisy masks for each channel.
        sigma: standard deviation of the noise; masks are in [0, 1].
        generator: for the noise; without one, every call draws the same noise.
        **options: as for :class:`ScoreCAM`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.SSCAM(torchvision.models.resnet18(num_classes=4).eval(), samples=2, channels=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "ss_cam"
    stochastic: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        layer: Layer = None,
        *,
        samples: int = 35,
        sigma: float = 2.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        check_noise(samples, sigma)
        self.samples = samples
        self.sigma = sigma
        self.generator = generator

    def variation(self, like: Tensor) -> Variation:
        """Return a function that adds each sample's noise."""
        noise = self.sigma * normal((self.samples, *like.shape), own_generator(self.generator), like)
        return lambda masks, sample: masks + noise[sample]


class ISCAM(ScoreCAM):
    r"""IS-CAM: Score-CAM with the score of each channel averaged while its mask fades in.

    .. math:: s_k = \frac{1}{n} \sum_{j=1}^{n} s(x \circ \tfrac{j}{n} M_k)

    with Score-CAM's mask M_k; n is ``samples``. No coefficient is above 1 (torchcam adds them up, to 5.5 for ten
    samples). Naidu et al. 2020, https://arxiv.org/abs/2010.03023.

    ``N + N C samples`` single-image forward passes; otherwise like :class:`ScoreCAM`.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        samples: the number of steps.
        **options: as for :class:`ScoreCAM`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.ISCAM(torchvision.models.resnet18(num_classes=4).eval(), samples=2, channels=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "is_cam"

    def __init__(self, model: Any, layer: Layer = None, *, samples: int = 10, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.samples = positive_int("samples", samples)

    def variation(self, like: Tensor) -> Variation:
        """Return a function that multiplies masks by each step's coefficient."""
        return lambda masks, sample: masks * ((sample + 1).to(like) / self.samples).reshape(-1, *[1] * like.dim())
