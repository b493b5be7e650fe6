"""Scores of embeddings: their similarity to a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs
from camlib.inputs.outputs import NAMES
from camlib.targets.base import BoundTarget, Target, image_list
from camlib.targets.indices import as_tensor, described


class Similarity(Target):
    r"""The cosine similarity of the model's outputs f to a reference r: :math:`f \cdot r / (|f| |r|)`.

    Outputs are embeddings (rows, D) or (rows, D, 1, 1), or a mapping or dataclass that holds them as "image_embeds", as
    CLIP's and SigLIP's, or as :attr:`camlib.inputs.Outputs.main`. A perturbed image whose embedding is zero scores 0.

    Args:
        reference: (D,) for all images, (N, D), or (N, K, D) for K maps of each image: for example the embedding of
            another image, or of a text.

    Raises:
        CamlibTypeError: the reference or the outputs are not floating-point tensors, or the outputs are not vectors.
        CamlibValueError: their shapes differ, or a vector is zero on the clean outputs.

    Example:
        >>> import camlib, torch, torchvision
        >>> network = torchvision.models.resnet18()
        >>> network.fc = torch.nn.Identity()
        >>> cam = camlib.GradCAM(network.eval())
        >>> images = torch.rand(2, 3, 64, 64)
        >>> alike = cam(images, camlib.targets.Similarity(network(images[0:1])[0]))
        >>> round(float(alike.scores[0]), 3), alike.maps.shape
        (1.0, torch.Size([2, 2, 2]))
    """

    def __init__(self, reference: Any) -> None:
        vectors = as_tensor(reference, f"reference is a {type(reference).__name__}; give a tensor (D,)").detach()
        if not vectors.is_floating_point():
            raise CamlibTypeError(f"reference holds {vectors.dtype} values; give a floating-point tensor")
        if vectors.dim() not in (1, 2, 3) or not vectors.numel():
            raise CamlibValueError(f"reference has shape {tuple(vectors.shape)}; give (D,), (N, D) or (N, K, D)")
        self._reference = vectors

    def bind(self, outputs: Any) -> BoundSimilarity:
        """Return the similarity; the reference is checked against the outputs."""
        found = embeddings_of(outputs, Similarity.__name__).detach()
        given = self._reference
        if given.shape[-1] != found.shape[1] or (given.dim() > 1 and len(given) != len(found)):
            rows, width = found.shape
            raise CamlibValueError(
                f"reference has shape {tuple(given.shape)}, and the outputs ({rows}, {width}); give ({width},), "
                f"({rows}, {width}) or ({rows}, K, {width})"
            )
        if not bool(found.any(1).all()):
            raise CamlibValueError(f"the embedding is zero, without a direction, in {image_list(~found.any(1))}")
        if not bool(given.any(-1).all()):
            raise CamlibValueError("a reference is zero, without a direction")
        return BoundSimilarity(given.expand(len(found), -1) if given.dim() == 1 else given)


@dataclass(frozen=True, eq=False)
class BoundSimilarity(BoundTarget):
    """The similarity of each image's embedding to its references.

    Args:
        references: (N, D) or (N, K, D).
    """

    quantity = "similarity"

    references: Tensor

    explained = Similarity.__name__

    @property
    def images(self) -> int:
        """N."""
        return len(self.references)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the similarities, (rows,) or (rows, K), in [-1, 1]; float32 for outputs in half precision."""
        embeddings = embeddings_of(outputs, Similarity.__name__)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        references = self.references.to(embeddings)[image_index]
        directions = _unit(embeddings)
        return (_unit(references) * (directions if references.dim() == 2 else directions[:, None])).sum(-1)


def _unit(vectors: Tensor) -> Tensor:
    """Return the vectors on the last axis with length 1; zero vectors stay zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0, 1)


def embeddings_of(outputs: Any, target: str) -> Tensor:
    """Return the embeddings (rows, D) in a model's outputs.

    Args:
        outputs: what the model returned.
        target: the name of the target that needs them, for errors.

    Raises:
        CamlibTypeError: the outputs are no floating-point vectors.
    """
    embeddings = Outputs(outputs).named(("image_embeds", *NAMES))
    if embeddings is not None and embeddings.dim() > 2 and set(embeddings.shape[2:]) == {1}:
        embeddings = embeddings.flatten(1)
    if embeddings is None or embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise CamlibTypeError(
            f"{target} needs embeddings (rows, D); the model returns {described(embeddings, outputs)}. Pass forward= "
            "to pick or pool them"
        )
    return embeddings
