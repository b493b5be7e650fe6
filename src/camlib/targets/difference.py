"""The difference between the features of an image and those of a set of other images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.targets.base import BoundTarget, Target, image_list
from camlib.targets.indices import as_tensor
from camlib.targets.similarity import embeddings_of


class Difference(Target):
    r"""How far features f lie from the mean of a reference set, in the direction d of the image itself.

    .. math:: (f - \bar r) \cdot \frac{d}{|d|}, \qquad d = f(x) - \bar r, \quad \bar r = \operatorname{mean}_j r_j

    What does this image have that those do not? The direction is fixed on the clean image. No class is involved, so
    networks without a classifier can be explained. With features that are means over positions, Grad-CAM weights each
    channel by its difference. DiffCAM (Li et al., CVPR 2025) asks the same question; this target takes the plain
    difference of the means as the direction.

    Outputs are features (rows, D), as for :class:`Similarity`: pass ``forward=`` that returns them.

    Args:
        references: (M, D), the features of the M images of the reference set, computed by the same network.

    Raises:
        CamlibTypeError: the references or the outputs are not floating-point tensors, or the outputs are no vectors.
        CamlibValueError: their widths differ, a reference is not finite, or the features of an image equal the mean.

    Example:
        >>> import camlib, torch
        >>> target = camlib.targets.Difference(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> bound = camlib.targets.bind(target, torch.tensor([[4.0, 5.0]]))  # the mean is (1, 1), d is (3, 4)
        >>> camlib.targets.score(bound, torch.tensor([[4.0, 5.0], [4.0, 0.0]]), torch.tensor([0, 0]))
        tensor([5., 1.])
    """

    def __init__(self, references: Any) -> None:
        vectors = as_tensor(references, f"references are a {type(references).__name__}; give a tensor (M, D)").detach()
        if not vectors.is_floating_point():
            raise CamlibTypeError(f"references hold {vectors.dtype} values; give a floating-point tensor")
        if vectors.dim() != 2 or not vectors.numel():
            raise CamlibValueError(f"references have shape {tuple(vectors.shape)}; give (M, D)")
        if not bool(vectors.isfinite().all()):
            raise CamlibValueError("references hold numbers that are not finite (NaN or infinity)")
        self._mean = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).mean(0)

    def bind(self, outputs: Any) -> BoundDifference:
        """Return the score, with the direction from the mean of the references to these outputs."""
        found = embeddings_of(outputs, Difference.__name__).detach()
        if found.shape[1] != len(self._mean):
            raise CamlibValueError(
                f"references have {len(self._mean)} features, and the outputs {tuple(found.shape)}; give the features "
                "of the same network"
            )
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        mean = self._mean.to(found)
        directions = found - mean
        same = ~directions.any(1)
        if bool(same.any()):
            raise CamlibValueError(
                f"the features of {image_list(same)} equal the mean of the references, so their difference has no "
                "direction; leave such images out"
            )
        return BoundDifference(directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True), mean)


@dataclass(frozen=True, eq=False)
class BoundDifference(BoundTarget):
    """How far each image's features lie from a mean, in a direction.

    Args:
        directions: (N, D), of length 1.
        mean: (D,).
    """

    quantity = "difference of features"

    directions: Tensor
    mean: Tensor

    explained = Difference.__name__

    @property
    def images(self) -> int:
        """N."""
        return len(self.directions)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the differences, (rows,); float32 for outputs in half precision."""
        features = embeddings_of(outputs, Difference.__name__)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return ((features - self.mean.to(features)) * self.directions.to(features)[image_index]).sum(1)
