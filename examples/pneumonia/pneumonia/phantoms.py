"""Chest-radiograph phantoms: seeded drawings on which the pneumonia example runs without any download.

These are **drawings, not medical images**. Nothing here was measured on a patient, and a network that reads
them well has learned nothing about real radiographs. With them the whole example (training, metrics, heatmaps)
runs offline, and the question "does the heatmap point at the opacity?" has a known answer.

A phantom imitates how a radiograph is formed. Soft tissue, bones and mediastinum are layers of attenuation;
the lungs are *air*, which reduces attenuation; an opacity fills a part of that air, so ribs and vessels stay
visible through it and it ends where the lung ends. Exposure, vignetting and gamma are random for each picture,
noise for each pixel.

No shortcut distinguishes the classes:

- A NORMAL phantom draws the same opacities and then *spreads* the air they would fill evenly over its lungs.
  The amount of air, and with it the mean brightness, has the same distribution in both classes; only its
  concentration differs. Both classes get an additional random haze.
- Similar blobs appear *outside* the lungs (shoulders, abdomen, heart, flanks), and markers, leads, gas and
  exposure vary. All of them are drawn before the label is used.
- Number, position, size, shape, texture and strength of the opacities are random.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

MASK_LEVEL = 0.4
"""An opacity's mask is where its envelope, before texture, exceeds this fraction of its peak."""

