"""What metrics read: heatmaps, with scores, masks or other heatmaps; or an explanation that can be made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.imaging.normalization import as_maps
from camlib.inputs import Inputs
from camlib.methods.base import Method
from camlib.metrics.masks import masks_of
from camlib.metrics.ranking import ranked_each
from camlib.metrics.scorer import Scorer
from camlib.smoothing import Explainer, Smoothing, bound_target

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """A property that is computed once.

    Unlike ``functools.cached_property`` it has no lock, which in Python 3.11 all objects of a class share: models run
    inside these properties, in several threads.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Value:
        """Return the value, and keep it among the object's attributes, which come before this descriptor."""
        value = self._function(instance)
        instance.__dict__[self._function.__name__] = value
        return value


class Reading:
    """What a metric reads, made from the metric's public arguments: by ``given``, or else by the constructor."""

    example: ClassVar[str | None] = None
    """An example of a call for the docstrings of metrics, in which NAME stands for the metric."""

    def nan_where_unknown(self, values: Tensor) -> Tensor:
        """Return a metric's values, NaN for images that it cannot evaluate."""
        return values


class Heatmaps(Reading):
    """Heatmaps alone.

    Args:
        heatmaps: (N, H, W), a tensor or an array, signed or not; also (N, L) or (N, T, H, W).

    Raises:
        CamlibTypeError: not a tensor or array of real numbers.
        CamlibValueError: another shape, or not finite.
    """

    def __init__(self, heatmaps: Any) -> None:
        self.values = checked_heatmaps(heatmaps)
        """(N, H, W)."""


class HeatmapPair(Reading):
    """Two heatmaps of each image.

    Args:
        first: (N, H, W), a tensor or an array; also (N, L) or (N, T, H, W).
        second: of the same shape.

    Raises:
        CamlibTypeError: not tensors or arrays of real numbers.
        CamlibValueError: different shapes, or not finite.
    """

    example = """
        >>> import torch
        >>> from camlib.metrics import NAME
        >>> heatmaps = torch.rand(2, 32, 32)
        >>> NAME(heatmaps, heatmaps).round(decimals=3)
        tensor([1., 1.])
    """

    def __init__(self, first: Any, second: Any) -> None:
        self.values = checked_heatmaps(first)
        """(N, H, W)."""
        self.others = checked_heatmaps(second, len(self.values), tuple(self.values.shape[1:])).to(self.values.device)
        """(N, H, W)."""


class LocatedHeatmaps(Reading):
    """Heatmaps with masks of the objects.

    Args:
        heatmaps: (N, H, W), a tensor or an array; with masks also (N, L) or (N, T, H, W).
        masks: (N, H, W), bool or 0 and 1, at the heatmaps' resolution; or boxes (N, 4), or a list of N tensors (M, 4)
            with all boxes of an image, as for :func:`camlib.metrics.box_masks`.
        empty: "error", or "nan" for a result of NaN where a mask is empty.

    Raises:
        CamlibTypeError: not tensors or arrays of real numbers.
        CamlibValueError: masks of another shape or other values, or an empty mask.
    """

    def __init__(self, heatmaps: Any, masks: Any, *, empty: str = "error") -> None:
        if not isinstance(empty, str) or empty not in ("error", "nan"):
            raise CamlibValueError(f'empty must be "error" or "nan", got {empty!r}')
        self.values = checked_heatmaps(heatmaps)
        """(N, H, W)."""
        self.inside = masks_of(masks, self.values).to(self.values.device)
        """(N, H, W), bool."""
        self.start = 0
        """The index of the first image in its data set, which seeds the tie-breaking."""
        self._known = self.inside.flatten(1).any(1)
        missing = (~self._known).nonzero().flatten().tolist()
        if missing and empty == "error":
            raise CamlibValueError(
                f"masks of images {missing} are empty, so no heatmap is right there: leave these images out, or pass "
                'empty="nan" for a result of NaN'
            )

    def nan_where_unknown(self, values: Tensor) -> Tensor:
        """Return a metric's values, NaN where the mask is empty."""
        return values.masked_fill(~self._known, torch.nan)

    def ranked(self, generator: torch.Generator | None) -> Tensor:
        """Return the pixels (N, P) of each heatmap, most important first; ties are shuffled separately per image."""
        if generator is not None:
            return ranked_each(self.values, generator)
        seeds = range(self.start, self.start + len(self.values))
        of_images = zip(self.values.split(1), seeds, strict=True)
        return torch.cat([ranked_each(one, torch.Generator().manual_seed(seed)) for one, seed in of_images])


