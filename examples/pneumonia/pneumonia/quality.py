"""Do the heatmaps deserve trust? Four tests of Grad-CAM on a sample of test images.

Does the map depend on the weights (``randomisation``), does it name the pixels that the network needs
(``faithfulness``), does the network rely on borders and markers (``shortcuts``), do other methods agree
(``agreement``)? Every number has a 95% interval over patients. None of them says that a heatmap is medically right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import camlib
from camlib.metrics import (
    SIMILARITIES,
    ScoredHeatmaps,
    Scorer,
    deletion_curve,
    energy_pointing_game,
    insertion_curve,
    randomization,
    spearman,
)
from camlib.metrics.fills import Baseline
from pneumonia.data import CLASSES, Pictures
from pneumonia.measures import Estimate, means
from pneumonia.network import Network
from pneumonia.selection import drawn

AT_ONCE = 64
SIMILAR = ("ssim", "spearman")
DRAWS = 2
"""Random networks to average similarities over, since a single one may be unusual."""
PARTNERS = 8
"""Other images whose heatmaps each heatmap is compared with."""
STEPS = 8
"""Of insertion and deletion. Each step costs a forward pass, and 8 are enough to tell heatmaps apart."""
BASELINE: Baseline = "zero"
"""What removed pixels become: the mean of a standardised picture. A blurred picture would still show an opacity."""
METHODS = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus", "x_grad_cam", "eigen_cam")
"""All computed in one forward pass."""
BORDER, CORNER = 0.1, 0.18
"""Width of the border and side of the corner squares, as shares of the picture's side."""

SAMPLE_RULE = "drawn at random, with the seed of the run, from the test images that are PNEUMONIA or called PNEUMONIA"
VERDICT_RULE = (
    '"yes" if, with all weights randomised, the interval of the similarity to the original heatmap is closer to that '
    "of two random maps than to 1, and not above the similarity to the heatmaps of other images; "
    '"no" if it is closer to 1; "in part" if neither; "unknown" if there are too few heatmaps. The worse of the two '
    "similarities counts"
)
SHORTCUT_RULE = (
    "drawn at random, with the seed of the run, from the test images of each predicted class, whose logit is "
    "explained. A region is flagged if the interval of its energy by area is above 1. Energy in a region does not "
    "prove a shortcut, and its absence does not rule one out; covering the region is the stronger test"
)
VERDICTS = ("unknown", "no", "in part", "yes")
"""From worst to best."""


@dataclass(frozen=True)
class Similarity:
    """How similar heatmaps are to those of randomised networks, by one similarity measure."""

    stages: list[Estimate]
    """Similarity to the original heatmap after each stage of the randomisation."""
    random_pair: float
    """Similarity of two random maps."""
    different_images: Estimate
    """Similarity of the original heatmaps of different images."""
    beyond: Estimate
    """The last of ``stages`` minus ``different_images``, paired by image."""
    verdict: str


@dataclass(frozen=True)
class Randomisation:
    """Does the heatmap depend on the weights?"""

    rule: str
    verdict: str
    """The worst of the similarities."""
    stages: list[str]
    """The layers, from the head down; each stage randomises one more."""
    draws: int
    similarities: dict[str, Similarity]


@dataclass(frozen=True)
class Difference(Estimate):
    """Grad-CAM's area minus that of another map, paired by image."""

    verdict: str
    """better, worse, or inconclusive: the interval contains 0."""


@dataclass(frozen=True)
class Curves:
    """Insertion or deletion with several maps, by name."""

    better: str
    """higher or lower"""
    curves: dict[str, list[float]]
    """Mean probability of PNEUMONIA after each step."""
    area: dict[str, Estimate]
    """Area under the curve."""
    difference: dict[str, Difference]


@dataclass(frozen=True)
class Faithfulness:
    """Does the heatmap name the pixels that the network needs?"""

    shares: list[float]
    """Of the pixels, at each step."""
    insertion: Curves
    deletion: Curves


