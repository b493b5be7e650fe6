"""Smoothing around any method: maps averaged over mirrored, noisy or enlarged copies of the images.

Each wraps an explainer and is called like one. The target is bound to the outputs of the clean images, so all copies
are explained for the same class; scores and outputs are those of the clean images. (Choices that a method makes itself,
such as Finer-CAM's nearest classes, are made for every copy.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibTypeError, CamlibValueError, NotFiniteError, boolean, items, number
from camlib.explanation import Explanation
from camlib.explanation.joining import spread
from camlib.imaging.resizing import interpolated
from camlib.inputs import Inputs
from camlib.inputs.noise import Noise, check_noise, own_generator
from camlib.passes.chunks import Chunks, ChunkSize, for_each_chunk
from camlib.passes.copies import Copies
from camlib.passes.numbers import not_finite_in_copies
from camlib.passes.rows import with_known_rows

Explainer = Callable[..., Explanation]


class Smoothing(ABC):
    """An explainer whose maps are means over copies of the images.

    Args:
        method: an explainer: any :class:`camlib.methods.Method`, or another smoothing wrapper.
    """

    chunks = Chunks()
    """How many copies are explained at a time."""

    def __init__(self, method: Explainer) -> None:
        if isinstance(method, (type, nn.Module)) or not callable(method):
            raise CamlibTypeError(f"method must be an explainer such as camlib.GradCAM(model), got {method!r}")
        self.method = method

    def __call__(self, inputs: Any, target: Any = None) -> Explanation:
        """Explain, like :meth:`camlib.methods.Method.__call__`."""
        with torch.inference_mode(False), torch.no_grad():
            clean = self.method(inputs, target)
            bound = bound_target(clean, target)
            if self.on_nonfinite == "nan" and bool(clean.missing.any()):
                return self._of_others(clean, inputs, bound)
            return self._smoothed(clean, inputs, bound)

    @property
    def on_nonfinite(self) -> Any:
        """Whether an image that is not finite costs only itself, which is an option of the method."""
        return getattr(self.method, "on_nonfinite", "raise")

    def _of_others(self, clean: Explanation, inputs: Any, target: targets.BoundTarget | None) -> Explanation:
        """The explanation of all images, with NaN for those that have no map, which are not copied."""
        given = _inputs_of(self.method, clean, inputs)
        index = (~clean.missing).nonzero().flatten()
        others = given.pick(index.to(given.tensors[0].device), len(clean))
        found = self(others.raw, None if target is None else target.pick(index))
        fields = spread(vars(found), index.tolist(), len(clean))
        return Explanation(**fields | {"target": clean.target, "outputs": clean.outputs, "scores": clean.scores})

    @abstractmethod
    def _smoothed(self, clean: Explanation, inputs: Any, target: Any) -> Explanation:
        """The explanation of the clean images, with smoothed maps."""

    def _sums(self, clean: Explanation, copies: Copies, target: targets.BoundTarget | None) -> list[Tensor]:
        """The maps of the copies, and each layer's own, added up for each image."""
        sums = [torch.zeros_like(maps) for maps in _maps_of(clean)]

        def explained(rows: slice) -> list[Tensor]:
            inputs, image_index = copies[rows]
            try:
                return _maps_of(self.method(inputs.raw, None if target is None else target.pick(image_index)))
            except NotFiniteError as error:
                if self.on_nonfinite == "nan":
                    return [maps.new_full((len(image_index), *maps.shape[1:]), torch.nan) for maps in sums]
                raise not_finite_in_copies(error, image_index) from error

        def add(rows: slice, found: list[Tensor]) -> None:
            sums[:] = [total + copies.by_copy(maps, rows).sum(0) for total, maps in zip(sums, found, strict=True)]

        if len(copies):
            for_each_chunk(explained, add, len(copies), self.chunks, clean.maps.device)
        return sums

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r})"


