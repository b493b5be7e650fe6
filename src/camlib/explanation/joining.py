"""Explanations, given as the mappings of their fields, joined and picked along the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.inputs.nested import map_tensors
from camlib.inputs.outputs import is_shared

Fields = Mapping[str, Any]
"""The fields of an explanation by name."""


def joined(explanations: Sequence[Fields]) -> dict[str, Any]:
    """Join the fields of explanations along the images.

    Outputs are joined if they are tensors, or lists with an entry for each image; otherwise the result has None.

    Raises:
        CamlibValueError: nothing to join, or they do not fit together.
    """
    if not explanations:
        raise CamlibValueError("nothing to join: explanations is empty")
    first, kind = explanations[0], _kind(explanations[0])
    for other in map(_kind, explanations[1:]):
        for name, value in kind.items():
            if value != other[name]:
                raise CamlibValueError(f"explanations differ in {name}: {value!r} and {other[name]!r}")
    return {name: _joined(name, [fields[name] for fields in explanations], kind) for name in first}


def _joined(name: str, parts: list[Any], kind: dict[str, Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.dim() else None
    if name == "layers":
        return {layer: torch.cat([maps[layer] for maps in parts]) for layer in first}
    if name == "pictures":
        return None if any(part is None for part in parts) else tuple(picture for part in parts for picture in part)
    if name == "outputs":
        return [entry for part in parts for entry in part] if kind["outputs"] == _BY_IMAGE else None
    return first


_BY_IMAGE = "a list with an entry for each image"


_ALIKE = ("method", "layer", "class_agnostic", "input_size", "extent", "origin", "quantity", "relu", "class_names")


def _kind(fields: Fields) -> dict[str, Any]:
    """What two explanations must share to be joined."""
    outputs, target = fields["outputs"], fields["target"]
    return {
        **{name: fields.get(name) for name in _ALIKE},
        "has_class_axis": fields["scores"].dim() == 2,
        "map shape": tuple(fields["maps"].shape[1:]),
        "target": target if isinstance(target, str) else "class indices",
        "layers": {name: tuple(maps.shape[1:]) for name, maps in fields["layers"].items()},
        "output shape": tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else None,
        "outputs": _BY_IMAGE if _by_image(outputs, len(fields["maps"])) else "another kind",
    }


def sliced(fields: Fields, index: slice) -> dict[str, Any]:
    """Return the fields of a slice of the images.

    Tensors of the outputs that :func:`camlib.inputs.outputs.is_shared` stay as they are.
    """
    images, outputs = len(fields["maps"]), fields["outputs"]

    def pick(tensor: Tensor) -> Tensor:
        whole = not tensor.dim() or tensor.shape[0] != images or is_shared(tensor)
        return tensor if whole else tensor[index]

    found: dict[str, Any] = map_tensors(pick, {**fields})
    if fields.get("pictures") is not None:
        found["pictures"] = fields["pictures"][index]
    return found | {"outputs": outputs[index]} if _by_image(outputs, images) else found


def spread(fields: Fields, images: Sequence[int], count: int) -> dict[str, Any]:
    """Return the fields of an explanation of more images, among them some that were not explained.

    Args:
        fields: of the images that were explained.
        images: their numbers.
        count: the number of all images.

    Returns:
        Fields with NaN, or class 0, for the other images. Detectors' outputs have no detection there.
    """
    explained, outputs = len(images), fields["outputs"]

    def wide(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != explained or is_shared(tensor):
            return tensor
        found = tensor.new_full((count, *tensor.shape[1:]), torch.nan if tensor.is_floating_point() else 0)
        found[list(images)] = tensor
        return found

    if not _by_image(outputs, explained):
        return dict(map_tensors(wide, {**fields}))
    without = map_tensors(lambda tensor: tensor[:0] if tensor.dim() else tensor, outputs[0])
    entries = dict(zip(images, outputs, strict=True))
    of_images = [entries.get(image, without) for image in range(count)]
    return dict(map_tensors(wide, {**fields, "outputs": None})) | {"outputs": of_images}


def _by_image(outputs: Any, images: int) -> bool:
    """Whether outputs are a list with an entry for each image, as detectors return it.

    A list of tensors holds several heads instead, each a batch.
    """
    return (
        isinstance(outputs, list)
        and len(outputs) == images
        and not any(isinstance(entry, (Tensor, list, tuple)) for entry in outputs)
    )