@dataclass(frozen=True)
class Region:
    """What one region of the picture means to the network."""

    area: float
    """As a share of the picture."""
    flagged: bool
    """Whether the interval of ``energy_by_area`` is above 1."""
    energy: Estimate
    """Share of the heatmap in the region."""
    energy_by_area: Estimate
    """1 means no preference."""
    change: Estimate
    """Mean absolute change of the probability of PNEUMONIA if the region is covered."""
    flips: Estimate
    """Share of the decisions that change if the region is covered."""


@dataclass(frozen=True)
class RegionUse:
    """How images of one predicted class use the regions of :func:`regions`."""

    images: int
    empty_heatmaps: int
    regions: dict[str, Region]


@dataclass(frozen=True)
class Shortcuts:
    """Does the network rely on borders and markers?"""

    rule: str
    called: dict[str, RegionUse]
    """By predicted class."""


@dataclass(frozen=True)
class Agreement:
    """Do the methods agree?"""

    methods: list[str]
    matrix: list[list[float]]
    """Mean rank correlations, in the order of ``methods``."""
    intervals: list[list[tuple[float, float]]]


@dataclass(frozen=True)
class Quality:
    """The answers to the four questions."""

    rule: str
    """How the images were drawn."""
    images: list[str]
    layer: str
    threshold: float
    empty_heatmaps: int
    """Left out of every answer but faithfulness."""
    randomisation: Randomisation
    faithfulness: Faithfulness
    shortcuts: Shortcuts
    agreement: Agreement


def quality(
    network: Network,
    pictures: Pictures,
    layer: str | None,
    seed: int,
    images: int = 32,
    *,
    threshold: float = 0.5,
    temperature: float = 1.0,
    progress: bool = True,
) -> Quality:
    """Test Grad-CAM of the PNEUMONIA logit.

    The cost is bounded: N forward passes for the decisions, and at most about 80 for each of ``images``. With 32 of
    them, ResNet-18 at 128 px on two cores takes under 40 seconds.

    Args:
        network: the trained network; it is left unchanged.
        pictures: the test images, N.
        layer: the layer of Grad-CAM; None to find it.
        seed: of the sample, the random networks and maps, and the intervals.
        images: the largest number of images to test; of each predicted class for the shortcuts.
        threshold: probability at or above which an image is called PNEUMONIA.
        temperature: that the logits are divided by.
        progress: whether to show a progress bar.
    """

    def tempered(model: nn.Module, inputs: Any) -> Any:
        return model(inputs) / temperature

    def scorer(pixels: Tensor) -> Scorer:
        return Scorer(network.model, network.inputs(pixels), 1, forward=tempered)

    batches = pictures.pixels.split(AT_ONCE)
    probabilities = torch.cat([scorer(batch).clean for batch in batches]).cpu().numpy()
    called = probabilities >= threshold
    sample = pictures.take(drawn(called | (pictures.labels.numpy() == 1), images, seed))
    inputs, patients = network.inputs(sample.pixels), sample.patients
    cam = camlib.GradCAM(network.model, layer)
    compared = camlib.compare(network.model, inputs, METHODS, 1, layer=layer)
    explanation = compared["grad_cam"]

    def use_by(label: int) -> RegionUse:
        part = pictures.take(drawn(called == bool(label), images, seed))
        explained = cam(network.inputs(part.pixels), label)
        return region_use(scorer(part.pixels), explained, threshold, part.patients, seed)

    with tqdm(total=4, desc="testing heatmaps", leave=False, disable=not progress) as bar:
        dependence = randomisation(cam, inputs, patients, seed)
        bar.update()
        faithful = faithfulness(scorer(sample.pixels), explanation, patients, seed)
        bar.update()
        uses = {name: use_by(label) for label, name in enumerate(CLASSES) if (called == bool(label)).any()}
        bar.update()
        agreeing = agreement(compared, patients, seed)
        bar.update()
    return Quality(
        rule=SAMPLE_RULE,
        images=sample.names,
        layer=explanation.layer,
        threshold=threshold,
        empty_heatmaps=int(explanation.degenerate.sum()),
        randomisation=dependence,
        faithfulness=faithful,
        shortcuts=Shortcuts(SHORTCUT_RULE, uses),
        agreement=agreeing,
    )


