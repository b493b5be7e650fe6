"""Do the heatmaps deserve trust? Four questions to Grad-CAM of the trained network, on a sample of test images.

Does the map depend on the weights (``randomisation``), does it name the pixels that the network needs
(``faithfulness``), does the network lean on borders and markers (``shortcuts``), do other methods agree
(``agreement``)? Each answer comes with 95% intervals over patients. None says that a heatmap is medically right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import camlib
from camlib.metrics import SIMILARITIES, Scorer, Trial, energy_pointing_game, randomization, spearman
from camlib.metrics.curves import judge_deletion_curve, judge_insertion_curve
from camlib.metrics.fills import Baseline
from pneumonia.augment import prepare
from pneumonia.data import CLASSES, Pictures
from pneumonia.evaluate import with_intervals
from pneumonia.selection import drawn

Results = dict[str, Any]

AT_ONCE = 64
SIMILAR = ("ssim", "spearman")
DRAWS = 2
"""Random networks, over which similarities are averaged: one of them may be odd."""
PARTNERS = 8
"""Other images, with whose heatmap each one is compared."""
STEPS = 8
"""Of insertion and deletion: as few as show a difference between heatmaps, since each is a forward pass."""
GRAY: Baseline = "zero"
"""What pixels are taken away to, and appear on: the mean of a standardised picture. A blur would leave an opacity."""
METHODS = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus", "x_grad_cam", "eigen_cam")
"""All from one forward pass."""
BORDER, CORNER = 0.1, 0.18
"""Width of the frame and side of the corner squares, as shares of the picture's side."""

SAMPLE_RULE = "drawn at random, with the run's seed, from the test images that are PNEUMONIA or called so"
VERDICT_RULE = (
    "yes: with every weight random, the interval of the similarity to the true heatmap is below the middle between two "
    "random maps and the same map, and it is not above that of other images' heatmaps by more than its interval; no: "
    "it is above that middle; in part: neither; unknown: too few heatmaps. The worse of the two similarities counts"
)
SHORTCUT_RULE = (
    "drawn at random, with the run's seed, from the test images called so; the logit of that class is explained, and "
    "the probability of PNEUMONIA looked at. A region is flagged where the interval of its energy by area is above 1. "
    "Energy there does not prove a shortcut, and none does not prove its absence; covering the region tells more"
)
VERDICTS = ("unknown", "no", "in part", "yes")
"""From the worst."""


def quality(
    model: nn.Module,
    pictures: Pictures,
    size: int,
    layer: str | None,
    device: torch.device,
    seed: int,
    images: int = 32,
    *,
    threshold: float = 0.5,
    temperature: float = 1.0,
    progress: bool = True,
) -> Results:
    """Ask the four questions of Grad-CAM of the PNEUMONIA logit.

    The cost is bounded: N forward passes for the decisions, and at most about 80 for each of ``images``. With 32 of
    them, ResNet-18 at 128 px on two cores: under 40 seconds.

    Args:
        model: the trained network, on ``device``; it is left as it was.
        pictures: the test images, N.
        size: side of the network's input.
        layer: where Grad-CAM is taken; None to have it found.
        device: of the network.
        seed: of the sample, the random networks and maps, and the intervals.
        images: the most that are asked about; of each class for the shortcuts.
        threshold: at or above which PNEUMONIA is called.
        temperature: by which the logits are divided.
        progress: whether to show a progress bar.

    Returns:
        Plain values: ``rule``, ``images`` (names), ``layer``, ``threshold``, ``empty_heatmaps`` (how many, left out
        of all but faithfulness), and what :func:`randomisation`, :func:`faithfulness`, :func:`shortcuts` and
        :func:`agreement` return.
    """

    def tempered(network: nn.Module, inputs: Any) -> Any:
        return network(inputs) / temperature

    def scorer(inputs: Tensor) -> Scorer:
        return Scorer(model, inputs, 1, forward=tempered)

    def inputs_of(part: Pictures) -> Tensor:
        return prepare(part.pixels.to(device), size)

    def covering(label: int) -> Results:
        part = pictures.take(drawn(called == bool(label), images, seed))
        explanation = camlib.GradCAM(model, layer)(inputs_of(part), label)
        return shortcuts(scorer(inputs_of(part)), explanation, threshold, part.patients, seed)

    batches = pictures.pixels.to(device).split(AT_ONCE)
    probabilities = torch.cat([scorer(prepare(batch, size)).clean for batch in batches]).cpu().numpy()
    called = probabilities >= threshold
    sample = pictures.take(drawn(called | (pictures.labels.numpy() == 1), images, seed))
    inputs, patients = inputs_of(sample), sample.patients
    compared = camlib.compare(model, inputs, METHODS, 1, layer=layer)
    explanation = compared["grad_cam"]
    cam = camlib.GradCAM(model, layer)
    parts: dict[str, Callable[[], Results]] = {
        "randomisation": lambda: randomisation(cam, inputs, patients, seed),
        "faithfulness": lambda: faithfulness(scorer(inputs), explanation, patients, seed),
        "shortcuts": lambda: {
            "rule": SHORTCUT_RULE,
            **{name: covering(label) for label, name in enumerate(CLASSES) if (called == bool(label)).any()},
        },
        "agreement": lambda: agreement(compared, patients, seed),
    }
    return {
        "rule": SAMPLE_RULE,
        "images": sample.names,
        "layer": explanation.layer,
        "threshold": threshold,
        "empty_heatmaps": int(explanation.degenerate.sum()),
        **{
            name: part()
            for name, part in tqdm(parts.items(), desc="judging heatmaps", leave=False, disable=not progress)
        },
    }