_MIN_SIZE = 32
_COARSE_BLUR, _COARSE_SIDE = 0.03, 64  # softer layers are drawn on a grid of this side and enlarged
_FINE_SIDE = 96  # the others on one of at least this side, because filled polygons are half a pixel too large
_MARGINS = tuple(0.045 * (1 - step / 40) for step in range(41))  # tried in turn for an opacity's centre
_IMAGE_STREAM, _LABEL_STREAM = 1, 2

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Phantoms:
    """A set of phantoms with its ground truth.

    Attributes:
        images: The radiographs, uint8, (N, H, W), 0 (air) to 255.
        labels: The classes, int64, (N,): 0 NORMAL, 1 PNEUMONIA.
        masks: Where the opacities are, bool, (N, H, W); empty for NORMAL, always inside ``lungs``.
        lungs: The visible lung fields, bool, (N, H, W).
        distractors: Look-alike blobs outside the lungs and markers, bool, (N, H, W).
        markers: The markers alone, bool, (N, H, W).
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    lungs: torch.Tensor
    distractors: torch.Tensor
    markers: torch.Tensor

    def __len__(self) -> int:
        """Returns the number of phantoms."""
        return len(self.labels)


class _Anatomy(NamedTuple):
    """One body's outlines in canonical coordinates: x to the right, y down, the picture about [0, 1] square.

    Attributes:
        axis: The x of the spine.
        width: Half the greatest width of the rib cage.
        top: The y of the lungs' apices.
        base: The y at which the rib cage is widest, near the lungs' bases.
        trunk: Neck, shoulders and torso, (P, 2).
        arms: Two arms, each (P, 2).
        heart: Heart and great vessels, (P, 2).
        lungs: The two lungs, image left first, each (P, 2); their inner parts lie behind the heart.
    """

    axis: float
    width: float
    top: float
    base: float
    trunk: Array
    arms: list[Array]
    heart: Array
    lungs: list[Array]


class _Frame:
    """Places canonical outlines on the pixel grid, with one rotation, scale and shift for the whole body."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        angle = np.deg2rad(rng.normal(0.0, 3.0))
        stretch = rng.uniform(0.95, 1.14) * np.array([rng.uniform(0.98, 1.07), 1.0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.size = size
        self.matrix = turn * stretch
        self.centre = 0.5 + rng.uniform(-0.035, 0.035, 2)

    def place(self, points: Array) -> Array:
        """Maps canonical points to the picture's unit square: (..., 2) to (..., 2)."""
        return np.asarray((points - 0.5) @ self.matrix.T + self.centre, dtype=np.float32)

    def fill(self, outlines: Sequence[Array], blur: float = 0.0) -> Array:
        """Draws filled canonical outlines.

        Args:
            outlines: Closed polygons, each (P, 2) or a stack (B, P, 2); where two overlap the layer is 1.
            blur: Standard deviation of the edge's softness, as a fraction of the picture's width.

        Returns:
            The layer in [0, 1], (size, size).
        """
        soft = blur >= _COARSE_BLUR
        side = _COARSE_SIDE if soft else self.size * -(-_FINE_SIDE // self.size)
        canvas = np.zeros((side, side), dtype=np.uint8)
        for outline in outlines:
            corners = np.rint(self.place(outline) * (16 * side) - 8).astype(np.int32)
            for polygon in corners.reshape(-1, *corners.shape[-2:]):
                cv2.fillPoly(canvas, [polygon], 255, cv2.LINE_AA, 4)
        layer = canvas * np.float32(1 / 255)
        return _resize(_blur(layer, blur), self.size) if soft else _blur(_resize(layer, self.size), blur)


def _array(values: ArrayLike) -> Array:
    """Anything array-like, in single precision."""
    return np.asarray(values, dtype=np.float32)


def _blur(layer: Array, sigma: float) -> Array:
    """Gaussian blur with ``sigma`` a fraction of the width: (H, W) to (H, W)."""
    pixels = sigma * layer.shape[1]
    if pixels < 0.1:
        return layer
    side = 2 * int(2.5 * pixels + 0.5) + 1
    return np.asarray(cv2.GaussianBlur(layer, (side, side), pixels, borderType=cv2.BORDER_REPLICATE))


def _resize(layer: Array, size: int) -> Array:
    """Resamples a layer: (h, h) to (size, size)."""
    if len(layer) == size:
        return layer
    method = cv2.INTER_AREA if len(layer) > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(layer, (size, size), interpolation=method))


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Array:
    """Noise of about zero mean and unit deviation, smooth over 1/``cells`` of the width: (size, size)."""
    return _resize(rng.standard_normal((cells, cells), dtype=np.float32), size)


@functools.cache
def _spline(points: int, closed: bool, steps: int = 6) -> Array:
    """The Catmull-Rom basis that turns control points into a smooth curve: (samples, points)."""
    t = np.arange(steps) / steps
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )
    spans = points if closed else points - 1
    basis = np.zeros((spans * steps, points))
    for span in range(spans):
        for tap in range(4):
            index = span + tap - 1
            index = index % points if closed else min(max(index, 0), points - 1)
            basis[span * steps : (span + 1) * steps, index] += weights[:, tap]
    return basis.astype(np.float32)


def _curve(points: ArrayLike, *, closed: bool = True) -> Array:
    """Smooth curves through control points: (..., K, 2) to (..., P, 2)."""
    controls = _array(points)
    return np.asarray(_spline(controls.shape[-2], closed) @ controls)


def _band(lines: ArrayLike, widths: ArrayLike) -> Array:
    """The outlines of bands around lines: (..., P, 2) and a width (or (P,) widths) to (..., 2P, 2)."""
    line = _array(lines)
    tangent = np.empty_like(line)
    tangent[..., 1:-1, :] = line[..., 2:, :] - line[..., :-2, :]
    tangent[..., 0, :] = line[..., 1, :] - line[..., 0, :]
    tangent[..., -1, :] = line[..., -1, :] - line[..., -2, :]
    half = _array(widths) / (2 * np.hypot(tangent[..., 0], tangent[..., 1]) + 1e-9)
    offset = tangent[..., ::-1] * half[..., None] * _array([-1, 1])
    return np.concatenate([line + offset, (line - offset)[..., ::-1, :]], axis=-2)


def _cage(y: ArrayLike, width: float, base: float) -> Array:
    """Half the width of the rib cage at height ``y``: an egg, narrow at the top."""
    rise = np.clip((base - _array(y)) / (base - 0.06), -1.0, 1.0)
    return _array(width * np.sqrt(np.clip(1.0 - np.abs(rise) ** 2.4, 0.02, 1.0)))


def _anatomy(rng: np.random.Generator) -> _Anatomy:
    """Draws one body at random."""
    axis = 0.5 + rng.uniform(-0.015, 0.015)
    width = rng.uniform(0.315, 0.36)
    top = rng.uniform(0.13, 0.17)
    base = rng.uniform(0.70, 0.78)
    heart = _heart(rng, axis, base)
    lungs = [_lung(rng, side, axis, width, top, base) for side in (-1, 1)]
    return _Anatomy(axis, width, top, base, _trunk(rng, axis, width), _arms(rng, axis, width), heart, lungs)


def _trunk(rng: np.random.Generator, axis: float, width: float) -> Array:
    """Neck, shoulders and torso."""
    neck, slope = rng.uniform(0.085, 0.12), rng.uniform(0.05, 0.1)
    flank, shoulder = width + rng.uniform(0.05, 0.09), width + rng.uniform(0.03, 0.07)
    half = [(neck, -0.15), (neck, 0.01), (0.19, 0.02 + slope * 0.5), (shoulder - 0.04, 0.05 + slope)]
    half += [(shoulder, 0.16 + slope), (flank - 0.02, 0.42), (flank, 0.7), (flank - 0.005, 1.2)]
    right = [(axis + x, y) for x, y in half]
    left = [(axis - x, y) for x, y in reversed(half)]
    return _curve(right + left)


def _arms(rng: np.random.Generator, axis: float, width: float) -> list[Array]:
    """Two arms, hanging or held out, with a wedge of air between them and the torso."""
    arms = []
    for side in (-1, 1):
        angle, bend = rng.uniform(0.7, 1.4), rng.normal(0.0, 0.02)
        x, y = float(np.cos(angle)), float(np.sin(angle))
        line = [(0.0, 0.12), (0.35 * x + bend, 0.12 + 0.35 * y), (1.1 * x, 0.12 + 1.1 * y)]
        widths = np.linspace(0.15, rng.uniform(0.09, 0.13), 12)
        arms.append(_band(_curve([(axis + side * (width - 0.01 + x), y) for x, y in line], closed=False), widths))
    return arms


def _heart(rng: np.random.Generator, axis: float, base: float) -> Array:
    """Heart and great vessels, bulging to the image's right, its apex on the diaphragm."""
    swell, knob = rng.uniform(0.85, 1.25), rng.uniform(0.9, 1.3)
    right = [(0.045, 0.02), (0.045, 0.2), (0.055 * knob, 0.28), (0.05, 0.36), (0.085 * swell, 0.46)]
    right += [(0.15 * swell, 0.58), (0.17 * swell, base - 0.07), (0.14 * swell, base), (0.08, base + 0.06)]
    left = [(0.06, base + 0.06), (0.08 * swell, base - 0.03), (0.085 * swell, 0.58), (0.06, 0.46)]
    left += [(0.045, 0.32), (0.05, 0.18), (0.045, 0.02)]
    points = [(axis + x, y) for x, y in right] + [(axis - x, y) for x, y in left]
    return _curve(np.asarray(points) + rng.normal(0.0, 0.004, (len(points), 2)))


def _lung(rng: np.random.Generator, side: int, axis: float, width: float, top: float, base: float) -> Array:
    """One lung: along the rib cage outside, over the diaphragm's dome below, behind the heart inside."""
    low = base + (0.02 if side > 0 else -0.015) + rng.uniform(-0.03, 0.03)  # right diaphragm stands higher
    apex, dome = top + rng.uniform(-0.01, 0.01), low - rng.uniform(0.04, 0.08)
    angle = low + rng.uniform(0, 0.04)
    heights = np.array([0.1, 0.22, 0.4, 0.6, 0.8, 0.95]) * (angle - apex) + apex
    walls = _cage(heights, width, base) - rng.uniform(0.012, 0.03)
    inner, crown = rng.uniform(0.035, 0.05), rng.uniform(0.11, 0.14)
    points = [(crown, apex)]
    points += list(zip(walls.tolist(), heights.tolist(), strict=True))
    points += [(walls[-1] - 0.012, angle), (walls[-1] - 0.07, dome + 0.015), (0.17, dome)]
    points += [(0.08, dome + 0.03), (inner, dome + 0.05), (inner, 0.5), (inner, 0.3), (inner + 0.02, apex + 0.05)]
    jitter = rng.normal(0.0, 0.004, (len(points), 2))
    return _curve((np.asarray(points) + jitter) * (side, 1) + (axis, 0.0))


def _draw_tissue(rng: np.random.Generator, frame: _Frame, body: _Anatomy) -> tuple[Array, Array, Array]:
    """Air, arms, head, trunk and abdomen.

    Returns:
        The soft tissue's attenuation, and the layers of the whole body and of the abdomen in [0, 1], each
        (size, size).
    """
    head = _ellipse((body.axis + rng.uniform(-0.03, 0.03), rng.uniform(-0.12, -0.04)), (0.13, 0.12))
    joints = [_ellipse((arm[0] + arm[-1]) / 2, (0.075, 0.075)) for arm in body.arms]
    everything = frame.fill([body.trunk, head, *body.arms, *joints], 0.004)
    trunk = frame.fill([body.trunk], 0.045)
    core = frame.fill([_ellipse((body.axis, 0.62), (body.width * 0.9, 0.5))], 0.09)
    floor = body.base + rng.uniform(-0.03, 0.03)
    reach = body.width + 0.1
    belly = [(-reach, floor + 0.1), (-0.17, floor), (0.0, floor + 0.02), (0.17, floor + 0.02)]
    belly += [(reach, floor + 0.1), (reach, 1.3), (-reach, 1.3)]
    abdomen = frame.fill([_array(belly) + _array([body.axis, 0])], 0.05)
    fat = _smooth_noise(rng, 5, frame.size)
    tissue = 0.17 + 0.16 * trunk + 0.17 * core + rng.uniform(0.08, 0.16) * abdomen + 0.022 * fat
    tissue += 0.08 * frame.fill([head], 0.02)
    return _gas(rng, frame, body, tissue * everything), everything, abdomen


def _gas(rng: np.random.Generator, frame: _Frame, body: _Anatomy, tissue: Array) -> Array:
    """Subtracts the air of the windpipe and, in most phantoms, of a stomach bubble under the diaphragm."""
    pipe = _curve([(body.axis, -0.1), (body.axis + rng.normal(0.0, 0.006), 0.1), (body.axis, 0.3)], closed=False)
    tissue = tissue - 0.06 * frame.fill([_band(pipe, 0.035)], 0.008)
    place = (body.axis + rng.uniform(0.1, 0.2), body.base + rng.uniform(0.06, 0.13))
    bubble = _curve(_ellipse(place, rng.uniform((0.03, 0.015), (0.07, 0.045)), 7) + rng.normal(0, 0.007, (7, 2)))
    return tissue - float(rng.random() < 0.6) * rng.uniform(0.04, 0.16) * frame.fill([bubble], 0.012)


@functools.cache
def _circle(points: int) -> Array:
    """The unit circle's outline, (points, 2)."""
    angle = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
    return _array(np.stack([np.cos(angle), np.sin(angle)], axis=1))


def _ellipse(centre: ArrayLike, radii: ArrayLike, points: int = 24) -> Array:
    """An ellipse's outline, (points, 2)."""
    return _array(centre) + _array(radii) * _circle(points)


def _draw_spine(rng: np.random.Generator, frame: _Frame, body: _Anatomy) -> Array:
    """The spine: a column, its vertebrae and the gaps between them, (size, size)."""
    half, pitch, phase = rng.uniform(0.028, 0.036), rng.uniform(0.048, 0.058), rng.uniform(0.0, 0.05)
    box = _array([(-half, -0.36), (half, -0.36), (half, 0.36), (-half, 0.36)])
    bones = box * _array([1, pitch]) + _array([(body.axis, -0.1 + phase + pitch * step) for step in range(22)])[:, None]
    column = box * _array([1, 2]) + _array([body.axis, 0.5])
    return rng.uniform(0.04, 0.08) * frame.fill([column], 0.012) + 0.05 * frame.fill([bones], 0.005)


def _rib_lines(rng: np.random.Generator, body: _Anatomy) -> tuple[Array, Array]:
    """Centre lines of the posterior ribs (spine to wall) and the anterior ones (wall to cartilage).

    Returns:
        Both (2, ribs, 12, 2), image left first.
    """
    pitch, drop, slope = rng.uniform(0.06, 0.07), rng.uniform(0.09, 0.15), rng.uniform(0.06, 0.11)
    rib, t = np.arange(9)[:, None], np.linspace(0.0, 1.0, 12)
    across, along = np.sin(t * np.pi / 2), 1 - np.cos(t * np.pi / 2)
    start = body.top - 0.035 + rib * pitch + rng.normal(0.0, 0.003, (9, 1))
    end = start + drop * (0.65 + 0.05 * rib)
    wall = _cage(end, body.width, body.base) + 0.004
    x, y = 0.035 + (wall - 0.035) * across, start - 0.016 * np.sin(t * np.pi) + (end - start) * t**2.2
    u, v = wall - (wall - 0.12 - 0.008 * rib) * along, end + slope * across**1.5
    sides = _array([[-1, 1], [1, 1]])[:, None, None]
    behind, before = _array(np.stack([x, y], axis=-1)), _array(np.stack([u, v], axis=-1))[1:6]
    return behind * sides + _array([body.axis, 0]), before * sides + _array([body.axis, 0])


def _draw_bones(rng: np.random.Generator, frame: _Frame, body: _Anatomy) -> Array:
    """Ribs, collar bones, shoulder blades and upper arms: the attenuation they add, (size, size)."""
    behind, before = _rib_lines(rng, body)
    thick = rng.uniform(0.017, 0.023)
    back = frame.fill([_band(behind, thick)], 0.003)
    front = frame.fill([_band(before, thick * 0.9)], 0.006)
    other, blades = [], []
    for side in (-1, 1):
        lift, flip = rng.uniform(-0.03, 0.03), _array([side, 1])
        collar = _array([(0.035, 0.015), (0.12, -0.015 + lift / 2), (0.22, -0.025 + lift), (0.33, -0.055 + lift)])
        line = _curve(collar * flip + _array([body.axis, body.top]), closed=False)
        other.append(_band(line, rng.uniform(0.02, 0.026)))
        joint = _array([body.axis + side * (body.width + 0.035), 0.13 + lift])
        other.append(_ellipse(joint, (0.035, 0.038)))
        blade = _array([(0.0, 0.02), (-0.1, 0.05), (-0.09, 0.14), (-0.05, 0.24), (-0.02, 0.15)])
        blades.append(_curve(blade * flip + joint))
    for arm in body.arms:
        middle = (arm[: len(arm) // 2] + arm[len(arm) // 2 :][::-1]) / 2
        other.append(_band(middle, 0.045))
    hard = frame.fill(other, 0.004)
    bones = rng.uniform(0.07, 0.11) * (1.5 * back - 0.6 * _blur(back, 0.008)) + rng.uniform(0.02, 0.05) * front
    bones += rng.uniform(0.08, 0.13) * (1.3 * hard - 0.4 * _blur(hard, 0.012)) + 0.05 * frame.fill(blades, 0.008)
    return bones


def _draw_vessels(rng: np.random.Generator, frame: _Frame, body: _Anatomy) -> Array:
    """The hila and the vessels that fan out of them, in [0, 1], (size, size)."""
    hila = _array([body.axis, 0]) + rng.uniform([(-0.09, 0.38), (0.07, 0.38)], [(-0.07, 0.44), (0.09, 0.44)])
    angle = np.linspace(-1.25, 1.3, 8) + rng.normal(0.0, 0.12, (2, 8))
    length = rng.uniform(0.12, 0.24, (2, 8)) * (1.0 + 0.4 * np.abs(np.sin(angle)))
    way = np.stack([np.cos(angle) * _array([[-1], [1]]), np.sin(angle)], axis=-1) * length[..., None]
    bend = way[..., ::-1] * _array([-1, 1]) * rng.normal(0.0, 0.15, (2, 8, 1))
    root = np.broadcast_to(hila[:, None], way.shape)
    lines = _curve(np.stack([root, root + way / 2 + bend, root + way], axis=-2), closed=False)
    bands = _band(lines, np.linspace(0.014, 0.002, lines.shape[-2]))
    return frame.fill([bands, *(_ellipse(hilum, (0.022, 0.045)) for hilum in hila)], 0.005)


class _Blob(NamedTuple):
    """A soft irregular blob: its place and extent in canonical units, its turn and its strength."""

    centre: Array
    radii: Array
    angle: float
    strength: float


def _blob(rng: np.random.Generator, centre: Array) -> _Blob:
    """A blob of random extent and strength at ``centre``."""
    radius = rng.uniform(0.065, 0.115)
    radii = _array([radius, radius * rng.uniform(0.7, 1.0)])
    return _Blob(centre, radii, rng.uniform(0.0, np.pi), rng.uniform(0.75, 0.98))


def _depth(outline: Array, point: Array) -> float:
    """How far inside an outline a point lies; negative outside."""
    return cv2.pointPolygonTest(outline, (float(point[0]), float(point[1])), True)


def _opacities(rng: np.random.Generator, body: _Anatomy) -> list[_Blob]:
    """One to three blobs whose centres lie in the visible lungs."""
    blobs: list[_Blob] = []
    for _ in range(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2])):
        lung = body.lungs[rng.integers(2)]
        low, high = lung.min(axis=0), lung.max(axis=0)
        for margin in _MARGINS:
            centre = rng.uniform(low, high).astype(np.float32)
            apart = all(float(np.hypot(*(centre - blob.centre))) > 0.12 for blob in blobs)
            if apart and _depth(lung, centre) > margin and _depth(body.heart, centre) < -margin:
                blobs.append(_blob(rng, centre))
                break
    return blobs or [_blob(rng, body.lungs[0].mean(axis=0))]


def _lookalikes(rng: np.random.Generator, body: _Anatomy) -> list[_Blob]:
    """Zero to three blobs in shoulders, flanks, abdomen, heart and neck, outside the visible lungs."""
    blobs = []
    for _ in range(rng.choice(4, p=[0.2, 0.35, 0.3, 0.15])):
        side = float(rng.choice([-1, 1]))
        wide, low = body.width, body.base
        zones = (
            ((side * (wide - 0.06), 0.02), (side * (wide + 0.07), 0.14)),
            ((side * (wide + 0.03), 0.3), (side * (wide + 0.1), 0.7)),
            ((-wide, low + 0.08), (wide, low + 0.22)),
            ((-0.02, 0.3), (0.1, low - 0.05)),
            ((-0.08, 0.0), (0.08, 0.12)),
        )
        corners = zones[rng.choice(len(zones), p=[0.27, 0.15, 0.27, 0.23, 0.08])]
        centre = rng.uniform(np.minimum(*corners), np.maximum(*corners))
        blobs.append(_blob(rng, _array(centre) + _array([body.axis, 0])))
    return blobs


def _envelope(frame: _Frame, blob: _Blob, rough: Array, layer: Array, mask: Flags, allowed: Array) -> None:
    """Adds one blob to a layer and to a mask.

    Args:
        frame: Where the body lies.
        blob: The blob.
        rough: Noise of unit deviation that makes the outline irregular, (size, size).
        layer: Grows to the largest of its value and the blob's strength times its envelope, (size, size).
        mask: Becomes true where the blob's envelope within ``allowed`` exceeds ``MASK_LEVEL``, (size, size).
        allowed: Where the blob may show, in [0, 1], (size, size).
    """
    size = frame.size
    scale = float(np.sqrt(abs(np.linalg.det(frame.matrix))))
    centre = frame.place(blob.centre) * size - 0.5
    radii = blob.radii * (scale * size)
    low = np.maximum(np.floor(centre - 1.9 * radii.max()).astype(int), 0)
    high = np.minimum(np.ceil(centre + 1.9 * radii.max()).astype(int) + 1, size)
    if (high <= low).any():
        return
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    dx = np.arange(low[0], high[0], dtype=np.float32)[None, :] - centre[0]
    dy = np.arange(low[1], high[1], dtype=np.float32)[:, None] - centre[1]
    cos, sin = np.float32(np.cos(blob.angle)), np.float32(np.sin(blob.angle))
    distance = np.hypot((cos * dx + sin * dy) / radii[0], (cos * dy - sin * dx) / radii[1])
    shape = 1 / (1 + np.exp((distance + 0.16 * rough[window] - 0.95) / 0.13)) * allowed[window]
    np.maximum(layer[window], np.float32(blob.strength) * shape, out=layer[window])
    mask[window] = mask[window] | (shape > MASK_LEVEL * max(float(shape.max()), 1e-3))


_GLYPHS = {
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
}


@functools.cache
def _glyph(letter: str, plate: bool) -> Array:
    """A marker's picture, (36, 28): white strokes, or dark ones on a white plate."""
    strokes = np.array([[cell == "#" for cell in row] for row in _GLYPHS[letter]], dtype=np.float32)
    large = np.pad(np.kron(strokes, np.ones((4, 4), dtype=np.float32)), 4)
    return np.asarray(1 - large if plate else large, dtype=np.float32)


def _draw_markers(rng: np.random.Generator, size: int) -> Array:
    """Zero to two letters near the upper corners or at the sides, in [0, 1], (size, size)."""
    layer = np.zeros((size, size), dtype=np.float32)
    for letter, side in (("R", 0), ("L", 1)):
        shown, plate = rng.random() < 0.5, rng.random() < 0.25
        height, lean = rng.uniform(0.06, 0.1), rng.normal(0.0, 0.1)
        x, y = rng.uniform(0.05, 0.13), rng.choice([rng.uniform(0.05, 0.14), rng.uniform(0.2, 0.5)])
        if not shown:
            continue
        picture = _glyph(letter, bool(plate))
        zoom = height * size / picture.shape[0]
        turn = zoom * np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
        offset = np.array([(1 - x) if side else x, y]) * size - 0.5 - turn @ (np.array(picture.shape[::-1]) / 2 - 0.5)
        soft = _blur(picture, 0.35 / (zoom * picture.shape[1]))  # against aliasing: glyphs are drawn smaller
        placed = cv2.warpAffine(soft, np.column_stack([turn, offset]), (size, size))
        np.maximum(layer, np.asarray(placed), out=layer)
    return layer


def _draw_leads(rng: np.random.Generator, frame: _Frame) -> Array:
    """In some phantoms, a wire across the chest with an electrode at its end, in [0, 1], (size, size)."""
    shown = rng.random() < 0.3
    start, end = rng.uniform((-0.1, 0.0), (1.1, 0.3)), rng.uniform((0.2, 0.2), (0.8, 0.7))
    bend = (start + end) / 2 + rng.normal(0.0, 0.08, 2)
    if not shown:
        return np.zeros((frame.size, frame.size), dtype=np.float32)
    wire = _band(_curve(np.stack([start, bend, end]), closed=False), 0.007)
    return frame.fill([wire, _ellipse((float(end[0]), float(end[1])), (0.013, 0.013))], 0.002)


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Array, Array]:
    """The x (1, size) and y (size, 1) of the pixels' centres in [-1, 1]."""
    line = _array((np.arange(size) + 0.5) / size * 2 - 1)
    return line[None, :], line[:, None]