class TestTimeAugmentation(Smoothing):
    r"""The mean map over brightened copies and their mirror images, whose maps are mirrored back.

    .. math:: \frac{1}{2 F} \sum_f \left( M(f x) + \overleftarrow{M(f \overleftarrow{x})} \right)

    f runs over the F factors, and an arrow exchanges left and right; without mirroring it is
    :math:`\frac{1}{F} \sum_f M(f x)`. Targets that depend on positions in the image, :class:`camlib.targets.Region` and
    :class:`camlib.targets.Box`, are mirrored with the images. camlib cannot know whether a callable depends on
    positions: for such a score, write a :class:`camlib.targets.BoundTarget` with ``mirrored``.

    Two explanations of each image for each factor (one without mirroring), and one more for the clean images if 1 is
    not among the factors. The clean images are one call of the method; the others are explained ``chunk_size`` at a
    time, the mirrored ones apart.

    Args:
        method: as for :class:`camlib.smoothing.Smoothing`.
        factors: positive numbers by which the model's inputs are multiplied.
        mirror: whether to exchange left and right, the ends of the last axis, too; switch it off for signals, whose
            time has a direction, and wherever left and right differ, as in images of the heart.
        chunk_size: how many copies are explained at a time, :attr:`camlib.passes.chunks.Chunks.size`.

    Raises:
        CamlibTypeError, CamlibValueError: ``factors`` are not positive numbers.
        CamlibValueError: when called with mirroring, if the model pads its images on one side.
        CamlibTypeError: when called, if the inputs hold no images, or integer images, whose brightness cannot be
            scaled.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> camlib.TestTimeAugmentation(cam)(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    __test__ = False  # pytest would collect it for its name

    def __init__(
        self,
        method: Explainer,
        factors: Sequence[float] = (1.0, 0.9, 1.1),
        *,
        mirror: bool = True,
        chunk_size: ChunkSize = "auto",
    ) -> None:
        super().__init__(method)
        self.factors = _numbers("factors", factors, above=0)
        self.mirror = boolean("mirror", mirror)
        self.chunks = Chunks(chunk_size)

    def _smoothed(self, clean: Explanation, inputs: Any, target: Any) -> Explanation:
        if self.mirror and clean.extent is not None and not _is_symmetric(clean):
            raise CamlibValueError(
                f"the maps cover {clean.extent} of images of {clean.input_size}, and more on one side, as where the "
                "model pads its images; give images that need no padding, or mirror=False"
            )
        given = _inputs_of(self.method, clean, inputs)
        changing = [factor for factor in self.factors if factor != 1]
        same = len(self.factors) - len(changing)
        of_others = self._sums(clean, _brightened(given, changing), target)
        sums = [total + same * maps for total, maps in zip(of_others, _maps_of(clean), strict=True)]
        if self.mirror:
            mirrored = given.map_images(lambda images: images.flip(-1))
            there = target.mirrored(given.size[-1]) if target is not None and given.size is not None else target
            of_mirrored = self._sums(clean, _brightened(mirrored, self.factors), there)
            sums = [total + maps.flip(-1) for total, maps in zip(sums, of_mirrored, strict=True)]
        return _averaged(clean, sums, len(self.factors) * (1 + self.mirror), "test-time augmentation")


class NoiseAveraging(Smoothing):
    r"""The mean map over noisy copies, as in SmoothGrad (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825).

    .. math:: \frac{1}{n} \sum_{i=1}^n M(x + \sigma (x_{max} - x_{min}) \epsilon_i)

    Each :math:`\epsilon_i` is drawn from the standard normal distribution and is the same for all images of a batch.
    The mean does not include the map of the clean images.

    ``1 + samples`` explanations of each image. The clean images are one call of the method; the noisy ones are
    explained ``chunk_size`` at a time.

    Args:
        method: as for :class:`camlib.smoothing.Smoothing`.
        samples: the number of noisy copies.
        sigma: standard deviation of the noise, as a fraction of each image's range of values.
        generator: for the noise; without one, every call draws the same noise.
        chunk_size: how many copies are explained at a time, :attr:`camlib.passes.chunks.Chunks.size`.

    Raises:
        CamlibTypeError, CamlibValueError: ``samples`` is not a positive int, or ``sigma`` is not a positive number.
        CamlibTypeError: when called, if the inputs hold no images, or integer images.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> camlib.NoiseAveraging(cam, samples=4)(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        method: Explainer,
        samples: int = 8,
        sigma: float = 0.1,
        *,
        generator: torch.Generator | None = None,
        chunk_size: ChunkSize = "auto",
    ) -> None:
        super().__init__(method)
        self.chunks = Chunks(chunk_size)
        check_noise(samples, sigma)
        self.samples = samples
        self.sigma = sigma
        self.generator = generator

    def _smoothed(self, clean: Explanation, inputs: Any, target: Any) -> Explanation:
        given = _inputs_of(self.method, clean, inputs)
        noise = Noise(given, self.sigma, own_generator(self.generator), self.samples)
        sums = self._sums(clean, Copies(given, self.samples, noise.added), target)
        return _averaged(clean, sums, self.samples, "noise averaging")


