"""Scores of dense outputs: the region that a segmentation network gives a category to."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs.outputs import main_tensor
from camlib.targets.base import Target, check_same_images, image_list, settled
from camlib.targets.indices import image_indices, integers, two_class_logits


class Region(Target):
    r"""The mean logit of a category over a region R of a segmentation: :math:`\sum_{ij \in R} y_{c,ij} / |R|`.

    Outputs are logits (rows, C, H, W), or with fewer or more axes behind C for signals and volumes; of a mapping or a
    dataclass "logits" (Hugging Face) or "out" (torchvision) is taken. With the single channel y of a binary network
    category 1 is y and category 0 is -y.

    Args:
        category: an int, one int per image, or (N, K) ints for K maps of each image.
        mask: (H, W) or (N, H, W) bool, at the outputs' resolution; None for the region where the clean outputs
            predict the category (argmax; with a single channel, where the sign of the logit is the category's).

    Raises:
        CamlibTypeError: the category is no int, the mask is not of bools, or the outputs are not dense.
        CamlibValueError: the mask has another resolution than the outputs, or the region of an image is empty.

    Example:
        >>> import camlib, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> right = torch.zeros(14, 14, dtype=torch.bool)
        >>> right[:, 7:] = True
        >>> cam = camlib.GradCAM(network, layer="1")
        >>> cam(torch.rand(2, 3, 16, 16), camlib.targets.Region(1, right)).target
        'region of category 1'
    """

    spatial = True

    def __init__(self, category: Any, mask: Any = None) -> None:
        self._category = integers(category, "category")
        self._mask = mask
        self._region: Tensor | None = None  # (N, K, H, W) bool
        self._channels: Tensor | None = None  # (N, K)

    @property
    def resolved(self) -> str:
        """The region's name; with the category, if all images share it."""
        return "region" if self._category.dim() else f"region of category {int(self._category)}"

    def fixed(self, outputs: Any) -> Self:
        """Return the target with the region of each image settled."""
        logits = _dense_logits(outputs).detach()
        channels = image_indices(self._category, len(logits), logits.shape[1], "category").to(logits.device)
        fixed = copy.copy(self)
        fixed._channels = channels.reshape(len(logits), -1)
        if self._region is None:
            fixed._region = self._regions(logits, fixed._channels)
        else:
            check_same_images(self, self._region, len(logits))
        return fixed

    def mirrored(self, width: int) -> Self:
        """Return the target with its settled region mirrored."""
        mirrored = copy.copy(self)
        mirrored._region = settled(self._region, self).flip(-1)
        return mirrored

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the mean logits, (rows,) or (rows, K); float32 for outputs in half precision."""
        region = settled(self._region, self)[image_index]
        channels = settled(self._channels, self)[image_index]
        logits = _dense_logits(outputs)
        if logits.shape[2:] != region.shape[2:]:
            raise CamlibValueError(
                f"the region was settled on outputs of {tuple(region.shape[2:])}, and these are of "
                f"{tuple(logits.shape[2:])}; give inputs of one size"
            )
        of_category = logits[torch.arange(len(logits), device=logits.device)[:, None], channels]
        dtype = torch.promote_types(logits.dtype, torch.float32)  # float16 cannot hold the sum over a picture
        sums = of_category.masked_fill(~region, 0).flatten(2).sum(2, dtype=dtype)
        means = sums / region.flatten(2).sum(2)
        return means if self._category.dim() == 2 else means.squeeze(1)

    def _regions(self, logits: Tensor, channels: Tensor) -> Tensor:
        if self._mask is None:
            region = logits.argmax(1, keepdim=True) == channels.view(*channels.shape, *[1] * (logits.dim() - 2))
        else:
            region = self._given_mask(logits).expand(-1, channels.shape[1], *logits.shape[2:])
        empty = ~region.flatten(2).any(2)
        if bool(empty.any()):
            category = channels[empty].unique().tolist()
            why = f"category {category} is predicted nowhere" if self._mask is None else "the mask is empty"
            raise CamlibValueError(
                f"{why} in {image_list(empty)}, so there is no region; choose a category that the model predicts "
                "there, or give a mask= that is not empty"
            )
        return region

    def _given_mask(self, logits: Tensor) -> Tensor:
        mask = torch.as_tensor(self._mask)
        if mask.dtype != torch.bool:
            raise CamlibTypeError(f"mask holds {mask.dtype} values; give bools, such as mask > 0.5")
        rows, size = len(logits), logits.shape[2:]
        if mask.shape not in (size, (rows, *size)):
            raise CamlibValueError(
                f"mask has shape {tuple(mask.shape)}, and the outputs {tuple(logits.shape)}; give {tuple(size)} or "
                f"{(rows, *size)}: resize it, say by torch.nn.functional.interpolate(mask[None, None].float(), "
                f"{tuple(size)})[0, 0] > 0.5"
            )
        return mask.to(logits.device).expand(rows, *size)[:, None]


def _dense_logits(outputs: Any) -> Tensor:
    """Return logits (rows, C, ...) with at least one axis behind C, and at least two channels."""
    logits = main_tensor(outputs, ("logits", "out"))
    if logits is None or logits.dim() < 3 or not logits.is_floating_point():
        kind = type(outputs).__name__ if logits is None else f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise CamlibTypeError(
            f"Region needs logits (rows, C, H, W), or a mapping with them as 'out' or 'logits'; the model returns "
            f"{kind}. Pass forward= to pick them"
        )
    return two_class_logits(logits)