class ScoredHeatmaps(Reading):
    """Heatmaps with the :class:`Scorer` of their images; what several metrics need is computed once.

    Args:
        scorer: the scorer of the images.
        heatmaps: (N, H, W), a tensor or an array, at the inputs' resolution.

    Raises:
        CamlibTypeError: heatmaps are not a tensor or array of real numbers.
        CamlibValueError: heatmaps of another shape, or not finite.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import ScoredHeatmaps, Scorer, deletion, insertion
        >>> scorer = Scorer(torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64), target=1)
        >>> heatmaps = ScoredHeatmaps(scorer, torch.rand(2, 64, 64))
        >>> deletion.of(heatmaps, steps=4).shape, insertion.of(heatmaps, steps=4).shape
        (torch.Size([2]), torch.Size([2]))
    """

    example = """
        >>> import torch, torchvision
        >>> from camlib.metrics import NAME
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> len(NAME(model, images, torch.rand(2, 64, 64), target=1))
        2
    """

    def __init__(self, scorer: Scorer, heatmaps: Any) -> None:
        if not isinstance(scorer, Scorer):
            raise CamlibTypeError(f"scorer must be a camlib.metrics.Scorer, got {type(scorer).__name__}")
        self.scorer = scorer
        self.values = checked_heatmaps(heatmaps, len(scorer.images), scorer.size).to(scorer.images.device)
        """(N, H, W)."""

    @classmethod
    def given(cls, model: nn.Module, inputs: Any, heatmaps: Any, target: Any = None, **options: Any) -> ScoredHeatmaps:
        """Score the inputs.

        Args:
            model: as for :class:`camlib.methods.Method`.
            inputs: what the model takes, N images.
            heatmaps: (N, H, W), at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or videos.
            target: the class that is scored, by default the one that the model predicts for each image.
            **options: as for :class:`camlib.metrics.Scorer`.

        Raises:
            CamlibError: as for :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.ScoredHeatmaps`.
        """
        return cls(Scorer(model, inputs, target, **options), heatmaps)

    def nan_where_unknown(self, values: Tensor) -> Tensor:
        """Return a metric's values, NaN for images with a score that is not finite."""
        if bool(self.scorer.known.all()):
            return values
        known = self.scorer.known.to(values.device).reshape(-1, *[1] * (values.dim() - 1))
        return values.where(known, torch.nan)

    @Remembered
    def masked_scores(self) -> Tensor:
        """(N,), the scores of the images multiplied by their heatmaps, which must be in [0, 1]."""
        masks = in_unit_range(self.values)[:, None].to(self.scorer.images.dtype)
        return self.scorer.scores(self.scorer.image_index, lambda images, rows: images * masks[rows])