def randomisation(
    explainer: camlib.methods.Method, inputs: Tensor, patients: Sequence[str], seed: int
) -> Randomisation:
    """Test whether the heatmap changes when the weights are randomised (Adebayo et al. 2018).

    The network is randomised stage by stage, from the head down. The similarity to the original heatmap is compared
    with that of two random maps, and with that of the heatmaps of different images, which share no cause.
    """
    explanation = explainer(inputs, 1)
    runs = [
        randomization(
            explainer, inputs, 1, similarities=SIMILAR, generator=torch.Generator().manual_seed(seed + number)
        )
        for number in range(DRAWS)
    ]
    stages = list(runs[0].stages)
    similarities = {}
    for name in SIMILAR:
        alike = torch.stack([run.similarities[name] for run in runs]).mean(0)
        alike = alike.masked_fill(explanation.degenerate, torch.nan)
        others = _similarity_to_others(explanation, SIMILARITIES[name])
        columns = {**dict(zip(stages, alike, strict=True)), "others": others, "beyond": alike[-1] - others}
        found = means(columns, patients, seed)
        similarities[name] = Similarity(
            stages=[found[stage] for stage in stages],
            random_pair=(pair := float(np.mean([run.random_pair[name] for run in runs]))),
            different_images=found["others"],
            beyond=found["beyond"],
            verdict=_verdict(found[stages[-1]], found["beyond"], pair),
        )
    worst = min((similarity.verdict for similarity in similarities.values()), key=VERDICTS.index)
    return Randomisation(VERDICT_RULE, worst, stages, DRAWS, similarities)


def _similarity_to_others(explanation: camlib.Explanation, similarity: Callable[[Any, Any], Tensor]) -> Tensor:
    """Mean similarity of each heatmap (N,) to those of a few other images; NaN if there are none."""
    heatmaps, empty = explanation.heatmaps(), explanation.degenerate
    alike = [
        similarity(heatmaps, heatmaps.roll(places, 0)).masked_fill(empty | empty.roll(places), torch.nan)
        for places in range(1, min(PARTNERS + 1, len(heatmaps)))
    ]
    return torch.stack(alike).nanmean(0) if alike else heatmaps.new_full((len(heatmaps),), torch.nan)


def _verdict(left: Estimate, beyond: Estimate, random_pair: float) -> str:
    (low, high), more = left.interval, beyond.interval[0]
    halfway = (1 + random_pair) / 2
    if np.isnan([low, high, more]).any():
        return "unknown"
    if low > halfway:
        return "no"
    return "yes" if high < halfway and more <= 0 else "in part"


