"""Sanity: does the explanation change with the network and with the class?

An explanation that stays the same while the network loses what it has learned explains the image, not the network
(Adebayo et al. 2018, https://arxiv.org/abs/1810.03292).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, items, positive_int
from camlib.explanation import Explanation
from camlib.inputs.noise import own_generator
from camlib.layers.names import resolve_layers
from camlib.metrics.declaration import metric
from camlib.metrics.randomization_result import Order, Randomization
from camlib.metrics.readings import Explained, explain, method_of
from camlib.metrics.similarity import SIMILARITIES
from camlib.smoothing import Explainer
from camlib.targets.classes import all_logits

Copied = TypeVar("Copied")

FEWEST_STAGES = 4
"""A network with fewer parts is divided further."""

PAIRS = 32
"""Pairs of random maps, whose mean similarity gives the scale."""


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
    r"""Randomise a network stage by stage, and compare its explanations with the original ones.

    .. math::
        \operatorname{similarity}(H_\theta, H_{\theta_l}), \qquad l = 1, \ldots, L

    This compares the network's heatmap with that of a copy whose parameters are random: with ``order="cascading"`` in
    the first l stages, from the output to the input, with ``"independent"`` in the l-th alone. Figures 2 and 5 of
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292. Lower is better: a heatmap that stays similar does not
    explain the network. The converse proves nothing, as noise is the least similar of all (Binder et al. 2023,
    https://arxiv.org/abs/2211.12486).

    The random parameters are those of ``reset_parameters()``, as in a new network, including batch norms. Parameters
    that no module resets are shuffled. All are drawn at once: which stages are randomised, and in what order, does not
    change their values. The copy is explained for the classes that the network itself predicts. The network does not
    change; the copies need twice its memory, on its device and on the CPU.

    ``1 + |stages|`` explanations.

    Args:
        explainer: a :class:`camlib.methods.Method` or a smoothing of one. Its ``forward``, if any, must call the model
            that it is given. What it draws at random should be the same at every call.
        inputs: what its model takes, N images.
        target: as for :meth:`camlib.methods.Method.__call__`, one class per image.
        order: "cascading" or "independent".
        similarities: keys of :data:`camlib.metrics.SIMILARITIES`; SSIM and HOG compare images only.
        stages: dotted names of modules or of single parameters, in the order of randomisation. By default the model's
            parts with parameters, the last defined first; fewer than four parts are divided into theirs.
        generator: for the parameters and the random pairs; without one, every call draws the same.

    Returns:
        The similarities by stage and image, and those of random pairs for scale.

    Raises:
        CamlibTypeError: not an explainer, or one without a model; names that are not a sequence.
        CamlibValueError: an unknown order, similarity or stage, a stage without parameters, or several classes per
            image.
        CamlibRuntimeError: the model cannot be copied.
        CamlibError: what the explainer raises, also for the randomised model.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import randomization
        >>> sobel = camlib.Sobel(torchvision.models.resnet18(num_classes=4))  # edges, for any network
        >>> result = randomization(sobel, torch.rand(2, 3, 64, 64), similarities=["spearman"])
        >>> result.stages
        ('fc', 'layer4', 'layer3', 'layer2', 'layer1', 'bn1', 'conv1')
        >>> bool((result.similarities["spearman"] > 0.999).all())
        True
    """
    own = own_generator(generator)
    explained = Explained(explainer, inputs, target)
    names, found = _similarities(explained, order, similarities, stages, own)
    pair = _random_pair(explained.explanation, _measures(similarities), own)
    return Randomization(names, found, pair, order, explained.explanation.method)


@metric(Explained, "lower", "at most 1")
def cascading_randomization(
    explained: Explained,
    *,
    similarity: str = "ssim",
    stages: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Similarity of the heatmaps while the network is randomised from the output to the input.

    .. math::
        \frac{1}{L} \sum_{l=1}^{L} \operatorname{similarity}(H_\theta, H_{\theta_l})

    the mean over stages of :func:`camlib.metrics.randomization` in cascading order (Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292). Lower is better, down to the similarity of random pairs.

    ``1 + |stages|`` explanations.

    Args:
        similarity: a key of :data:`camlib.metrics.SIMILARITIES`.
        stages: as for :func:`camlib.metrics.randomization`.
        generator: for the parameters; without one, every call draws the same.

    Raises:
        CamlibError: as for :func:`camlib.metrics.randomization`.
    """
    _, found = _similarities(explained, "cascading", [similarity], stages, own_generator(generator))
    return found[similarity].mean(0)


@metric(Explained, "lower", "at most 1", like=cascading_randomization)
def independent_randomization(
    explained: Explained,
    *,
    similarity: str = "ssim",
    stages: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Similarity of the heatmaps when one stage of the network is randomised, and all others are as they were.

    .. math::
        \frac{1}{L} \sum_{l=1}^{L} \operatorname{similarity}(H_\theta, H_{\theta_l})

    the mean over stages of :func:`camlib.metrics.randomization` in independent order (Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292). Lower is better, down to the similarity of random pairs.

    ``1 + |stages|`` explanations.
    """
    _, found = _similarities(explained, "independent", [similarity], stages, own_generator(generator))
    return found[similarity].mean(0)


@metric(Explained, "higher", "at least -1; NaN for a heatmap whose values fall into one bin")
def efficient_randomization(
    explained: Explained, *, bins: int = 100, generator: torch.Generator | None = None
) -> Tensor:
    r"""eMPRT: relative increase of the heatmap's complexity when the whole network is randomised.

    .. math::
        \frac{\xi(H_{\theta'}) - \xi(H_\theta)}{\xi(H_\theta)}, \qquad \xi(H) = -\sum_{b=1}^{B} p_b \log p_b

    where :math:`p_b` is the share of the pixels whose values fall into the b-th of B equal bins between the lowest and
    the highest value. Hedström et al. 2024, https://arxiv.org/abs/2401.06465, with the random parameters of
    :func:`camlib.metrics.randomization`. Higher is better: the explanation of a random network should be random, and
    its values should spread. It does not compare heatmaps by a similarity, which would favour noise.

    The other test of that paper, sMPRT, averages explanations over noisy copies first: it is
    :func:`camlib.metrics.cascading_randomization` of :class:`camlib.NoiseAveraging`.

    2 explanations.

    Args:
        bins: B.
        generator: for the parameters; without one, every call draws the same.

    Raises:
        CamlibTypeError: an explainer without a model.
        CamlibValueError: ``bins`` is not a positive int, or a model without parameters.
        CamlibRuntimeError: the model cannot be copied.
    """
    positive_int("bins", bins)
    model = method_of(explained.explainer).model
    stages, heatmaps = _checked_stages(model, None), explained.heatmaps
    with torch.inference_mode(False), torch.no_grad():
        random, other = _randomized(model, own_generator(generator)), _copied(explained.explainer)
        for stage in stages:
            _load_stage(method_of(other).model, random, stage)
        changed = explained.again(explainer=other)
    before, after = (_histogram_entropy(one.flatten(1), bins) for one in (heatmaps, changed))
    return ((after - before) / before).masked_fill(before == 0, torch.nan)


def _histogram_entropy(rows: Tensor, bins: int) -> Tensor:
    """Return the entropy (N,) of the histogram of each row (N, P) between its lowest and its highest value."""
    low, high = rows.aminmax(dim=1, keepdim=True)
    span = (high - low).masked_fill(high == low, 1)
    place = ((rows - low) / span * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(rows), bins, dtype=torch.float64, device=rows.device)
    counts = counts.scatter_add(1, place, torch.ones_like(place, dtype=torch.float64))
    entropies: Tensor = torch.special.entr(counts / rows.shape[1]).sum(1)
    return entropies.to(rows.dtype)


@metric(Explained, "lower", "at most 1")
def random_logit(explained: Explained, *, similarity: str = "ssim", generator: torch.Generator | None = None) -> Tensor:
    r"""Similarity of the heatmaps of the class and of another one, drawn at random.

    .. math::
        \operatorname{similarity}(H_c, H_{c'}), \quad c' = (c + k) \bmod C, \; k \sim \mathcal{U}\{1, \ldots, C - 1\}

    with the same k for every image. Section 5.1 of Sixt et al. 2020, https://arxiv.org/abs/1912.09818. Lower is better:
    the heatmaps of a class-agnostic method are equal, and their similarity is 1. Of two classes, which a single logit
    has, too, c' is the other one.

    2 explanations.

    Args:
        target: the class, whose logit is explained: None for the one that the model predicts for each image, an int,
            one int per image, or :class:`camlib.targets.Classes`.
        similarity: a key of :data:`camlib.metrics.SIMILARITIES`.
        generator: for k; without one, every call draws the same.

    Raises:
        CamlibTypeError: a target that is not a class, or outputs without classes.
        CamlibValueError: an unknown similarity.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import random_logit
        >>> random_logit(camlib.EigenCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64))
        tensor([1., 1.])
    """
    measure = _measures([similarity])[similarity]
    own = own_generator(generator)
    target = explained.target
    classes = (targets.Classes, targets.BoundLogits)
    if callable(target) or (isinstance(target, targets.Target) and not isinstance(target, classes)):
        name = getattr(target, "__name__", type(target).__name__)
        raise CamlibTypeError(
            f"random_logit explains the logit of another class, and the target {name} is not a class; give None, an "
            "int or one int per image"
        )
    explanation = explained.explanation
    count = all_logits(explanation.outputs).shape[1]
    if count < 2:
        raise CamlibValueError("a random class needs two classes or more, and the images are compared with one text")
    step = int(torch.randint(1, count, (), generator=own, device=own.device))
    other = (torch.as_tensor(explanation.target) + step) % count
    return measure(explained.heatmaps, explain(explained.explainer, explained.inputs, other).heatmaps())


def default_stages(model: nn.Module) -> tuple[str, ...]:
    """Return the parts of a model that have parameters, from the output to the input.

    They are its children and the parameters that it holds itself, in reverse order of definition; while there are fewer
    than four, each is divided into its own parts.

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
    """Return a stage's own parameters and its children with parameters, or the stage itself if it has no children."""
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
    explained: Explained,
    order: Order,
    similarities: Sequence[str],
    stages: Sequence[str] | None,
    generator: torch.Generator,
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the stages, and by name the similarities (stages, N)."""
    if not isinstance(order, str) or order not in ("cascading", "independent"):
        raise CamlibValueError(f'order must be "cascading" or "independent", got {order!r}')
    measures = _measures(similarities)
    model = method_of(explained.explainer).model
    names = _checked_stages(model, stages)
    heatmaps = explained.heatmaps
    found: dict[str, list[Tensor]] = {name: [] for name in measures}
    with torch.inference_mode(False), torch.no_grad():
        random = _randomized(model, generator)
        other = _copied(explained.explainer)  # after a call, which has found the layer if none was given
        copied = method_of(other).model
        for stage in names:
            _load_stage(copied, random, stage)
            changed = explained.again(explainer=other)
            for name, measure in measures.items():
                found[name].append(measure(heatmaps, changed))
            if order == "independent":
                _load_stage(copied, model, stage)
    return names, {name: torch.stack(rows) for name, rows in found.items()}


def _measures(similarities: Sequence[str]) -> dict[str, Callable[[Any, Any], Tensor]]:
    names = _names("similarities", similarities)
    for name in names:
        if not isinstance(name, str) or name not in SIMILARITIES:
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
        if not isinstance(given, str) or given not in known:
            ((name, module),) = resolve_layers(model, given).items()
            if not any(True for _ in module.parameters()):
                raise CamlibValueError(f"stage {name!r}, a {type(module).__name__}, has no parameters to randomise")
        names.append(name)
    return tuple(names)


def _names(what: str, given: Any) -> tuple[str, ...]:
    names = tuple(items(what, given, "a list of names"))
    if not names:
        raise CamlibValueError(f"{what} is empty; give at least one")
    return names


def _randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy on the CPU with random parameters; torch's global random state is left alone."""
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


def _copied(thing: Copied) -> Copied:
    """Return a copy of a model, or of an explainer with its model."""
    try:
        return copy.deepcopy(thing)
    except Exception as error:  # a model may hold anything
        raise CamlibRuntimeError(
            f"the {type(thing).__name__} cannot be copied, and only a copy is randomised; copy.deepcopy says: {error}"
        ) from error


def _load_stage(model: nn.Module, source: nn.Module, stage: str) -> None:
    """Copy the parameters and buffers of a stage from another copy of the model."""
    tensors = _tensors(source)
    for name, tensor in _tensors(model).items():
        if name == stage or name.startswith(f"{stage}."):
            tensor.copy_(tensors[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor for each in named for name, tensor in each}


def _random_pair(
    explanation: Explanation, measures: Mapping[str, Callable[[Any, Any], Tensor]], generator: torch.Generator
) -> dict[str, float]:
    """Return the mean similarity of heatmaps of uniform noise at the explanation's resolution."""
    shape = (2 * PAIRS, *explanation.maps.shape[-explanation.dims :])
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(explanation.maps)
    noise = dataclasses.replace(
        explanation, maps=drawn, scores=drawn.new_zeros(len(drawn)), outputs=None, target="random", layers={}
    )
    pairs = noise.heatmaps().split(PAIRS)
    return {name: float(measure(*pairs).mean()) for name, measure in measures.items()}