class MultiScale(Smoothing):
    """The mean map over windows of enlarged copies, after SESS (Tursun et al. 2022, https://arxiv.org/abs/2207.01769).

    The images are enlarged bilinearly by each scale s and covered by ``ceil(2 s - 1) ** 2`` evenly spaced windows of
    the original size, which overlap their neighbours by half or more. Each window is explained, and its map is put at
    the window's position. Overlapping maps are averaged, each scale is resized to the input's resolution, and the map
    is the mean over the scales. ``layers`` of the result is empty. As in the paper, ``keep`` can restrict the mean to
    the windows with the highest scores; positions that no such window covers are zero. The paper's calibration by the
    class score is not needed, since maps are not normalised before they are fused.

    One call of the method for the clean images, which are the only window of scale 1, and one for each window of the
    other scales.

    Args:
        method: as for :class:`camlib.smoothing.Smoothing`.
        scales: how much the images are enlarged, at least 1; the clean images' map is included if 1 is among them.
        keep: the fraction of each scale's windows to use: for each image and class, those with the highest scores;
            rounded, and at least one window.

    Raises:
        CamlibTypeError, CamlibValueError: ``scales`` are not numbers of at least 1, or ``keep`` is not in (0, 1].
        CamlibTypeError: when called, if the inputs are not images (N, C, H, W), the target depends on positions in the
            image, or ``keep`` is less than 1 and the method explains no score.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> camlib.MultiScale(cam, scales=(1.0, 1.5))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    def __init__(self, method: Explainer, scales: Sequence[float] = (1.0, 1.5, 2.0), *, keep: float = 1.0) -> None:
        super().__init__(method)
        self.scales = _numbers("scales", scales, at_least=1)
        self.keep = number("keep", keep, above=0, at_most=1)

    def _smoothed(self, clean: Explanation, inputs: Any, target: Any) -> Explanation:
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or clean.input_size not in (None, inputs.shape[2:]):
            given = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
            raise CamlibTypeError(f"MultiScale enlarges images, a single tensor (N, C, H, W); the inputs are {given}")
        if isinstance(target, targets.BoundTarget) and target.spatial:
            raise CamlibTypeError(
                f"target {target.explained!r} depends on positions in the image, which windows do not have; MultiScale "
                "explains classes and other scores of the whole image"
            )
        if self.keep < 1 and bool(clean.scores.isnan().all()):
            raise CamlibTypeError(
                f"{clean.method} explains no score of this model, whose outputs hold no classes, so windows cannot be "
                "ranked by score; leave keep out, or give a target"
            )
        of_scales = [self._at_scale(clean, inputs, target, scale) for scale in self.scales]
        maps = torch.stack(of_scales).mean(0)
        return dataclasses.replace(
            clean, maps=maps, layers={}, extent=None, origin=None, method=f"{clean.method}, multi-scale"
        )

    def _at_scale(self, clean: Explanation, images: Tensor, target: Any, scale: float) -> Tensor:
        """The mean over the windows, (N, [K,] H, W)."""
        height, width = images.shape[2:]
        large = (round(scale * height), round(scale * width))
        if large == (height, width):
            return clean.heatmaps((height, width), normalize="none")
        enlarged = torch.nn.functional.interpolate(images, large, mode="bilinear", align_corners=False)
        corners = list(itertools.product(_starts(large[0] - height, scale), _starts(large[1] - width, scale)))
        windows = [self.method(enlarged[..., top : top + height, left : left + width], target) for top, left in corners]
        kept = _highest(torch.stack([window.scores for window in windows]), self.keep)
        total = clean.maps.new_zeros(*clean.scores.shape, *large)
        counted = torch.zeros_like(total)
        for (top, left), window, counts in zip(corners, windows, kept, strict=True):
            place = (..., slice(top, top + height), slice(left, left + width))
            weight = counts[..., None, None].to(total.dtype)
            total[place] += weight * window.heatmaps((height, width), normalize="none")
            counted[place] += weight
        missing = torch.stack([window.missing for window in windows]).any(0)
        mean = interpolated(total / counted.clamp(min=1), (height, width))
        return mean.masked_fill(missing.reshape(-1, *[1] * (mean.dim() - 1)), torch.nan)


def _is_symmetric(explanation: Explanation) -> bool:
    """Whether maps reach as far on one end of the last axis as on the other."""
    if explanation.extent is None or explanation.input_size is None:
        return True
    start = explanation.origin[-1] if explanation.origin else 0.0
    return abs(start + start + explanation.extent[-1] - explanation.input_size[-1]) < 1


def _inputs_of(method: Any, clean: Explanation, inputs: Any) -> Inputs:
    """The inputs, with the images where the explanation of the clean images showed them, and what all images share."""
    given = Inputs(inputs)
    while isinstance(method, Smoothing):
        method = method.method
    if not hasattr(method, "network"):
        return given
    found = next((method.network.located.of(layer, given) for layer in clean.layers), None)
    return with_known_rows(method.network, given.along(None if found is None else found.axes))


def _brightened(inputs: Inputs, factors: Sequence[float]) -> Copies:
    """A copy of the images for each factor, multiplied by it."""

    def change(inputs: Inputs, copy: Tensor) -> Inputs:
        if set(factors) == {1}:  # also of integers
            return inputs

        def brighter(images: Tensor, factor: Tensor) -> Tensor:
            return images * factor.to(images).reshape(-1, *[1] * (images.dim() - 1))

        return inputs.map_rows(brighter, torch.tensor(factors, dtype=torch.float64, device=copy.device)[copy])

    return Copies(inputs, len(factors), change)


def _maps_of(explanation: Explanation) -> list[Tensor]:
    """The maps, and each layer's own."""
    return [explanation.maps, *explanation.layers.values()]