def faithfulness(scorer: Scorer, explanation: camlib.Explanation, patients: Sequence[str], seed: int) -> Faithfulness:
    """Compare Grad-CAM in insertion and deletion with two maps that do not depend on the network.

    These are random maps at the resolution of the layer, and a Gaussian in the centre of every picture. Pixels are
    inserted into, and deleted to, the mean gray of the picture.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(explanation.maps.shape, generator=generator).to(explanation.maps)
    heatmaps = explanation.heatmaps()
    size = tuple(heatmaps.shape[1:])
    contenders = {
        "grad_cam": heatmaps,
        "random": camlib.resize(noise, size),
        "center_gaussian": camlib.functional.center_gaussian(size).to(heatmaps).expand_as(heatmaps),
    }

    scored = {name: ScoredHeatmaps(scorer, maps) for name, maps in contenders.items()}

    def measured(curve: Callable[..., Tensor], better: str) -> Curves:
        curves = {name: curve(maps, steps=STEPS, baseline=BASELINE) for name, maps in scored.items()}
        areas = {name: torch.trapezoid(values, dx=1 / STEPS) for name, values in curves.items()}
        rivals = {name: areas["grad_cam"] - area for name, area in areas.items() if name != "grad_cam"}
        return Curves(
            better=better,
            curves={name: values.mean(0).tolist() for name, values in curves.items()},
            area=means(areas, patients, seed),
            difference={
                name: Difference(found.value, found.interval, _comparison(found.interval, better))
                for name, found in means(rivals, patients, seed).items()
            },
        )

    shares = [step / STEPS for step in range(STEPS + 1)]
    return Faithfulness(shares, measured(insertion_curve.of, "higher"), measured(deletion_curve.of, "lower"))


def _comparison(interval: tuple[float, float], better: str) -> str:
    low, high = interval
    if low <= 0 <= high:
        return "inconclusive"
    return "better" if (low > 0) == (better == "higher") else "worse"


def region_use(
    scorer: Scorer, explanation: camlib.Explanation, threshold: float, patients: Sequence[str], seed: int
) -> RegionUse:
    """Test whether the network relies on the border, or on the corners, where markers are; the middle is a reference.

    Each region is tested twice: by the share of the heatmap's energy in it, compared with its area, and by covering it
    with the median gray of the picture, which costs a forward pass.
    """
    heatmaps, before = explanation.heatmaps(), scorer.clean
    found = {}
    for name, inside in regions(heatmaps.shape[-1]).items():
        mask = inside.to(heatmaps.device)
        area = float(inside.double().mean())
        energy = energy_pointing_game(heatmaps, mask.expand_as(heatmaps)).double()
        energy = energy.masked_fill(explanation.degenerate, torch.nan)
        after = _covered(scorer, mask)
        estimates = means(
            {
                "energy": energy,
                "energy_by_area": energy / area,
                "change": (after - before).abs(),
                "flips": (after >= threshold) != (before >= threshold),
            },
            patients,
            seed,
        )
        found[name] = Region(area=area, flagged=estimates["energy_by_area"].interval[0] > 1, **estimates)
    return RegionUse(len(heatmaps), int(explanation.degenerate.sum()), found)


def _covered(scorer: Scorer, mask: Tensor) -> Tensor:
    """The scores (N,) of the pictures with their median gray where the mask (H, W) is true."""
    gray = scorer.images.flatten(2).median(2).values[..., None, None]
    pictures = torch.where(mask, gray, scorer.images)
    return scorer.scores(scorer.image_index, lambda _, rows: pictures[rows])


def regions(side: int) -> dict[str, Tensor]:
    """Return masks (side, side) of the corner squares, the border, and a middle square as large as the four corners.

    Example:
        >>> regions(6)["corners"].int()[0]
        tensor([1, 0, 0, 0, 0, 1], dtype=torch.int32)
        >>> {name: int(mask.sum()) for name, mask in regions(100).items()}
        {'corners': 1296, 'border': 3600, 'middle': 1296}
    """
    place = torch.arange(side)
    to_edge = torch.minimum(place, side - 1 - place)
    corner, frame = (to_edge < max(1, round(share * side)) for share in (CORNER, BORDER))
    centre = to_edge >= side // 2 - int(corner.sum()) // 2
    return {
        "corners": corner[:, None] & corner,
        "border": frame[:, None] | frame,
        "middle": centre[:, None] & centre,
    }


def agreement(compared: Mapping[str, camlib.Explanation], patients: Sequence[str], seed: int) -> Agreement:
    """Return the rank correlation (Spearman) between the heatmaps of every two methods.

    If a mean over positions and one linear layer follow, as after ResNet's layer4, Grad-CAM, HiResCAM and XGrad-CAM
    are equal by construction, and their agreement is no finding.
    """
    heatmaps = {name: explanation.heatmaps() for name, explanation in compared.items()}
    empty = torch.stack([explanation.degenerate for explanation in compared.values()]).any(0)
    pairs = itertools.combinations_with_replacement(heatmaps, 2)
    alike = {
        f"{one} {other}": spearman(heatmaps[one], heatmaps[other]).masked_fill(empty, torch.nan) for one, other in pairs
    }
    found = means(alike, patients, seed)
    table = [[found.get(f"{one} {other}") or found[f"{other} {one}"] for other in heatmaps] for one in heatmaps]
    return Agreement(
        methods=list(heatmaps),
        matrix=[[cell.value for cell in row] for row in table],
        intervals=[[cell.interval for cell in row] for row in table],
    )
