"""What every method shares: binding to a model, and from one cut forward pass to an Explanation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.capture import Cut
from camlib.discovery import find_layer
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.isolation import call_eagerly, check_device, checked_inputs, full_precision, undisturbed, unwrap
from camlib.layers import resolve_layers
from camlib.layouts import Tokens, channel_axis, grid_layout, picture_size
from camlib.methods.fusion import FUSIONS, fuse
from camlib.nested import map_tensors, tensors_in

Layer = str | nn.Module | Sequence[str | nn.Module] | None


class Method(ABC):
    """A method bound to a model.

    Args:
        model: any module. Wrappers of ``torch.compile`` and ``DataParallel`` are taken off, with a warning.
        layer: a dotted name, a module, or a list of those for one fused map; None to have the layer found from
            the first input (:func:`camlib.find_layer`) and remembered.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``: the door for several
            inputs and for post-processing.
        reshape: ``reshape(tensor) -> (N, C, h, w)`` for layers whose layout is not inferred rightly. It is
            applied to activations and gradients alike, so it must only rearrange.
        relu: whether negative values are cut off, as most papers have it; False keeps the signed map.
        fuse: "mean", "max" or "product" of several layers' maps.

    Raises:
        CamlibTypeError: ``model`` is not a module.
        CamlibValueError: there is no such layer or fusion.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        layer: Layer = None,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        relu: bool = True,
        fuse: str = "mean",
    ) -> None:
        if fuse not in FUSIONS:
            raise CamlibValueError(f"fuse must be one of {', '.join(FUSIONS)}, got {fuse!r}")
        if fuse == "product" and not relu:
            raise CamlibValueError('fuse="product" would make positive evidence of two negatives; it needs relu=True')
        self.model = unwrap(model)
        self.layers = None if layer is None else resolve_layers(self.model, layer)
        self.forward = forward
        self.reshape = reshape
        self.relu = relu
        self.fuse = fuse

    @abstractmethod
    def __call__(self, inputs: Any, target: Any = None) -> Explanation:
        """Explain the model's outputs for ``inputs``."""

    def __repr__(self) -> str:
        layer = "to be found" if self.layers is None else repr(" + ".join(self.layers))
        return f"{type(self).__name__}({type(self.model).__name__}, layer={layer})"

    def _prepare(self, inputs: Any) -> Any:
        """Check the inputs, and find the layer if none has been given."""
        if self.forward is None:
            check_device(self.model, inputs)
        inputs = checked_inputs(self.model, inputs)
        if self.layers is None:
            self.layers = resolve_layers(self.model, find_layer(self.model, inputs, forward=self.forward))
        return inputs

    def _run(self, inputs: Any) -> Any:
        return (self.forward or call_eagerly)(self.model, inputs)