class Explained(Reading):
    """Images with their explanation, which the explainer can make again for perturbed images.

    Args:
        explainer: a :class:`camlib.methods.Method`, a smoothing, or any callable like one. What it draws at random
            should be the same at every call.
        inputs: what its model takes, N images.
        target: as for :meth:`camlib.methods.Method.__call__`, one class per image.

    Raises:
        CamlibTypeError: not an explainer, or inputs without images of floats.
        CamlibValueError: several classes per image.
        CamlibError: what the explainer raises.
    """

    example = """
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import NAME
        >>> NAME(camlib.GradCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    def __init__(self, explainer: Explainer, inputs: Any, target: Any = None) -> None:
        self.explainer = explainer
        self.inputs = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        """The inputs, parsed."""
        self.target = target

    @Remembered
    def explanation(self) -> Explanation:
        """The explanation of the images as they are, made when first needed unless it was set."""
        return explain(self.explainer, self.inputs, self.target)

    @Remembered
    def heatmaps(self) -> Tensor:
        """(N, H, W)."""
        return self.explanation.heatmaps()

    @Remembered
    def images(self) -> Tensor:
        """(N, C, ...), the images among the inputs."""
        return self.inputs.floats

    def again(self, images: Tensor | None = None, explainer: Explainer | None = None) -> Tensor:
        """Return heatmaps (N, H, W) of the same classes, for other images or by another explainer."""
        return self.explain_again(images, explainer).heatmaps()

    def explain_again(self, images: Tensor | None = None, explainer: Explainer | None = None) -> Explanation:
        """Return an explanation of the same classes, for other images or by another explainer."""
        inputs = self.inputs if images is None else self.inputs.with_images(images)
        target = bound_target(self.explanation, self.target)
        return explain(explainer or self.explainer, inputs, target)


class HeatmapCase(Reading):
    """Heatmaps with everything that a metric may read about them.

    Args:
        scorer: the scorer of the images.
        explained: these images with their explanation.
        masks: (N, H, W), where the objects are, if known.
        start: the number of the first image in its data set.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import Explained, HeatmapCase, Scorer, adcc, deletion
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> case = HeatmapCase(Scorer(model, images, 1), Explained(camlib.GradCAM(model), images, 1))
        >>> adcc.evaluate(case).shape, deletion.evaluate(case, steps=4).shape
        (torch.Size([2]), torch.Size([2]))
    """

    example = Explained.example

    def __init__(self, scorer: Scorer, explained: Explained, masks: Tensor | None = None, start: int = 0) -> None:
        if not isinstance(explained, Explained):
            raise CamlibTypeError(f"explained must be a camlib.metrics.Explained, got {type(explained).__name__}")
        self.scored = ScoredHeatmaps(scorer, explained.heatmaps)
        self.explained = explained
        self.masks = masks
        self.start = start
        self._values: dict[Callable[[HeatmapCase], Tensor], Tensor] = {}

    @classmethod
    def given(cls, explainer: Explainer, inputs: Any, target: Any = None, **options: Any) -> HeatmapCase:
        """Explain and score the inputs.

        Args:
            explainer: a :class:`camlib.methods.Method` or a smoothing of one, whose model and ``forward`` also score.
            inputs: what its model takes, N images.
            target: as for :meth:`camlib.methods.Method.__call__`, one class per image; it is explained and scored.
            **options: as for :class:`camlib.metrics.Scorer`.

        Raises:
            CamlibTypeError: not an explainer, or one without a model.
            CamlibValueError: several classes per image, or a negative score.
            CamlibError: what the explainer or :class:`camlib.metrics.Scorer` raises.
        """
        explained = Explained(explainer, inputs, target)
        explanation, method = explained.explanation, method_of(explainer)
        scored = explanation.target if isinstance(explanation.target, Tensor) else target
        known = {} if "forward" in options else {"forward": method.network.forward, "outputs": explanation.outputs}
        return cls(Scorer(method.model, explained.inputs, scored, **known | options), explained)

    def nan_where_unknown(self, values: Tensor) -> Tensor:
        """Return a metric's values, NaN for images with a score that is not finite."""
        return self.scored.nan_where_unknown(values)

    def read(self, kind: type[Reading]) -> Any:
        """Return the part that a metric reads; NaN, and no error, is the result where a mask is empty.

        Raises:
            CamlibValueError: it reads masks, and there are none.
        """
        if kind is Heatmaps:
            return Heatmaps(self.scored.values)
        if kind is not LocatedHeatmaps:
            return next(part for part in (self.scored, self.explained, self) if isinstance(part, kind))
        if self.masks is None:
            raise CamlibValueError("a metric of localisation compares heatmaps with masks; give masks=")
        located = LocatedHeatmaps(self.scored.values, torch.as_tensor(self.masks), empty="nan")
        located.start = self.start
        return located

    def once(self, value: Callable[[HeatmapCase], Tensor]) -> Tensor:
        """Return ``value(self)``, computed at the first call only."""
        if value not in self._values:
            self._values[value] = value(self)
        return self._values[value]