def _averaged(clean: Explanation, sums: Sequence[Tensor], count: int, what: str) -> Explanation:
    """The clean images' explanation with the mean of the copies' maps, also for each layer."""
    maps, *of_layers = (total / count for total in sums)
    layers = dict(zip(clean.layers, of_layers, strict=True))
    return dataclasses.replace(clean, maps=maps, layers=layers, method=f"{clean.method}, {what}")


def bound_target(explanation: Explanation, target: Any) -> targets.BoundTarget | None:
    """Return the target bound to the outputs of an explanation, so that other explanations use the same one.

    None if the outputs hold no classes and no target was given.
    """
    nothing = target is None and not isinstance(explanation.target, Tensor)
    return None if nothing else targets.bind(target, explanation.outputs)


def _numbers(what: str, given: Any, **bounds: Any) -> tuple[float, ...]:
    """Return one or more numbers, checked."""
    found = tuple(number(f"each of {what}", one, **bounds) for one in items(what, given, "a list of numbers"))
    if not found:
        raise CamlibValueError(f"{what} must be one or more numbers, got {given!r}")
    return found


def _starts(slack: int, scale: float) -> list[int]:
    """The starts of evenly spaced windows, the last at ``slack``, at most half a window apart."""
    steps = math.ceil(2 * scale - 2)
    return [round(step * slack / steps) for step in range(steps + 1)]


def _highest(scores: Tensor, keep: float) -> Tensor:
    """Whether each window's score, (windows, N, [K]), is in the highest fraction of the windows."""
    count = max(1, round(keep * len(scores)))
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter(0, scores.topk(count, dim=0).indices, True)