def _expose(rng: np.random.Generator, attenuation: Array, marker: Array) -> NDArray[np.uint8]:
    """Turns attenuation into a picture: exposure, gamma, uneven field, vignette, marker, noise."""
    size = attenuation.shape[0]
    x, y = _grid(size)
    gain, offset, gamma = rng.uniform(1.05, 1.4), rng.uniform(-0.05, 0.09), rng.uniform(0.75, 1.3)
    tilt, vignette, centre = rng.normal(0.0, 0.05, 2), rng.uniform(0.0, 0.22), rng.uniform(-0.3, 0.3, 2)
    white, grain = rng.uniform(0.8, 1.0), rng.uniform(0.008, 0.03)
    picture = np.clip(attenuation * np.float32(gain) + np.float32(offset), 0.01, 3.0)
    # The shoulder of the film: bright parts lose contrast but are not clipped.
    picture /= np.sqrt(np.sqrt(1 + np.square(np.square(picture))))
    picture **= np.float32(gamma)
    field = 1 + np.float32(tilt[0]) * x + np.float32(tilt[1]) * y
    field = field - np.float32(vignette) * ((x - np.float32(centre[0])) ** 2 + (y - np.float32(centre[1])) ** 2) / 2
    picture = np.maximum(picture * field, np.float32(white) * marker)
    noise = rng.standard_normal((size, size), dtype=np.float32)  # the one draw that depends on the size: last
    picture += np.float32(grain) * (0.35 + picture) * noise
    return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), dtype=np.uint8)


