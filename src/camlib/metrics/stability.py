"""Relative stability: the change of a map, divided by that of image, output or features (Agarwal et al. 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from camlib.discovery.finding import find_layer_in
from camlib.errors import positive_number
from camlib.metrics.declaration import after, metric
from camlib.metrics.readings import Explained, method_of
from camlib.metrics.robustness import explanations_with_noise, norms
from camlib.passes.capture import capture
from camlib.passes.isolation import undisturbed
from camlib.targets.classes import all_logits


class RelativeChanges(NamedTuple):
    """Norms of the changes that noise causes, (samples, N)."""

    maps: Tensor
    """Of the maps, as shares of their values."""
    images: Tensor
    """Of the images, as shares of their values."""
    outputs: Tensor
    """Of the logits."""
    same_class: Tensor
    """Whether the predicted class stays the same."""
    noise: Tensor
    """(samples, C, ...)."""
    least: float

    def worst(self, changes: Tensor) -> Tensor:
        """Return the largest ratio (N,) of the maps' change to another one, where the predicted class is the same."""
        ratios = (self.maps / changes.clamp(min=self.least)).masked_fill(~self.same_class, -torch.inf)
        return ratios.amax(0).masked_fill(~self.same_class.any(0), torch.nan)


def with_relative_noise(
    explained: Explained,
    *,
    radius: float = 0.02,
    samples: int = 10,
    least: float = 1e-6,
    generator: torch.Generator | None = None,
) -> RelativeChanges:
    """Explain noisy copies of the images, and take their changes as shares.

    Args:
        radius: r, in the inputs' units.
        samples: S, how many noisy copies.
        least: what replaces a divisor of 0.
        generator: for the noise; without one, every call draws the same.

    Raises:
        CamlibTypeError: the outputs hold no classes.
        CamlibValueError: ``radius`` or ``least`` is not a positive number, or ``samples`` not a positive int.
    """
    least, explanation, images = positive_number("least", least), explained.explanation, explained.images
    logits = all_logits(explanation.outputs)
    changes = []
    for step, noisy in explanations_with_noise(explained, radius, samples, generator):
        of_copies = all_logits(noisy.outputs)
        changes.append(
            (
                _shares(noisy.maps, explanation.maps, least),
                _shares(images + step.to(images), images, least).to(explanation.maps),
                norms(of_copies - logits).to(explanation.maps),
                (of_copies.argmax(1) == logits.argmax(1)).to(explanation.maps.device),
                step.to(images),
            )
        )
    maps, pixels, outputs, same_class, noise = map(torch.stack, zip(*changes, strict=True))
    return RelativeChanges(maps, pixels, outputs, same_class, noise, least)


def _shares(changed: Tensor, values: Tensor, least: float) -> Tensor:
    """Return the norm (N,) of changes as shares of the values."""
    return norms((changed - values) / torch.where(values == 0, least, values))


@metric(Explained, "lower", "not negative; NaN where every copy has another predicted class")
@after(with_relative_noise)
def relative_input_stability(changes: RelativeChanges) -> Tensor:
    r"""RIS: largest relative change of the map, divided by the relative change of the image.

    .. math::
        \max_k \frac{\left\| \frac{M(x + d_k) - M(x)}{M(x)} \right\|_2}
            {\max\left(\left\| \frac{d_k}{x} \right\|_2, \epsilon\right)}, \qquad
        d_{kcp} \sim \mathcal{U}(-r, r)

    with the raw map M as the method returns it, over the copies whose predicted class is that of the image. Agarwal et
    al. 2022, https://arxiv.org/abs/2203.06877. Lower is better. Changes of values of 0 are divided by :math:`\epsilon`
    (``least``), so a position whose value was 0 and is not 0 with noise outweighs all others. Maps after a ReLU have
    many such positions: compare signed maps (``relu=False``), or raise ``least`` to a small value of the map.

    ``1 + samples`` explanations.
    """
    return changes.worst(changes.images)


@metric(Explained, "lower", "not negative; NaN where every copy has another predicted class")
@after(with_relative_noise)
def relative_output_stability(changes: RelativeChanges) -> Tensor:
    r"""ROS: largest relative change of the map, divided by the change of the logits.

    .. math::
        \max_k \frac{\left\| \frac{M(x + d_k) - M(x)}{M(x)} \right\|_2}
            {\max\left(\left\| h(x + d_k) - h(x) \right\|_2, \epsilon\right)}, \qquad
        d_{kcp} \sim \mathcal{U}(-r, r)

    with the logits h of all classes; for a network with a single logit y, these are -y and y. Agarwal et al. 2022,
    https://arxiv.org/abs/2203.06877. Otherwise as :func:`camlib.metrics.relative_input_stability`. Lower is better.

    ``1 + samples`` explanations.
    """
    return changes.worst(changes.outputs)


@metric(Explained, "lower", "not negative; NaN where every copy has another predicted class", like=with_relative_noise)
def relative_representation_stability(
    explained: Explained,
    *,
    layer: str | nn.Module | None = None,
    radius: float = 0.02,
    samples: int = 10,
    least: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""RRS: largest relative change of the map, divided by the relative change of a layer's output.

    .. math::
        \max_k \frac{\left\| \frac{M(x + d_k) - M(x)}{M(x)} \right\|_2}
            {\max\left(\left\| \frac{A(x + d_k) - A(x)}{A(x)} \right\|_2, \epsilon\right)}, \qquad
        d_{kcp} \sim \mathcal{U}(-r, r)

    with the output A of the layer. Agarwal et al. 2022, https://arxiv.org/abs/2203.06877. Otherwise as
    :func:`camlib.metrics.relative_input_stability`; if A follows a ReLU, values of A that were 0 outweigh all others,
    too. Lower is better.

    ``1 + samples`` explanations and ``N (1 + samples)`` forward passes of an image.

    Args:
        layer: a dotted name or a module; by default the one that is explained, of several the last, or the one that
            :func:`camlib.find_layer` finds where the method reads none.

    Raises:
        CamlibTypeError: an explainer without a model, or outputs without classes.
        CamlibValueError: the model has no such layer; ``radius`` or ``least`` is not a positive number, or ``samples``
            not a positive int.
        CamlibRuntimeError: the layer was not reached, or none is found.
    """
    method = method_of(explained.explainer)
    own = list(explained.explanation.layers) or [explained.explanation.layer]
    layer = own[-1] or find_layer_in(method.network, explained.inputs) if layer is None else layer
    changes = with_relative_noise(explained, radius=radius, samples=samples, least=least, generator=generator)

    def output(images: Tensor) -> Tensor:
        inputs = method.network.ready(explained.inputs.with_images(images))
        with undisturbed(method.model), capture(method.model, layer) as captured:
            method.network.run(inputs)
        return captured.activations

    clean = output(explained.images)
    found = [_shares(output(explained.images + step), clean, changes.least) for step in changes.noise]
    return changes.worst(torch.stack(found).to(changes.maps))