def randomisation(explainer: camlib.methods.Method, inputs: Tensor, patients: Sequence[str], seed: int) -> Results:
    """Does the heatmap change when the network forgets what it has learned (Adebayo et al. 2018)?

    The network is randomised stage by stage, from the head down. Beside the similarity to the true heatmap stand that
    of two random maps and that of heatmaps of different images: what is alike without being the same.

    Returns:
        ``stages``, ``draws``, ``similarities`` (by name, one for each stage), ``random_pair``, ``different_images`` and
        ``beyond`` (the last stage's less that of different images, paired), all by name, ``verdicts`` by name and the
        ``verdict`` by :data:`VERDICT_RULE`.
    """
    explanation = explainer(inputs, 1)
    runs = [
        randomization(
            explainer, inputs, 1, similarities=SIMILAR, generator=torch.Generator().manual_seed(seed + number)
        )
        for number in range(DRAWS)
    ]
    stages = runs[0].stages
    found: Results = {name: {} for name in ("similarities", "random_pair", "different_images", "beyond", "verdicts")}
    for name in SIMILAR:
        alike = torch.stack([run.similarities[name] for run in runs]).mean(0)
        alike = alike.masked_fill(explanation.degenerate, torch.nan)
        others = _with_others(explanation, SIMILARITIES[name])
        means = _means(
            {**dict(zip(stages, alike, strict=True)), "others": others, "beyond": alike[-1] - others}, patients, seed
        )
        pair = float(np.mean([run.random_pair[name] for run in runs]))
        found["similarities"][name] = [means[stage] for stage in stages]
        found["random_pair"][name] = pair
        found["different_images"][name] = means["others"]
        found["beyond"][name] = means["beyond"]
        found["verdicts"][name] = _verdict(means[stages[-1]], means["beyond"], pair)
    verdict = min(found["verdicts"].values(), key=VERDICTS.index)
    return {"rule": VERDICT_RULE, "verdict": verdict, "stages": list(stages), "draws": DRAWS, **found}


def _with_others(explanation: camlib.Explanation, measure: Callable[[Any, Any], Tensor]) -> Tensor:
    """How alike each heatmap (N,) is to those of a few other images; NaN without any."""
    heatmaps, empty = explanation.heatmaps(), explanation.degenerate
    alike = [
        measure(heatmaps, heatmaps.roll(places, 0)).masked_fill(empty | empty.roll(places), torch.nan)
        for places in range(1, min(PARTNERS + 1, len(heatmaps)))
    ]
    return torch.stack(alike).nanmean(0) if alike else heatmaps.new_full((len(heatmaps),), torch.nan)


def _verdict(left: Results, beyond: Results, random_pair: float) -> str:
    (low, high), more = left["interval"], beyond["interval"][0]
    halfway = (1 + random_pair) / 2
    if np.isnan([low, high, more]).any():
        return "unknown"
    if low > halfway:
        return "no"
    return "yes" if high < halfway and more <= 0 else "in part"


