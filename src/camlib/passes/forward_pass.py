"""What one forward pass gave: its outputs and scores, and at each layer activations and gradients on a grid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.explanation import Explanation
from camlib.inputs.batches import holds_pictures
from camlib.inputs.nested import map_tensors, tensors_in
from camlib.layers.layouts import Layout, Tokens, channel_axis, grid_layout
from camlib.passes.capture import Cut, Watch

Reshape = Callable[[Tensor], Tensor]


class Features(targets.Target):
    """No score: what methods that explain no class show of a network whose outputs hold no classes."""

    @property
    def resolved(self) -> str:
        """The name that the explanation shows."""
        return "features"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return NaN for each row."""
        return torch.full((len(image_index),), torch.nan, device=image_index.device)


@dataclass(eq=False)
class ForwardPass:
    """One forward pass of N images, as methods read it: each thing is computed once, when first asked for."""

    model: nn.Module
    """The model that ran."""
    inputs: Any
    """What it was given."""
    outputs: Any
    """What it returned."""
    target: targets.Target
    """What is explained, resolved."""
    images: int
    """N, the rows of the outputs."""
    watch: Watch
    """The layers of that pass; a :class:`camlib.capture.Cut` where there are gradients."""
    size: tuple[int, ...] | None
    """The input's spatial size, (L,), (H, W) or (T, H, W); None if it held none."""
    extent: tuple[float, ...] | None = None
    """The size that the layers saw, in the input's pixels, where that is more: a detector pads its pictures."""
    reshape: Reshape | None = None
    """The user's own layout."""
    noted: Mapping[str, Any] = field(default_factory=dict)
    """By name, what a method has noted :meth:`camlib.methods.PassMethod.around` the pass."""

    def __post_init__(self) -> None:
        self._grids: dict[str, Tensor] = {}

    def about(self, target: targets.Target) -> ForwardPass:
        """Return the same pass with another target; activations are shared, gradients are its own."""
        other = copy.copy(self)
        other.target = target
        for cached in ("_by_layer", "_second_order", "scores"):
            other.__dict__.pop(cached, None)
        return other

    @cached_property
    def _activations(self) -> dict[str, Tensor]:
        return dict(zip(self.watch.names, self.watch.activations(), strict=True))

    def activations(self, layer: str) -> Tensor:
        """Return a layer's activations (N, C, ...), in single precision at least."""
        if layer not in self._grids:
            features = single_or_double(self.features(layer))
            self._grids[layer] = self.to_grid(layer, features)
            check_finite({f"activation at layer {layer!r}": [features]})
        return self._grids[layer]

    def features(self, layer: str) -> Tensor:
        """Return what a layer returned, in its own layout and precision."""
        return self._activations[layer]

    @property
    def image_index(self) -> Tensor:
        """(N,), the number of each image."""
        return torch.arange(self.images, device=self.device)

    @cached_property
    def scores(self) -> Tensor:
        """The target's scores, (N,) or (N, K), in the graph."""
        with torch.enable_grad():
            return targets.score(self.target, self.outputs, self.image_index)

    @property
    def score_of_each_class(self) -> tuple[Tensor, ...]:
        """The scores (N,) of each of the K classes, in the graph; one where there is no axis for classes."""
        with torch.enable_grad():
            return self.scores.unbind(1) if self.scores.dim() == 2 else (self.scores,)

    @property
    def device(self) -> torch.device:
        """Where the outputs lie."""
        return next(tensors_in(self.outputs), torch.empty(0)).device

    def stacked(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the classes' maps (N, ...) as one tensor: with an axis for the classes where the scores have one."""
        return torch.stack(list(maps), 1) if self.scores.dim() == 2 else maps[0]

    def repeated(self, maps: Tensor) -> Tensor:
        """Return maps (N, ...) that are the same for every class, with an axis for the classes where there is one."""
        return self.stacked([maps] * (self.scores.shape[1] if self.scores.dim() == 2 else 1))

    def gradients(self, layer: str) -> list[Tensor]:
        """Return the gradient of each class's scores, as grids like the activations.

        One tail gradient serves all layers (K of it for K classes); it is taken when first asked for.
        """
        return self._by_layer[layer]

    @cached_property
    def _by_layer(self) -> dict[str, list[Tensor]]:
        found = self._cut.gradients(self.scores, retain_graph=True)
        of_classes = [gradient.unbind(1) if self.scores.dim() == 2 else (gradient,) for gradient in found]  # views
        grids = {
            name: [self._gradient_grid(name, gradient) for gradient in gradients]
            for name, gradients in zip(self._cut.cut, of_classes, strict=True)
        }
        checked = {f"gradient at layer {name!r}": gradients for name, gradients in grids.items()}
        check_finite({**checked, "score": [self.scores.detach()]})
        return grids

    def second_order(self, layer: str) -> list[tuple[Tensor, Tensor]]:
        """Return (G, H A) for each class: the gradient, and the Hessian's product with the activations, as grids."""
        pairs = [
            (self._gradient_grid(layer, gradient), self.to_grid(layer, single_or_double(product)))
            for gradient, product in self._second_order[layer]
        ]
        check_finite({f"second derivative at layer {layer!r}": [tensor for pair in pairs for tensor in pair]})
        return pairs

    @cached_property
    def _second_order(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        found = [self._cut.second_order(one) for one in self.score_of_each_class]
        return {name: list(pairs) for name, pairs in zip(self._cut.cut, zip(*found, strict=True), strict=True)}

    def explanation(
        self, method: str, maps: Tensor, layers: Mapping[str, Tensor], class_agnostic: bool = False
    ) -> Explanation:
        """Return a method's maps with what they explain."""
        return Explanation(
            maps=maps,
            scores=self.scores.detach(),
            outputs=map_tensors(Tensor.detach, self.outputs) if any(True for _ in tensors_in(self.outputs)) else None,
            target=self.target.resolved,
            method=method,
            layer=" + ".join(layers),
            input_size=self.size,
            layers=layers,
            extent=self.extent if layers else None,
            class_agnostic=class_agnostic,
        )

    @property
    def _cut(self) -> Cut:
        if not isinstance(self.watch, Cut):
            raise CamlibRuntimeError(
                "gradients of a pass that was only watched: the method declares needs_gradients = False; make it True"
            )
        return self.watch

    def _gradient_grid(self, layer: str, gradient: Tensor) -> Tensor:
        grid = self.to_grid(layer, single_or_double(gradient))
        if self._reads_prefix(layer) and not grid.any() and gradient.any():
            raise CamlibRuntimeError(
                f"behind layer {layer!r} the score reads the class token alone: the gradient of every patch is zero; "
                "choose a layer ahead of the last attention, such as the last block's first norm, or leave layer out"
            )
        return grid

    def _reads_prefix(self, layer: str) -> bool:
        layout = None if self.reshape else self.layout(layer)
        return isinstance(layout, Tokens) and layout.prefix > 0

    def to_grid(self, layer: str, features: Tensor) -> Tensor:
        """Turn a layer's features (N, ...) into (N, C, ...)."""
        if self.reshape is not None:
            return reshaped(self.reshape, features, layer, self.size or (0, 0))
        return self.layout(layer).to_grid(features)

    def layout(self, layer: str) -> Layout:
        """Return where a layer has its channels and its grid."""
        features = self.features(layer)
        size = None if holds_pictures(self.inputs) else self.size  # detectors resize their pictures
        could_be_either = features.dim() == 2 + len(size or (0, 0))
        channels = channel_axis(self.model, self.model.get_submodule(layer)) if could_be_either else None
        return grid_layout(tuple(features.shape), size, layer, channels)


def reshaped(reshape: Reshape, features: Tensor, layer: str, size: tuple[int, ...]) -> Tensor:
    """Return what the user's ``reshape`` makes of a layer's features: (N, C, ...) over inputs of a spatial size.

    Raises:
        CamlibTypeError: it makes something else of them.
    """
    grid = reshape(features)
    if not isinstance(grid, Tensor) or grid.dim() != 2 + len(size) or grid.shape[0] != features.shape[0]:
        shape = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
        raise CamlibTypeError(
            f"reshape turned {tuple(features.shape)} of layer {layer!r} into {shape}; it must return a "
            f"tensor ({features.shape[0]}, C, {', '.join('thw'[-len(size) :])})"
        )
    return grid


def single_or_double(tensor: Tensor) -> Tensor:
    """Return the tensor in double precision if it is that, or else in single."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_finite(tensors: Mapping[str, Sequence[Tensor]]) -> None:
    """Raise if anything is not finite.

    A sum shows it in one pass without a copy, and one look at the device tells of all sums; what is finite and sums
    to more than its type can hold is looked at again.

    Raises:
        CamlibRuntimeError: naming what is not finite.
    """
    flat = [(what, tensor) for what, group in tensors.items() for tensor in group]
    sums_finite = torch.stack([tensor.sum().isfinite() for _, tensor in flat]).tolist()
    for (what, tensor), fine in zip(flat, sums_finite, strict=True):
        if not fine and not bool(tensor.isfinite().all()):
            raise CamlibRuntimeError(
                f"the {what} is not finite (NaN or infinity); look for overflow in half "
                "precision, non-finite inputs or weights"
            )
