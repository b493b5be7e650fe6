"""Scores of dense outputs: the mean logit of a category over a region of a segmentation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs
from camlib.inputs.links import logits_of
from camlib.targets.base import BoundTarget, Target, image_list
from camlib.targets.indices import as_tensor, described, image_indices, integers, two_class_logits


class Region(Target):
    r"""The mean logit of a category over a region R of a segmentation: :math:`\sum_{ij \in R} y_{c,ij} / |R|`.

    Outputs are logits (rows, C, H, W), or (rows, C, L) and (rows, C, D, H, W) for signals and volumes. From a mapping
    or a dataclass, "logits" (Hugging Face) or "out" (torchvision) is read. A binary network has one channel y:
    category 1 is y, and category 0 is -y.

    Args:
        category: an int, one int per image, or (N, K) ints for K maps of each image.
        mask: (H, W) or (N, H, W) bool, at the outputs' resolution; None for the region where the clean outputs
            predict the category (argmax; with a single channel, where the sign of the logit is the category's).

    Raises:
        CamlibTypeError: the category is not an int, the mask does not hold bools, or the outputs are not dense.
        CamlibValueError: the mask and the outputs differ in resolution, or the region of an image is empty.

    Example:
        >>> import camlib, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
        >>> right = torch.zeros(14, 14, dtype=torch.bool)
        >>> right[:, 7:] = True
        >>> cam = camlib.GradCAM(network, layer="1")
        >>> cam(torch.rand(2, 3, 16, 16), camlib.targets.Region(1, right)).target
        'region of category 1'
    """

    def __init__(self, category: Any, mask: Any = None) -> None:
        self._category = integers(category, "category")
        self._mask = mask

    def bind(self, outputs: Any) -> BoundRegion:
        """Return the mean logit over the mask, or over where these outputs predict the category."""
        logits = _dense_logits(outputs).detach()
        channels = image_indices(self._category, len(logits), logits.shape[1], "category").to(logits.device)
        size, predicted = logits.shape[2:], self._mask is None
        where = logits.argmax(1) if predicted else self._given_mask(logits)
        where = (where if channels.dim() == 1 else where[:, None]).expand(*channels.shape, *size)
        region = where == channels.view(*channels.shape, *[1] * len(size)) if predicted else where
        empty = ~region.flatten(channels.dim()).any(-1)
        if bool(empty.any()):
            category = channels[empty].unique().tolist()
            why = f"category {category} is predicted nowhere" if predicted else "the mask is empty"
            raise CamlibValueError(
                f"{why} in {image_list(empty)}, so there is no region; choose a category that the model predicts "
                "there, or give a mask= that is not empty"
            )
        name = "region" if self._category.dim() else f"region of category {int(self._category)}"
        return BoundRegion(region, channels, name)

    def _given_mask(self, logits: Tensor) -> Tensor:
        mask = as_tensor(self._mask, f"mask is a {type(self._mask).__name__}; give a tensor or an array of bools")
        if mask.dtype != torch.bool:
            raise CamlibTypeError(f"mask holds {mask.dtype} values; give bools, such as mask > 0.5")
        rows, size = len(logits), logits.shape[2:]
        if mask.shape not in (size, (rows, *size)):
            raise CamlibValueError(
                f"mask has shape {tuple(mask.shape)}, and the outputs {tuple(logits.shape)}; give {tuple(size)} or "
                f"{(rows, *size)}: resize it, for example with "
                f"torch.nn.functional.interpolate(mask[None, None].float(), {tuple(size)})[0, 0] > 0.5"
            )
        return mask.to(logits.device).expand(rows, *size)


@dataclass(frozen=True, eq=False)
class BoundRegion(BoundTarget):
    """The mean logit over the region of each image.

    Args:
        region: (N, H, W) or (N, K, H, W) bool.
        channels: (N,) or (N, K), the channel of each region's category.
        name: what the explanation shows.
    """

    quantity = "mean logit"

    region: Tensor
    channels: Tensor
    name: str

    spatial = True

    @property
    def explained(self) -> str:
        """The name."""
        return self.name

    @property
    def images(self) -> int:
        """N."""
        return len(self.channels)

    def mirrored(self, width: int) -> Self:
        """Return the target with mirrored regions."""
        return replace(self, region=self.region.flip(-1))

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the mean logits, (rows,) or (rows, K); float32 for outputs in half precision."""
        region, channels = self.region[image_index], self.channels[image_index]
        logits, axes = _dense_logits(outputs), channels.dim()
        if logits.shape[2:] != region.shape[axes:]:
            raise CamlibValueError(
                f"the region is bound to outputs of {tuple(region.shape[axes:])}, and these are of "
                f"{tuple(logits.shape[2:])}; give inputs of one size"
            )
        rows = torch.arange(len(logits), device=logits.device)
        of_category = logits[rows if axes == 1 else rows[:, None], channels]
        dtype = torch.promote_types(logits.dtype, torch.float32)  # float16 cannot hold the sum over a picture
        sums = of_category.masked_fill(~region, 0).flatten(axes).sum(axes, dtype=dtype)
        return sums / region.flatten(axes).sum(axes)


def _dense_logits(outputs: Any) -> Tensor:
    """Return logits (rows, C, ...) with at least one axis after C; a single channel becomes two."""
    logits = Outputs(outputs).named(("logits", "out"))
    if logits is None or logits.dim() < 3 or not logits.is_floating_point():
        raise CamlibTypeError(
            f"Region needs logits (rows, C, H, W), or a mapping with them as 'out' or 'logits'; the model returns "
            f"{described(logits, outputs)}. Pass forward= to pick them"
        )
    return two_class_logits(logits_of(logits))