def faithfulness(scorer: Scorer, explanation: camlib.Explanation, patients: Sequence[str], seed: int) -> Results:
    """Does the probability rise and fall sooner in the heatmap's order of pixels than in that of maps that do not look?

    These are random maps as coarse as the network's own, and a bell in the middle of every picture. Pixels appear on,
    and vanish into, the picture's mean gray.

    Returns:
        ``shares`` (of the pixels), and for insertion and deletion: which is ``better`` (higher or lower), mean
        ``curves``, ``area`` under them, and by rival the paired ``difference`` of Grad-CAM's area, whose ``evidence``
        is "better", "worse" or "no evidence" (its interval holds 0).
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(explanation.maps.shape, generator=generator).to(explanation.maps)
    heatmaps = explanation.heatmaps()
    contenders = {
        "grad_cam": heatmaps,
        "random": camlib.resize(noise, tuple(heatmaps.shape[1:])),
        "center_gaussian": camlib.functional.center_gaussian(tuple(heatmaps.shape[1:]))
        .to(heatmaps)
        .expand_as(heatmaps),
    }
    found: Results = {"shares": [step / STEPS for step in range(STEPS + 1)]}
    for name, better, curve in (
        ("insertion", "higher", judge_insertion_curve),
        ("deletion", "lower", judge_deletion_curve),
    ):
        curves = {who: curve(Trial(scorer, maps), steps=STEPS, baseline=GRAY) for who, maps in contenders.items()}
        areas = {who: torch.trapezoid(of, dx=1 / STEPS) for who, of in curves.items()}
        rivals = {who: areas["grad_cam"] - area for who, area in areas.items() if who != "grad_cam"}
        found[name] = {
            "better": better,
            "curves": {who: of.mean(0).tolist() for who, of in curves.items()},
            "area": _means(areas, patients, seed),
            "difference": {
                who: difference | {"evidence": _evidence(difference["interval"], better)}
                for who, difference in _means(rivals, patients, seed).items()
            },
        }
    return found


def _evidence(interval: Sequence[float], better: str) -> str:
    low, high = interval
    if low <= 0 <= high:
        return "no evidence"
    return "better" if (low > 0) == (better == "higher") else "worse"


def shortcuts(
    scorer: Scorer, explanation: camlib.Explanation, threshold: float, patients: Sequence[str], seed: int
) -> Results:
    """Does the network lean on the border, or on the corners, where markers stand? The middle is there for scale.

    Two looks at each region. The heatmap's: the share of its energy there, beside the share of the area. And the
    network's own, which is the stronger: how much the probability of PNEUMONIA changes when the region is covered with
    the picture's median gray, and how many decisions flip; a forward pass for each.

    Returns:
        ``images``, ``empty_heatmaps``, and by region ``area``, ``energy``, ``energy_by_area`` (1 is no preference),
        ``flagged`` (its interval is above 1), ``change`` (mean absolute) and ``flips`` (share).
    """
    heatmaps = explanation.heatmaps()
    found: Results = {"images": len(heatmaps), "empty_heatmaps": int(explanation.degenerate.sum())}
    for name, inside in regions(heatmaps.shape[-1]).items():
        mask = inside.to(heatmaps.device)
        area = float(inside.double().mean())
        energy = energy_pointing_game(heatmaps, mask.expand_as(heatmaps)).double()
        energy = energy.masked_fill(explanation.degenerate, torch.nan)
        after = _covered(scorer, mask)
        means = _means(
            {
                "energy": energy,
                "energy_by_area": energy / area,
                "change": (after - scorer.clean).abs(),
                "flips": (after >= threshold) != (scorer.clean >= threshold),
            },
            patients,
            seed,
        )
        found[name] = {"area": area, "flagged": means["energy_by_area"]["interval"][0] > 1, **means}
    return found


def _covered(scorer: Scorer, mask: Tensor) -> Tensor:
    """The scores (N,) of the pictures with their median gray where the mask (H, W) is true."""
    gray = scorer.pictures.flatten(2).median(2).values[..., None, None]
    pictures = torch.where(mask, gray, scorer.pictures)
    return scorer.scores(scorer.image_index, lambda _, rows: pictures[rows])


def regions(side: int) -> dict[str, Tensor]:
    """Masks (side, side) of the corner squares, the border, and a square in the middle as large as the four corners.

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


def agreement(compared: Mapping[str, camlib.Explanation], patients: Sequence[str], seed: int) -> Results:
    """Rank correlation (Spearman) between the heatmaps of every two methods.

    Before a mean over positions and one linear layer, as in ResNet's layer4, Grad-CAM, HiResCAM and XGrad-CAM are the
    same by construction: their agreement says nothing there.

    Returns:
        ``methods``, the ``matrix`` of mean correlations, and their ``intervals`` in the same order.
    """
    heatmaps = {name: explanation.heatmaps() for name, explanation in compared.items()}
    empty = torch.stack([explanation.degenerate for explanation in compared.values()]).any(0)
    pairs = itertools.combinations_with_replacement(heatmaps, 2)
    alike = {
        f"{one} {other}": spearman(heatmaps[one], heatmaps[other]).masked_fill(empty, torch.nan) for one, other in pairs
    }
    means = _means(alike, patients, seed)
    table = [[means.get(f"{one} {other}") or means[f"{other} {one}"] for other in heatmaps] for one in heatmaps]
    return {
        "methods": list(heatmaps),
        "matrix": [[cell["value"] for cell in row] for row in table],
        "intervals": [[cell["interval"] for cell in row] for row in table],
    }


def _means(columns: Mapping[str, Tensor], patients: Sequence[str], seed: int) -> Results:
    """Means over images with intervals over patients; what is NaN is left out."""
    values: dict[str, NDArray[Any]] = {name: column.double().cpu().numpy() for name, column in columns.items()}
    return with_intervals(lambda at: {name: _mean(column[at]) for name, column in values.items()}, patients, seed)


def _mean(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
