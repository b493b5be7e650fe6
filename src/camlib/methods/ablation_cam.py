"""Ablation-CAM (Desai and Ramaswamy 2020, https://openaccess.thecvf.com/content_WACV_2020/html/Desai_Ablation-CAM)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.methods.arithmetic import check_alike, check_tensor, divided, over_channels
from camlib.methods.base import Layer, LayerMethod
from camlib.methods.tails import tail_of, with_changed_grid
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass


def ablation_cam(activations: Tensor, score: Tensor, ablated: Tensor) -> Tensor:
    r"""Weight each channel by the share of the score that is lost without it: :math:`\sum_k \frac{s - s_k}{|s|} A_k`.

    This is equation 3 of the paper for positive s. A negative s would invert the map, so the divisor is the magnitude
    of s.

    Args:
        activations: (N, C, ...).
        score: (N,), s.
        ablated: (N, C), the scores :math:`s_k` with channel k set to zero.

    Returns:
        (N, ...), signed; zero for images whose score is zero.

    Example:
        >>> import camlib, torch
        >>> one, other = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[1.0, 5.0]])
        >>> camlib.functional.ablation_cam(one, torch.tensor([4.0]), other)
        tensor([[[ 0.7500, -0.2500]]])
    """
    check_alike(activations)
    check_tensor("score", score, "(N,)", activations, 1)
    check_tensor("ablated", ablated, "(N, C)", activations, 2)
    return over_channels(divided(score[:, None] - ablated, score[:, None].abs()), activations)


class AblationCAM(LayerMethod):
    """Ablation-CAM: a channel's weight is how much the score falls without it. Needs no gradients.

    See :func:`camlib.functional.ablation_cam` for the equation; Desai and Ramaswamy 2020,
    https://doi.org/10.1109/WACV45572.2020.9093360. A channel is set to zero at all positions of the grid; class tokens
    keep its value.

    For any number K of classes, ``N`` single-image forward passes, and ``N + N C`` single-image passes of the tail.
    Channels that are zero everywhere need none. The peak memory is that of ``chunk_size`` copies of an image's
    features with the activations of the tail, regardless of N and C, plus the scores (N, C, K); the unchanged features
    run through the tail N at a time. If the tail needs more of the network than the layer's output (inside a residual
    or dense block), all of these passes run the whole network, and a warning says so. Under autocast the tail runs in
    full precision: in half precision, rounding hides the effect of a single channel.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.AblationCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "ablation_cam"
    needs_gradients: ClassVar[bool] = False
    compiles: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        layer: Layer = None,
        *,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size, progress)

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :func:`camlib.functional.ablation_cam`, for each class."""
        activations, features = forward_pass.activations(layer), forward_pass.features[layer]
        tail, score = tail_of(forward_pass, layer, "Ablation-CAM", "channel")
        image, channel = _alive(activations, everything=forward_pass.checks.recorded)
        if not len(image):
            return forward_pass.repeated(torch.zeros_like(activations[:, 0]))

        def outputs(rows: slice) -> object:
            def ablate(grids: Tensor) -> None:
                grids[torch.arange(len(grids), device=grids.device), channel[rows]] = 0

            copies = features.index_select(0, image[rows])
            return tail(with_changed_grid(forward_pass, layer, copies, ablate), image[rows])

        scores = forward_pass.perturbed(self.name, self.chunks).of_outputs(image, outputs)
        table = score[:, None].expand(*activations.shape[:2], *score.shape[1:]).clone()
        table[image, channel] = scores
        if table.dim() == 2:
            return ablation_cam(activations, score, table)
        of_classes = zip(score.unbind(1), table.unbind(2), strict=True)
        return forward_pass.stacked([ablation_cam(activations, one, lost) for one, lost in of_classes])


def _alive(activations: Tensor, everything: bool) -> tuple[Tensor, Tensor]:
    """Each channel that is not zero everywhere, or each channel: its image and its number."""
    images, channels = activations.shape[:2]
    if everything:
        number = torch.arange(images * channels, device=activations.device)
        return number // channels, number % channels
    image, channel = activations.flatten(2).any(2).nonzero().unbind(1)
    return image, channel