class GradientMethod(Method):
    """A method whose map is a function of the activations and the gradients at a layer.

    Subclasses say that function in :meth:`maps`; the forward pass, the target, several layers and classes,
    the final ReLU and the checks are here.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Elementwise(camlib.GradientMethod):
        ...     name = "elementwise"
        ...     def maps(self, activations, gradients):
        ...         return (activations * gradients).relu().sum(1)
        >>> Elementwise(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    @abstractmethod
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the maps (N, h, w), before the final ReLU, from two tensors (N, C, h, w)."""

    def __call__(self, inputs: Any, target: Any = None) -> Explanation:
        """Explain the model's outputs for ``inputs``.

        The model runs in eval mode; it is left as it was found, whatever happens. So are torch's random numbers,
        which all threads share: what another thread draws from them during the call, it may draw again after it.

        Args:
            inputs: what the model takes, usually images (N, C, H, W), on the model's device.
            target: None for the predicted class of each image; a class index, or one for each image; (N, K)
                indices or :class:`camlib.TopK` for K maps from the one forward pass; a callable from the
                outputs to (N,) or (N, K) scores; a :class:`camlib.targets.Target`.

        Returns:
            Maps (N, h, w), or (N, K, h, w) for K classes.

        Raises:
            CamlibValueError, CamlibTypeError: inputs or target cannot be understood.
            CamlibRuntimeError: the layer is not reached, is called twice or does not lead to the score, or a
                score, activation, gradient or map is not finite.
        """
        inputs = self._prepare(inputs)
        layers = dict(self.layers or {})
        cut = Cut(layers)
        with undisturbed(self.model):
            with cut.hooked():
                outputs = self._run(inputs)
                resolved = targets.resolve(target, outputs)
                scores = targets.score(resolved, outputs, _image_index(outputs, cut, layers))
            gradients = cut.gradients(scores)
            scores = scores.detach()
            with full_precision(scores.device):
                size = picture_size(inputs)
                maps = {
                    name: self._maps(activations, gradient, scores, size, name)
                    for name, activations, gradient in zip(layers, cut.activations(), gradients, strict=True)
                }
                fused = fuse(list(maps.values()), self.fuse, "minmax" if self.relu else "signed")
        return Explanation(
            maps=fused,
            scores=scores,
            outputs=map_tensors(Tensor.detach, outputs),
            target=resolved.resolved,
            method=self.name,
            layer=" + ".join(layers),
            input_size=size,
            layers=maps,
        )

    def _maps(
        self, activations: Tensor, gradients: Tensor, scores: Tensor, size: tuple[int, int] | None, layer: str
    ) -> Tensor:
        """One layer's maps, (N, h, w) or (N, K, h, w)."""
        to_grid = self._to_grid(activations, gradients, size, layer)
        features = to_grid(_single_or_double(activations))
        of_classes = gradients.unbind(1) if scores.dim() == 2 else [gradients]  # views: the features are not repeated
        slopes = [to_grid(_single_or_double(gradient)) for gradient in of_classes]
        maps = [self.maps(features, slope) for slope in slopes]
        _check_finite({"activation": [features], "gradient": slopes, "map": maps, "score": [scores]}, layer)
        stacked = torch.stack(maps, 1) if scores.dim() == 2 else maps[0]
        return stacked.relu() if self.relu else stacked

    def _to_grid(
        self, activations: Tensor, gradients: Tensor, size: tuple[int, int] | None, layer: str
    ) -> Callable[[Tensor], Tensor]:
        """The function that turns the layer's features (N, ...) into (N, C, h, w)."""
        if self.reshape is not None:
            return lambda features: self._reshaped(features, layer)
        channels = channel_axis(self.model, self.model.get_submodule(layer)) if activations.dim() == 4 else None
        layout = grid_layout(tuple(activations.shape), size, layer, channels)
        if isinstance(layout, Tokens) and layout.prefix and not layout.to_grid(gradients).any() and gradients.any():
            raise CamlibRuntimeError(
                f"behind layer {layer!r} the score reads the class token alone: the gradient of every patch is zero; "
                "choose a layer ahead of the last attention, such as the last block's first norm, or leave layer out"
            )
        return layout.to_grid

    def _reshaped(self, features: Tensor, layer: str) -> Tensor:
        assert self.reshape is not None
        grid = self.reshape(features)
        if not isinstance(grid, Tensor) or grid.dim() != 4 or grid.shape[0] != features.shape[0]:
            shape = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
            raise CamlibTypeError(
                f"reshape turned {tuple(features.shape)} of layer {layer!r} into {shape}; it must return a "
                f"tensor ({features.shape[0]}, C, h, w)"
            )
        return grid


def _image_index(outputs: Any, cut: Cut, layers: dict[str, nn.Module]) -> Tensor:
    """(rows,) the image that each row of the outputs comes from: here each its own.

    Raises:
        CamlibRuntimeError: a layer's batch is not the images (windows or crops, say, are rows to it).
    """
    activations = cut.activations()
    images = len(next((tensor for tensor in tensors_in(outputs) if tensor.dim()), activations[0]))
    for name, tensor in zip(layers, activations, strict=True):
        if len(tensor) != images:
            raise CamlibRuntimeError(
                f"layer {name!r} returns shape {tuple(tensor.shape)}, a batch of {len(tensor)}, for {images} rows of "
                "outputs; choose a layer whose first axis is the images"
            )
    return torch.arange(images, device=activations[0].device)


def _single_or_double(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_finite(tensors: dict[str, list[Tensor]], layer: str) -> None:
    """Raise if anything is not finite.

    A sum shows it in one pass without a copy, and one look at the device tells of all sums; what is finite and sums
    to more than its type can hold is looked at again.
    """
    flat = [(what, tensor) for what, group in tensors.items() for tensor in group]
    sums_finite = torch.stack([tensor.sum().isfinite() for _, tensor in flat]).tolist()
    for (what, tensor), fine in zip(flat, sums_finite, strict=True):
        if not fine and not bool(tensor.isfinite().all()):
            raise CamlibRuntimeError(
                f"the {what} at layer {layer!r} is not finite (NaN or infinity); look for overflow in half "
                "precision, non-finite inputs or weights"
            )
