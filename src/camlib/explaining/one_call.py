"""From a model or its name, and pictures or their paths, to an explanation that keeps the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError, items, optional_function, positive_int
from camlib.explaining.choice import choose
from camlib.explaining.sources import Batch, batches_of
from camlib.explanation import Explanation
from camlib.layers.names import resolve_layers
from camlib.loading import Loaded, class_index, described, load
from camlib.loading.loaded import Transforms
from camlib.methods.base import Layer, Method
from camlib.passes.calling import UnbatchedError
from camlib.passes.devices import device_of_name, on_device
from camlib.passes.network import Forward, Network, Reshape
from camlib.targets.indices import as_tensor


def explain(
    model: nn.Module | str,
    source: Any,
    *,
    method: str | type[Method] | Method = "auto",
    layer: Layer = None,
    target: Any = None,
    transforms: Transforms | None = None,
    classes: Sequence[str] | None = None,
    weights: str | PathLike[str] = "default",
    batch_size: int = 32,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    reshape: Reshape | None = None,
    **options: Any,
) -> Explanation:
    """Explain pictures in one call: read and prepare them, choose the method and the layer, and keep the pictures.

    ``explanation.plot()``, ``.overlays()`` and ``.report()`` then need no pictures. Only the part of each picture that
    the network saw is shown, at the picture's own resolution: what the transforms crop is left out.

    Args:
        model: a module, or a name: ``"torchvision:resnet50"``, ``"timm:convnext_tiny"``, ``"hf:PATH"``, or
            ``"package.module:factory"`` for a function that returns a module or a tuple of module, transforms and class
            names.
        source: pictures: a path, a folder, a glob, a PIL image, an array (H, W, 3) or (N, H, W, 3), or a list of these.
            Or the model's own inputs: a tensor of floating-point numbers, a batch of another kind that the model takes,
            or an iterable of batches such as a DataLoader, whose batches may be tuples that begin with the inputs.
        method: a name in :data:`camlib.METHODS`, a class, or an explainer of this model. "auto" chooses by the network
            and the target, as the guide to this call says; :attr:`~camlib.Explanation.reason` says why.
        layer: as for :class:`camlib.methods.Method`.
        target: as for :meth:`camlib.methods.Method.__call__`, for all images or one for each; a class may be given by
            its name.
        transforms: from a PIL image to the tensor (C, H, W) that the model takes. None for those of torchvision's
            weights, timm's data config or Hugging Face's processor. A torchvision module does not know its transforms,
            so they must be given.
        classes: names of the classes by index; None for those that come with the model, if any.
        weights: for a model by name: "default" for the library's weights, which are downloaded on first use; "none" for
            random weights; or a file with a state dict. A file that holds a pickled model is refused.
        batch_size: how many pictures are explained together.
        device: where a model by name runs; None for the GPU if there is one. A module stays where it is.
        forward: as for :class:`camlib.methods.Method`.
        reshape: as for :class:`camlib.methods.Method`.
        **options: of the method, such as ``relu=False``.

    Returns:
        The explanation of all images, on the CPU.

    Raises:
        CamlibTypeError: the source, the model or the method has the wrong type, the transforms are not known, or the
            file of weights holds a pickled model.
        CamlibValueError: there is no such model, method, layer or class, or a picture cannot be read.
        CamlibRuntimeError: the weights cannot be downloaded, a library is not installed, or as for
            :meth:`camlib.methods.Method.__call__`.

    Example:
        >>> import camlib, numpy as np
        >>> picture = np.full((320, 400, 3), 128, np.uint8)
        >>> explanation = camlib.explain("torchvision:resnet18", picture, target="tabby", weights="none")
        >>> explanation.target, explanation.pictures[0].shape
        (tensor([281]), (280, 280, 3))
        >>> figure = explanation.plot()
        >>> explanation.reason
        'grad_cam, because the score belongs to the whole image, and the network has no attention...'
    """
    positive_int("batch_size", batch_size)
    optional_function("transforms", transforms)
    loaded = _loaded(model, weights, device)
    names = loaded.classes if classes is None else [str(one) for one in items("classes", classes, "a list of names")]
    loaded = dataclasses.replace(loaded, transforms=transforms or loaded.transforms, classes=names)
    explained = _Explained(loaded, method, layer, Network.of(loaded.model, forward, reshape), options)
    wanted = _indices(target, names)
    parts: list[Explanation] = []
    start = 0
    for batch in batches_of(source, loaded, batch_size):
        part = explained(batch, _of_batch(wanted, start, batch.count))
        parts.append(part)
        start += len(part)
    if not parts:
        raise CamlibValueError("source has no images; give at least one")
    if isinstance(wanted, Tensor) and wanted.dim() and len(wanted) != start:
        raise CamlibValueError(f"target has classes for {len(wanted)} images, and the source has {start}")
    return parts[0] if len(parts) == 1 else Explanation.cat(parts)


def _loaded(model: Any, weights: Any, device: Any) -> Loaded:
    """The network, on its device."""
    if isinstance(model, str):
        loaded = load(model, weights)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        on_device(loaded.model, device_of_name(default if device is None else device))
        return loaded
    if not isinstance(model, nn.Module):
        raise CamlibTypeError(
            f'model must be a torch.nn.Module, or a name such as "torchvision:resnet50", got {type(model).__name__}'
        )
    weights = None if isinstance(weights, str) and weights == "default" else weights
    for name, value in (("weights", weights), ("device", device)):
        if value is not None:
            raise CamlibValueError(f"{name}={value!r} is for a model that is given by name; leave it out for a module")
    return described(model)


def _indices(target: Any, classes: Sequence[str] | None) -> Any:
    """The target with classes by index, as a tensor where there is one for each image."""
    if isinstance(target, str):
        return class_index(target, classes)
    if isinstance(target, (list, tuple)):
        target = [class_index(one, classes) if isinstance(one, str) else one for one in target]
    if isinstance(target, list) or hasattr(target, "ndim"):
        return as_tensor(target, f"target must hold a class for each image, got {target!r}")
    return target


def _of_batch(target: Any, start: int, count: int | None) -> Any:
    """The target of a batch that begins at an image."""
    if not isinstance(target, Tensor) or not target.dim():
        return target
    if count is None or len(target) < start + count:
        have = "an unknown number" if count is None else f"at least {start + count}"
        raise CamlibValueError(f"target has classes for {len(target)} images, and the source has {have}")
    return target[start : start + count]


class _Explained:
    """Explains batches by one method, which is chosen at the first one."""

    def __init__(self, loaded: Loaded, method: Any, layer: Layer, network: Network, options: dict[str, Any]) -> None:
        self._loaded, self._method, self._network, self._options = loaded, method, network, options
        self._layers = None if layer is None else list(resolve_layers(network.module, layer))
        self._explainer: Method | None = None
        self._reason = ""

    def __call__(self, batch: Batch, target: Any) -> Explanation:
        """Return the explanation of a batch, on the CPU, with its pictures."""
        inputs = batch.inputs
        try:
            found = self._called(inputs, target)
        except UnbatchedError as error:
            if not isinstance(inputs, Tensor) or inputs.shape[0] != error.channels:
                raise
            found = self._called(inputs[None], target)  # a single image (C, H, W)
        pictures = batch.pictures if found.dims == 2 and batch.count in (None, len(found)) else None
        names = None if self._loaded.classes is None else tuple(self._loaded.classes)
        return dataclasses.replace(
            found.cpu(),
            pictures=None if pictures is None or len(pictures) != len(found) else tuple(pictures),
            class_names=names,
            reason=self._reason,
        )

    def _called(self, inputs: Any, target: Any) -> Explanation:
        if self._explainer is not None:
            return self._explainer(inputs, target)
        self._explainer, self._reason, found = choose(
            self._method, self._network, inputs, target, self._layers, self._options
        )
        return found
