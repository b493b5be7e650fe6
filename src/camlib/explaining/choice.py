"""The explainer of a call: the one that is given, or the one that is recommended, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from camlib.comparison import on_network
from camlib.errors import CamlibValueError
from camlib.explanation import Explanation
from camlib.methods.base import Method
from camlib.methods.hires_cam import HiResCAM
from camlib.methods.recommended import recommended
from camlib.passes.balancing import NoRuleError
from camlib.passes.network import Network

AUTO = "auto"
"""The method that is recommended."""


class Choice(NamedTuple):
    """An explainer, why it was chosen, and its explanation of the first inputs."""

    explainer: Method
    reason: str
    """Empty if the method was given."""
    first: Explanation


def choose(
    method: Any,
    network: Network,
    inputs: Any,
    target: Any = None,
    layers: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Choice:
    """Explain the first inputs by the method that is given, or by the one that is recommended for them.

    If a transformer has an operation for which balanced gradients have no rule, HiResCAM takes the place of LibraGrad.

    Args:
        method: "auto", or a name, a class or an explainer, as for :func:`camlib.explain`.
        network: the network.
        inputs: what it takes.
        target: as for :meth:`camlib.methods.Method.__call__`.
        layers: names of layers, or None.
        options: of the method.

    Example:
        >>> import torch, torchvision
        >>> network = Network.of(torchvision.models.resnet18(num_classes=4).eval())
        >>> choose("auto", network, torch.rand(1, 3, 64, 64)).explainer.title
        'grad_cam'
    """
    options = options or {}
    if isinstance(method, Method) and (layers or options):
        raise CamlibValueError("an explainer has its layer and options; leave layer= and the options out")
    if not isinstance(method, str) or method != AUTO:
        explainer = on_network(method, network, layers, **options)
        return Choice(explainer, "", explainer(inputs, target))
    advice = recommended(network, inputs, target)
    explainer = on_network(advice.method, network, layers, **options)
    try:
        return Choice(explainer, f"{explainer.title}, because {advice.reason}", explainer(inputs, target))
    except NoRuleError as error:
        failure = str(error)
    explainer = on_network(HiResCAM, network, layers, **options)
    reason = f"{explainer.title}, because the recommended {advice.method.name} does not work here: {failure}"
    return Choice(explainer, reason, explainer(inputs, target))