class _Drawing(NamedTuple):
    """One phantom: image (uint8) and masks (bool), each (size, size)."""

    image: NDArray[np.uint8]
    mask: Flags
    lungs: Flags
    distractors: Flags
    markers: Flags


def _draw(rng: np.random.Generator, size: int, label: int) -> _Drawing:
    """Draws one phantom; the same ``rng`` draws the same body for every label and size."""
    frame, body = _Frame(rng, size), _anatomy(rng)
    tissue, outside, abdomen = _draw_tissue(rng, frame, body)
    heart = frame.fill([body.heart], 0.007)
    lungs = frame.fill(body.lungs, 0.006) * (1 - heart)
    rough, texture = _smooth_noise(rng, 22, size), _smooth_noise(rng, 34, size)
    slow, fine = _smooth_noise(rng, 5, size), _smooth_noise(rng, 60, size)

    fill, opacity = np.zeros_like(tissue), np.zeros((size, size), dtype=np.bool_)
    for blob in _opacities(rng, body):
        _envelope(frame, blob, rough, fill, opacity, lungs)
    fill *= np.clip(1 + 0.22 * texture, 0.3, 1.5)
    air = lungs * (0.5 + 0.5 * _blur(lungs, 0.04)) * np.float32(rng.uniform(0.2, 0.3)) * (1 + 0.06 * fine)
    drift = np.clip(1 + 0.35 * slow, 0.1, 2.5) * (1 + 0.1 * texture)
    if not label:  # the same loss of air, spread over the lungs
        fill = drift * np.float32((fill * air).sum() / max(float((drift * air).sum()), 1e-6))
        opacity[:] = False
    fill = 1 - (1 - np.clip(fill, 0.0, 0.97)) * (1 - np.float32(rng.uniform(0.0, 0.2)) * drift.clip(0, 2))

    extra, beyond = np.zeros_like(tissue), np.zeros((size, size), dtype=np.bool_)
    for blob in _lookalikes(rng, body):
        _envelope(frame, blob, rough, extra, beyond, (1 - lungs) * outside)
    attenuation = tissue + rng.uniform(0.16, 0.24) * extra * (1 + 0.22 * texture)
    attenuation += rng.uniform(0.03, 0.08) * heart * (1 - abdomen) + _draw_spine(rng, frame, body) * outside
    attenuation += _draw_bones(rng, frame, body) * outside
    attenuation += rng.uniform(0.03, 0.07) * _draw_vessels(rng, frame, body) * lungs - air * (1 - fill)
    attenuation += rng.uniform(0.1, 0.25) * _draw_leads(rng, frame)
    marker = _draw_markers(rng, size)
    image = _expose(rng, attenuation, marker)
    visible, marked = lungs > 0.5, marker > 0.5
    return _Drawing(image, opacity & visible, visible, (beyond & ~visible) | marked, marked)


