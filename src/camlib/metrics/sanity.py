"""Sanity: does the explanation change when the network, or the class, becomes another?

An explanation that stays the same while the network forgets what it has learned explains the picture (Adebayo et al.
2018, https://arxiv.org/abs/1810.03292).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.inputs.noise import own_generator
from camlib.layers.names import resolve_layers
from camlib.methods.base import Method
from camlib.metrics.randomization import Order, Randomization
from camlib.metrics.robustness import explained, method_of
from camlib.metrics.similarity import SIMILARITIES
from camlib.smoothing import Explainer, Smoothing, bound_target

FEWEST_STAGES = 4
"""A network of fewer parts is taken apart further."""

PAIRS = 32
"""Of random maps, whose mean similarity is the line for scale."""


def randomization(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    order: Order = "cascading",
    similarities: Sequence[str] = ("ssim", "spearman", "hog"),
    stages: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Randomization:
    r"""Randomise a network stage by stage, and see whether the explanation minds.

    .. math::
        \operatorname{similarity}(H_\theta, H_{\theta_l}), \qquad l = 1, \ldots, L

    The heatmap of the network as it is, and that of a copy whose parameters are random: with ``order="cascading"`` in
    the first l stages, from the output to the input, with ``"independent"`` in the l-th alone. Figures 2 and 5 of
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292. Lower is better: what stays as similar as before does not
    explain the network. The other way round it proves nothing, as noise is the least similar of all (Binder et al.
    2023, https://arxiv.org/abs/2211.12486).

    Random are the parameters that ``reset_parameters()`` gives, as in a new network, so that batch norms begin anew,
    too. Parameters that no module resets are shuffled. The stages' parameters are drawn at once: which stages are
    randomised, and in what order, does not change what they become. The copy asks about the classes that the network
    itself predicts. The network is left alone; the copies need twice its memory, on its device and on the CPU.

    ``1 + stages`` explanations, stages being how many there are.

    Args:
        explainer: a :class:`camlib.methods.Method` or a smoothing of one. Its ``forward``, if any, must call the model
            that it is given. What it draws at random should be the same at every call.
        inputs: what its model takes, N images.
        target: as for :meth:`camlib.methods.Method.__call__`, one class of each image.
        order: "cascading" or "independent".
        similarities: keys of :data:`camlib.metrics.SIMILARITIES`; SSIM and HOG compare pictures only.
        stages: dotted names of modules or of single parameters, in the order of randomisation. None for the model's
            parts that have parameters, the last defined first; while there are fewer than four, these are taken apart.
        generator: for the parameters and the random pairs; without one, every call draws the same.

    Returns:
        The similarities by stage and image, and those of random pairs for scale.

    Raises:
        CamlibTypeError: no explainer, or one that knows no model; names that are no sequence; what the explainer says.
        CamlibValueError: an unknown order, similarity or stage, or a stage without parameters; there are several
            classes of each image; what the explainer says.
        CamlibRuntimeError: the model cannot be copied; what the explainer says of the randomised model.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import randomization
        >>> sobel = camlib.Sobel(torchvision.models.resnet18(num_classes=4))  # edges, whatever the network is
        >>> result = randomization(sobel, torch.rand(2, 3, 64, 64), similarities=["spearman"])
        >>> result.stages
        ('fc', 'layer4', 'layer3', 'layer2', 'layer1', 'bn1', 'conv1')
        >>> bool((result.similarities["spearman"] > 0.999).all())
        True
    """
    own = own_generator(generator)
    explanation, names, found = _similarities(explainer, inputs, target, order, similarities, stages, own)
    pair = _random_pair(explanation, _measures(similarities), own)
    return Randomization(names, found, pair, order, explanation.method)


def cascading_randomization(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    similarity: str = "ssim",
    stages: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How alike heatmaps stay while the network is randomised from the output to the input.

    .. math::
        \frac{1}{L} \sum_{l=1}^{L} \operatorname{similarity}(H_\theta, H_{\theta_l})

    the mean over stages of :func:`randomization` in cascading order (Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292). Lower is better, as far as the similarity of random pairs.

    ``1 + stages`` explanations, stages being how many there are.

    Args:
        explainer: as for :func:`randomization`.
        inputs: as for :func:`randomization`.
        target: as for :func:`randomization`.
        similarity: a key of :data:`camlib.metrics.SIMILARITIES`.
        stages: as for :func:`randomization`.
        generator: for the parameters; without one, every call draws the same.

    Returns:
        (N,), at most 1.

    Raises:
        CamlibTypeError, CamlibValueError, CamlibRuntimeError: as for :func:`randomization`.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import cascading_randomization
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> cascading_randomization(cam, torch.rand(2, 3, 64, 64), stages=["fc", "layer4"]).shape
        torch.Size([2])
    """
    own = own_generator(generator)
    return _similarities(explainer, inputs, target, "cascading", [similarity], stages, own)[2][similarity].mean(0)


def independent_randomization(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    similarity: str = "ssim",
    stages: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How alike heatmaps stay when one stage of the network is randomised, and all others are as they were.

    .. math::
        \frac{1}{L} \sum_{l=1}^{L} \operatorname{similarity}(H_\theta, H_{\theta_l})

    the mean over stages of :func:`randomization` in independent order (Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292). Lower is better, as far as the similarity of random pairs.

    ``1 + stages`` explanations, stages being how many there are.

    Args:
        explainer: as for :func:`randomization`.
        inputs: as for :func:`randomization`.
        target: as for :func:`randomization`.
        similarity: a key of :data:`camlib.metrics.SIMILARITIES`.
        stages: as for :func:`randomization`.
        generator: for the parameters; without one, every call draws the same.

    Returns:
        (N,), at most 1.

    Raises:
        CamlibTypeError, CamlibValueError, CamlibRuntimeError: as for :func:`randomization`.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import independent_randomization
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> independent_randomization(cam, torch.rand(2, 3, 64, 64), stages=["fc", "layer4"]).shape
        torch.Size([2])
    """
    own = own_generator(generator)
    return _similarities(explainer, inputs, target, "independent", [similarity], stages, own)[2][similarity].mean(0)


def random_logit(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    similarity: str = "ssim",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How alike the heatmaps of the class and of another one are, which is drawn at random.

    .. math::
        \operatorname{similarity}(H_c, H_{c'}), \quad c' = (c + k) \bmod C, \; k \sim \mathcal{U}\{1, \ldots, C - 1\}

    the same k for every image. Section 5.1 of Sixt et al. 2020, https://arxiv.org/abs/1912.09818. Lower is better: the
    heatmap of a class-agnostic method is the same, and its similarity 1. Of two classes, which a network of a single
    logit has too, it is the other one.

    2 explanations.

    Args:
        explainer: a :class:`camlib.methods.Method`, a smoothing, or anything that is called like one.
        inputs: what its model takes, N images.
        target: the class, whose logit is explained: None for the one that the model predicts for each image, an int,
            one int per image, or :class:`camlib.targets.Classes`.
        similarity: a key of :data:`camlib.metrics.SIMILARITIES`.
        generator: for k; without one, every call draws the same.

    Returns:
        (N,), at most 1.

    Raises:
        CamlibTypeError: no explainer, a target that names no classes, or outputs that hold none.
        CamlibValueError: an unknown similarity; there are several classes of each image.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import random_logit
        >>> random_logit(camlib.EigenCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64))
        tensor([1., 1.])
    """
    measure = _measures([similarity])[similarity]
    own = own_generator(generator)
    if callable(target) or (
        isinstance(target, targets.Target) and not isinstance(target, (targets.Classes, targets.BoundLogits))
    ):
        name = getattr(target, "__name__", type(target).__name__)
        raise CamlibTypeError(
            f"random_logit explains the logit of another class, and the target {name} is no class; give None, an int "
            "or one int per image"
        )
    explanation = explained(explainer, inputs, target)
    count = targets.two_class_logits(targets.class_outputs(explanation.outputs)).shape[1]
    step = int(torch.randint(1, count, (), generator=own, device=own.device))
    other = (torch.as_tensor(explanation.target) + step) % count
    return measure(explanation.heatmaps(), explained(explainer, inputs, other).heatmaps())


def default_stages(model: nn.Module) -> tuple[str, ...]:
    """Return the parts of a model that have parameters of their own, from the output to the input.

    They are its children and the parameters that it holds itself, in the reverse of the order of definition; while
    there are fewer than four, all are taken apart into theirs.

    Args:
        model: any module.

    Returns:
        Dotted names of modules or parameters, which together hold every parameter.

    Example:
        >>> import torchvision
        >>> default_stages(torchvision.models.alexnet())[:4]
        ('classifier.6', 'classifier.4', 'classifier.1', 'features.10')
    """
    stages = _parts(model, "")
    while len(stages) < FEWEST_STAGES:
        finer = [part for stage in stages for part in _parts(model, stage)]
        if finer == stages:
            break
        stages = finer
    return tuple(reversed(stages))


def _parts(model: nn.Module, stage: str) -> list[str]:
    """What a stage is made of: parameters that it holds itself, and children with parameters; itself if it has none."""
    if stage in _parameters(model):
        return [stage]
    module = model.get_submodule(stage)
    own = [name for name, _ in module.named_parameters(recurse=False)]
    children = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    if stage and not children:
        return [stage]  # a layer: its weight and its bias go together
    return [f"{stage}.{name}" if stage else name for name in own + children]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _similarities(
    explainer: Explainer,
    inputs: Any,
    target: Any,
    order: Order,
    similarities: Sequence[str],
    stages: Sequence[str] | None,
    generator: torch.Generator,
) -> tuple[Explanation, tuple[str, ...], dict[str, Tensor]]:
    """The explanation of the model as it is, the stages, and by name the similarities (stages, N)."""
    if order not in ("cascading", "independent"):
        raise CamlibValueError(f'order must be "cascading" or "independent", got {order!r}')
    measures = _measures(similarities)
    model = method_of(explainer).model
    names = _checked_stages(model, stages)
    explanation = explained(explainer, inputs, target)
    bound, heatmaps = bound_target(explanation, target), explanation.heatmaps()
    found: dict[str, list[Tensor]] = {name: [] for name in measures}
    with torch.inference_mode(False), torch.no_grad():
        random = _randomized(model, generator)
        other = _on_a_copy(explainer)  # made after a call, which has found the layer if none was given
        for stage in names:
            _take(method_of(other).model, random, stage)
            changed = explained(other, inputs, bound).heatmaps()
            for name, measure in measures.items():
                found[name].append(measure(heatmaps, changed))
            if order == "independent":
                _take(method_of(other).model, model, stage)
    return explanation, names, {name: torch.stack(rows) for name, rows in found.items()}


def _measures(similarities: Sequence[str]) -> dict[str, Callable[[Any, Any], Tensor]]:
    names = _names("similarities", similarities)
    for name in names:
        if name not in SIMILARITIES:
            raise CamlibValueError(f"there is no similarity {name!r}; choose from {', '.join(SIMILARITIES)}")
    return {name: SIMILARITIES[name] for name in names}


def _checked_stages(model: nn.Module, stages: Sequence[str] | None) -> tuple[str, ...]:
    if stages is None:
        found = default_stages(model)
        if not found:
            raise CamlibValueError(f"the {type(model).__name__} has no parameters to randomise")
        return found
    known, names = _parameters(model), []
    for given in _names("stages", stages):
        name = given
        if given not in known:
            ((name, module),) = resolve_layers(model, given).items()
            if not any(True for _ in module.parameters()):
                raise CamlibValueError(f"stage {name!r}, a {type(module).__name__}, has no parameters to randomise")
        names.append(name)
    return tuple(names)


def _names(what: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise CamlibTypeError(f"{what} must be a list of names, got {given!r}")
    names = tuple(given)
    if not names:
        raise CamlibValueError(f"{what} is empty; give at least one")
    return names


def _randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy, on the CPU, all of whose parameters are random; torch's own random numbers stay as they were."""
    fresh = _copied(model).cpu()
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in fresh.modules():
            own = list(module.parameters(recurse=False))
            before = [parameter.clone() for parameter in own]
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            for parameter, was in zip(own, before, strict=True):
                if torch.equal(parameter, was):  # nothing resets it
                    parameter.copy_(was.flatten()[torch.randperm(was.numel())].reshape(was.shape))
    return fresh


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a model may hold anything
        raise CamlibRuntimeError(
            f"the {type(model).__name__} cannot be copied, and only a copy is randomised; copy.deepcopy(model) says: "
            f"{error}"
        ) from error


def _on_a_copy(explainer: Explainer) -> Explainer:
    """The same explainer, on a copy of its model."""
    if isinstance(explainer, Method):
        return explainer.on(_copied(explainer.model))
    other = copy.copy(explainer)
    if isinstance(other, Smoothing):
        other.method = _on_a_copy(other.method)
    return other


def _take(model: nn.Module, source: nn.Module, stage: str) -> None:
    """Give a stage the parameters and buffers of another copy of the model."""
    for mine, theirs in zip(_state(model, stage), _state(source, stage), strict=True):
        mine.copy_(theirs)


def _state(model: nn.Module, stage: str) -> list[Tensor]:
    parameters = _parameters(model)
    if stage in parameters:
        return [parameters[stage]]
    module = model.get_submodule(stage)
    return [*module.parameters(), *module.buffers()]


def _random_pair(
    explanation: Explanation, measures: Mapping[str, Callable[[Any, Any], Tensor]], generator: torch.Generator
) -> dict[str, float]:
    """How alike heatmaps are of maps that are uniform noise, of the explanation's resolution."""
    shape = (2 * PAIRS, *explanation.maps.shape[-explanation.dims :])
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(explanation.maps)
    noise = dataclasses.replace(
        explanation, maps=drawn, scores=drawn.new_zeros(len(drawn)), outputs=None, target="random", layers={}
    )
    pairs = noise.heatmaps().split(PAIRS)
    return {name: float(measure(*pairs).mean()) for name, measure in measures.items()}
