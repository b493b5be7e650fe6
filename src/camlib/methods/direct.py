"""Direct calls: a forward pass, a tail gradient and a map, for images of a kind that an ordinary call has explained.

An ordinary call finds the layer, proves where its cells lie, and learns what the network returns. It remembers all this
for images of one shape. A direct call of such images only runs the network and computes with tensors. It returns None
if anything is different this time, or if something fails; then an ordinary call explains the images, or says what is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from camlib.explanation import Explanation
from camlib.inputs import links
from camlib.layers.layouts import Frames, Layout, Size, Tokens
from camlib.layers.names import module_of
from camlib.passes.balancing import PlainGradients
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.hooks import Cut, Watch, hooked
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network, modules_of
from camlib.passes.numbers import all_single_or_double, are_finite, single_or_double
from camlib.passes.padding import Padding
from camlib.passes.tail_gradients import of_each_class
from camlib.targets import BoundLogits, Target
from camlib.targets.indices import class_scores

_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What torch and camlib raise. Other exceptions may come from a signal handler, such as the end of a time limit."""
MAX_KINDS = 16
"""The most kinds of images that a method remembers."""


class Simple(Protocol):
    """A method whose map is a function of the activations, or of the activations and the gradients, of one layer."""

    maps: Callable[..., Tensor]

    @property
    def network(self) -> Network:
        """The network."""

    @property
    def layers(self) -> Mapping[str, nn.Module] | None:
        """The layers that were given."""

    @property
    def needs_gradients(self) -> bool:
        """Whether :attr:`maps` takes the gradients."""

    @property
    def relu(self) -> bool:
        """Whether negative values are set to zero."""


@dataclass(frozen=True, eq=False)
class _Known:
    """What an ordinary call has shown for images of one shape."""

    network: Network
    given: Mapping[str, nn.Module] | None
    """The layers that the method was given; None if it has found its layer."""
    layers: Mapping[str, nn.Module]
    """The layer that it reads, by name."""
    modules: list[nn.Module]
    """All modules of the model."""
    layout: Layout
    shape: Size
    """The shape of the layer's output, without the images."""
    of_several: bool
    """Whether the layout holds for two and more images, too."""
    about: Mapping[str, Any]
    """The fields of an explanation that are always the same."""


class DirectCalls:
    """The direct calls of one method."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle nothing of what is known: a copy of the method may belong to another model."""
        return DirectCalls, ()

    def explanation(self, method: Simple, images: Any, target: Any) -> Explanation | None:
        """Explain images; None if an ordinary call is needed.

        Args:
            method: the method.
            images: the inputs of the call.
            target: its target.
        """
        if type(images) is not Tensor or isinstance(target, Target) or callable(target) or not self._known:
            return None
        known = self._known.get(_kind(images))
        if (
            known is None
            or known.network is not method.network
            or known.given is not method.layers
            or not (known.of_several or len(images) == 1)
            or not _is_usual(known.network, images)
        ):
            return None
        try:
            return _explanation(known, method, images, target)
        except _FAILURES:  # an ordinary call says what is wrong
            return None

    def learn(self, method: Simple, forward_pass: ForwardPass, explanation: Explanation) -> None:
        """Remember what an ordinary call has shown, if such images can be explained directly.

        Args:
            method: the method.
            forward_pass: the pass of the call.
            explanation: its explanation.
        """
        network, raw, target = forward_pass.network, forward_pass.inputs.raw, forward_pass.target
        plain = network.reshape is None and network.gradients is PlainGradients and forward_pass.extent is None
        if not plain or type(raw) is not Tensor or raw.dim() == 3 or len(forward_pass.features) != 1:
            return
        logits = _are_logits(forward_pass.outputs.raw, raw) and network.ending.shows_logits
        if not logits or type(target) is not BoundLogits or target.chances is not None:
            return
        ((layer, features),) = forward_pass.features.items()
        located, layout = network.located.of(layer, forward_pass.inputs), forward_pass.layout(layer)
        if located is None or not located.holds_for(forward_pass.inputs):
            return
        if isinstance(layout, Frames) or (isinstance(layout, Tokens) and layout.batch_second):
            return
        modules = modules_of(network.module)
        special = Padding().hooks(modules, None) or any(isinstance(module, nn.RNNBase) for module in modules)
        if special or features.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            return
        self._known[_kind(raw)] = _Known(
            network=network,
            given=method.layers,
            layers={layer: module_of(network.module, layer)},
            modules=modules,
            layout=layout,
            shape=tuple(features.shape[1:]),
            of_several=located.of_several,
            about={name: getattr(explanation, name) for name in _ALWAYS_THE_SAME},
        )
        while len(self._known) > MAX_KINDS:
            del self._known[next(iter(self._known))]


_ALWAYS_THE_SAME = ("method", "layer", "input_size", "extent", "origin", "class_agnostic", "quantity")


def _kind(images: Tensor) -> Hashable:
    return images.shape[1:], images.dtype, images.device


def _are_logits(outputs: Any, images: Tensor) -> bool:
    """Whether outputs have a score for each of two or more classes, and a row for each image."""
    return (
        type(outputs) is Tensor
        and outputs.dim() == 2
        and outputs.shape[1] > 1
        and len(outputs) == len(images)
        and outputs.is_floating_point()
    )


def _is_usual(network: Network, images: Tensor) -> bool:
    """Whether nothing has to be done for these images that is done only in some calls."""
    right_norms = len(images) > 1 or not images.is_cpu or network.located.misread_norms is False
    autocast = torch.is_autocast_enabled(images.device.type)
    return bool(len(images)) and right_norms and not autocast and not images.is_inference()


def _explanation(known: _Known, method: Simple, images: Tensor, target: Any) -> Explanation | None:
    (layer,) = known.layers
    with undisturbed(known.network.module) as modules:
        if modules != known.modules:
            return None
        watch = Cut(known.layers) if method.needs_gradients else Watch(known.layers)
        with hooked(watch.hooks()):
            outputs = known.network.called(images.clone())
        features = watch.tensors()[layer]
        if not _are_logits(outputs, images) or features.shape != (len(images), *known.shape):
            return None
        with torch.enable_grad():
            classes, scores = class_scores(target, outputs)
        if isinstance(watch, Cut):
            read = all_single_or_double(features.detach(), tail := watch.gradients(scores)[0])
            activations, gradients = map(known.layout.to_grid, read)
            maps = of_each_class(method.maps, activations, gradients, scores.dim() == 2)
            numbers = [activations, gradients, scores, maps]
            if isinstance(known.layout, Tokens) and known.layout.prefix:
                numbers.append(_nan_without_patches(gradients, tail, scores.dim() == 2))
        else:
            features = single_or_double(features)
            maps = method.maps(known.layout.to_grid(features))
            maps = torch.stack([maps] * scores.shape[1], 1) if scores.dim() == 2 else maps
            numbers = [features, maps]
        if not are_finite(*numbers):
            return None
        maps = maps.relu() if method.relu else maps
        links.note(outputs := outputs.detach(), None)
        return Explanation(
            maps=maps,
            scores=scores.detach(),
            outputs=outputs,
            target=classes,
            layers={layer: maps},
            relu=method.relu,
            **known.about,
        )


def _nan_without_patches(patches: Tensor, tokens: Tensor, several: bool) -> Tensor:
    """NaN if a score reads other tokens but no patch, which is an error; else zero."""
    of_classes = [one.transpose(0, 1) if several else one[None] for one in (patches, tokens)]
    of_patches, of_tokens = (one.flatten(1).any(1) for one in of_classes)
    return torch.where((of_tokens & ~of_patches).any(), torch.nan, 0.0)