def checked_heatmaps(heatmaps: Any, images: int | None = None, size: tuple[int, ...] | None = None) -> Tensor:
    """Return heatmaps (N, ...) as a tensor of floats.

    Args:
        heatmaps: a tensor or an array.
        images: N, if known.
        size: spatial size of the images, if known; without it one to three spatial axes are accepted.

    Raises:
        CamlibTypeError: not a tensor or array of real numbers.
        CamlibValueError: another shape, or not finite.
    """
    maps = as_maps(heatmaps, "heatmaps", dims=1).detach()
    wanted = ("N" if images is None else images, *(size or ("H", "W")))
    shape = f"({', '.join(map(str, wanted))})"
    fits = maps.dim() in (2, 3, 4) if size is None else tuple(maps.shape[1:]) == size
    if not fits or (images is not None and len(maps) != images):
        of_classes = size is not None and maps.dim() == 2 + len(size) and tuple(maps.shape[2:]) == size
        advice = (
            "evaluate one class at a time: heatmaps[:, k] with target[:, k]"
            if of_classes
            else "explanation.heatmaps() has the input's resolution, and camlib.resize(maps, size) gives any other"
        )
        raise CamlibValueError(f"heatmaps have shape {tuple(maps.shape)}; they must be {shape}: {advice}")
    return maps


def in_unit_range(heatmaps: Tensor) -> Tensor:
    """Return the heatmaps.

    Raises:
        CamlibValueError: they are not in [0, 1].
    """
    low, high = heatmaps.aminmax()
    if low < 0 or high > 1:
        raise CamlibValueError(
            f"heatmaps are in [{float(low):.3g}, {float(high):.3g}]; they must be in [0, 1]: "
            "camlib.normalize(heatmaps) scales them"
        )
    return heatmaps


def explain(explainer: Explainer, inputs: Any, target: Any = None) -> Explanation:
    """Return an explanation with one map per image.

    Args:
        explainer: a :class:`camlib.methods.Method`, a smoothing, or any callable like one.
        inputs: what its model takes, parsed or not.
        target: as for :meth:`camlib.methods.Method.__call__`.

    Raises:
        CamlibTypeError: not an explainer, or it returns no explanation.
        CamlibValueError: several maps per image.

    Example:
        >>> import camlib, torch, torchvision
        >>> explain(camlib.GradCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """
    if isinstance(explainer, (type, nn.Module)) or not callable(explainer):
        given = explainer.__name__ if isinstance(explainer, type) else type(explainer).__name__
        raise CamlibTypeError(
            f"explainer must be an explainer such as camlib.GradCAM(model), got {given}; a metric that re-runs the "
            "explanation takes (explainer, inputs, target)"
        )
    explanation = called(explainer, inputs, target)
    if not isinstance(explanation, Explanation):
        raise CamlibTypeError(
            f"explainer returned a {type(explanation).__name__}; it must return a camlib.Explanation, as "
            "camlib.GradCAM(model) does"
        )
    if explanation.has_class_axis:
        raise CamlibValueError(
            f"a metric evaluates one heatmap of each image, and the target names {explanation.scores.shape[1]} classes "
            "of each; evaluate one at a time: target[:, k], and None for the class that the model predicts"
        )
    return explanation


def called(explainer: Explainer, inputs: Any, target: Any) -> Any:
    """Call an explainer; parsed inputs are not parsed again by a method, and given as they were to anything else."""
    takes_parsed = type(explainer).__call__ is Method.__call__
    return explainer(inputs.raw if isinstance(inputs, Inputs) and not takes_parsed else inputs, target)


def method_of(explainer: Explainer) -> Method:
    """Return the method that an explainer is, or that a smoothing contains: the one that knows the model.

    Raises:
        CamlibTypeError: there is none.

    Example:
        >>> import camlib, torchvision
        >>> method_of(camlib.NoiseAveraging(camlib.GradCAM(torchvision.models.resnet18(num_classes=4))))
        GradCAM(ResNet, layer=to be found)
    """
    while isinstance(explainer, Smoothing):
        explainer = explainer.method
    if not isinstance(explainer, Method):
        given = f"the class {explainer.__name__}" if isinstance(explainer, type) else f"a {type(explainer).__name__}"
        raise CamlibTypeError(
            f"the metric needs the explainer's model, and {given} is neither a "
            "camlib.methods.Method nor a smoothing of one; give one such as camlib.GradCAM(model)"
        )
    return explainer
