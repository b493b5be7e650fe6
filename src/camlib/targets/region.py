"""Scores of dense outputs: the region that a segmentation network gives a category to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs
from camlib.targets.base import BoundTarget, Target, image_list
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

    def bind(self, outputs: Any) -> BoundRegion:
        """Return the mean logit over the region of each image."""
        logits = _dense_logits(outputs).detach()
        channels = image_indices(self._category, len(logits), logits.shape[1], "category").to(logits.device)
        channels = channels.reshape(len(logits), -1)
        name = "region" if self._category.dim() else f"region of category {int(self._category)}"
        return BoundRegion(self._regions(logits, channels), channels, name, several=self._category.dim() == 2)

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


class BoundRegion(BoundTarget):
    """The mean logit over the region of each image.

    Args:
        region: (N, K, H, W) bool.
        channels: (N, K), the category of each.
        name: what the explanation shows.
        several: whether scores have an axis for K.
    """

    spatial = True

    def __init__(self, region: Tensor, channels: Tensor, name: str, *, several: bool) -> None:
        self.region = region
        self.images = len(region)
        self._channels = channels
        self.explained = self._name = name
        self._several = several

    def mirrored(self, width: int) -> BoundRegion:
        """Return the target with its region mirrored."""
        return BoundRegion(self.region.flip(-1), self._channels, self._name, several=self._several)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the mean logits, (rows,) or (rows, K); float32 for outputs in half precision."""
        region, channels, logits = self.region[image_index], self._channels[image_index], _dense_logits(outputs)
        if logits.shape[2:] != region.shape[2:]:
            raise CamlibValueError(
                f"the region is bound to outputs of {tuple(region.shape[2:])}, and these are of "
                f"{tuple(logits.shape[2:])}; give inputs of one size"
            )
        of_category = logits[torch.arange(len(logits), device=logits.device)[:, None], channels]
        dtype = torch.promote_types(logits.dtype, torch.float32)  # float16 cannot hold the sum over a picture
        sums = of_category.masked_fill(~region, 0).flatten(2).sum(2, dtype=dtype)
        means = sums / region.flatten(2).sum(2)
        return means if self._several else means.squeeze(1)


def _dense_logits(outputs: Any) -> Tensor:
    """Return logits (rows, C, ...) with at least one axis behind C, and at least two channels."""
    logits = Outputs(outputs).named(("logits", "out"))
    if logits is None or logits.dim() < 3 or not logits.is_floating_point():
        kind = type(outputs).__name__ if logits is None else f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise CamlibTypeError(
            f"Region needs logits (rows, C, H, W), or a mapping with them as 'out' or 'logits'; the model returns "
            f"{kind}. Pass forward= to pick them"
        )
    return two_class_logits(logits)
