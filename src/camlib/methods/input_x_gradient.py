"""Input times gradient (Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from camlib.methods.arithmetic import check_tensor
from camlib.methods.base import Reads
from camlib.methods.pixels import PixelMethod
from camlib.passes.chunks import Chunks
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.leaf import gradient
from camlib.passes.numbers import single_or_double


def input_x_gradient(images: Tensor, gradients: Tensor) -> Tensor:
    r"""Multiply the image with its gradient, and add up the channels: :math:`\sum_c x_c \partial s / \partial x_c`.

    Args:
        images: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the images.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.input_x_gradient(torch.tensor([[[2.0], [1.0]]]), torch.tensor([[[3.0], [-1.0]]]))
        tensor([[5.]])
    """
    check_tensor("images", images, "(N, C, ...)")
    check_tensor("gradients", gradients, "(N, C, ...), the shape of the images", images)
    return (images * gradients).sum(1)


class InputXGradient(PixelMethod):
    """Input times gradient: how much each pixel adds to the score, if the network is taken as linear around the image.

    See :func:`camlib.functional.input_x_gradient` for the equation, and
    :meth:`~camlib.methods.pixels.PixelMethod.attributions` for the values of each channel; Shrikumar et al. 2016,
    https://arxiv.org/abs/1605.01713. The map is the signed sum over the channels, whose negative values are set to
    zero, like those of other methods; ``relu=False`` keeps them. For SmoothGrad (https://arxiv.org/abs/1706.03825),
    average signed maps: ``NoiseAveraging(InputXGradient(model, relu=False))``.

    The method reads no layer: the maps (N, ...) have the input's resolution, or one cell for each window of ``pool``.

    One forward and one backward pass of the whole network; K backward passes for K classes.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads the whole network.
        pool: the window whose mean is a cell of the map, in pixels: one number, or one for each side. None for a value
            of each pixel, which is noisy. Windows that reach beyond the image are averaged over the pixels inside.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``pool`` are not positive ints; when called, if it is larger than the image.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.InputXGradient(torchvision.models.resnet18(num_classes=4).eval(), pool=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 8, 8])
    """

    name: ClassVar[str] = "input_x_gradient"
    reads: ClassVar[Reads] = "input gradient"

    def pixels(self, forward_pass: ForwardPass) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """Return the product of image and gradient for each class, and how to score images that are zero."""
        leaf = forward_pass.whole_leaf
        gradients = [single_or_double(gradient(one, leaf)) for one in forward_pass.score_of_each_class]
        forward_pass.checks.finite("score", forward_pass.scores)
        for one in gradients:
            forward_pass.checks.finite("gradient at the images", one)
        image = torch.arange(forward_pass.count, device=forward_pass.device)
        passes = forward_pass.perturbed(self.name, Chunks())
        return [leaf.detach() * one for one in gradients], lambda: passes.of_images(
            image, lambda images, _: torch.zeros_like(images)
        )