def _labels(count: int, seed: int) -> NDArray[np.int64]:
    """Balanced labels, (count,): each pair of neighbours holds one of each class, in random order."""
    rng = np.random.default_rng([seed, _LABEL_STREAM])
    first = (rng.random((count + 1) // 2) < 0.5).astype(np.int64)
    return np.stack([first, 1 - first], axis=1).reshape(-1)[:count]


def _whole(name: str, value: int, least: int) -> int:
    """Checks an argument that counts something."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def generate(count: int, *, size: int = 128, seed: int = 0) -> Phantoms:
    """Draws chest-radiograph phantoms of both classes, with ground truth for where the opacities are.

    Phantom ``i`` depends on ``(seed, i)`` and ``size`` only, so a larger ``count`` does not change the first ones.
    Another ``size`` draws the same bodies at another resolution, with other noise.

    Args:
        count: How many, at least 1. Half are of each class (of an odd count, one class has one more), in an
            order shuffled by the seed.
        size: Height and width in pixels, at least 32.
        seed: Any whole number from 0.

    Returns:
        The phantoms; ``images`` uint8 (count, size, size), ``labels`` int64 (count,), masks bool like images.

    Raises:
        ValueError: If an argument is not a whole number or is too small.

    Example:
        >>> phantoms = generate(4, size=64, seed=7)
        >>> phantoms.images.shape, phantoms.images.dtype
        (torch.Size([4, 64, 64]), torch.uint8)
        >>> sorted(phantoms.labels.tolist())
        [0, 0, 1, 1]
        >>> bool((phantoms.masks.flatten(1).any(dim=1) == (phantoms.labels == 1)).all())
        True
    """
    count, size, seed = _whole("count", count, 1), _whole("size", size, _MIN_SIZE), _whole("seed", seed, 0)
    labels = _labels(count, seed)
    images = np.empty((count, size, size), dtype=np.uint8)
    flags = np.empty((4, count, size, size), dtype=np.bool_)
    for index, label in enumerate(labels):
        drawing = _draw(np.random.default_rng([seed, _IMAGE_STREAM, index]), size, int(label))
        images[index] = drawing.image
        for plane, flag in zip(flags, drawing[1:], strict=True):
            plane[index] = flag
    masks, lungs, distractors, markers = (torch.from_numpy(plane) for plane in flags)
    return Phantoms(torch.from_numpy(images), torch.from_numpy(labels), masks, lungs, distractors, markers)
