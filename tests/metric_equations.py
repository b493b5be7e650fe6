"""The metrics' definitions in float64, restated as naively as they can be: one image, and loops over its pixels.

Nothing here imports camlib. Unless it says otherwise, a picture is (C, *grid) with any number of spatial dimensions, a
heatmap and a mask are (*grid), and ``score`` takes a picture to the number that is scored.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.ndimage
import scipy.stats
import skimage.feature
import skimage.metrics

Array = np.ndarray
Score = Callable[[Array], float]
Position = tuple[int, ...]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom; the last two exclusive."""


def probability(outputs: Array, category: int) -> float:
    """exp(y_c) / sum_j exp(y_j); of one logit y, 1 / (1 + exp(-y)) for class 1 and the rest for class 0."""
    if len(outputs) == 1:
        one = 1 / (1 + math.exp(-outputs[0]))
        return one if category == 1 else 1 - one
    return math.exp(outputs[category]) / sum(math.exp(y) for y in outputs)


def most_important_first(heatmap: Array) -> list[Position]:
    """Positions from the highest value to the lowest, which must all differ."""
    assert len(np.unique(heatmap)) == heatmap.size, "ties are not decided here"
    return sorted(np.ndindex(heatmap.shape), key=lambda position: -heatmap[position])


def replaced(picture: Array, positions: Sequence[Position], by: Array) -> Array:
    """The picture with all channels of some positions taken from another."""
    changed = picture.copy()
    for position in positions:
        for c in range(len(picture)):
            changed[c][position] = by[c][position]
    return changed


# Confidence -----------------------------------------------------------------------------------------------------------


def average_drop(picture: Array, heatmap: Array, score: Score) -> float:
    """Chattopadhyay 2018: max(0, Y - O) / Y, O on the picture times the heatmap."""
    clean, masked = score(picture), score(picture * heatmap)
    return max(0.0, clean - masked) / clean


def average_increase(picture: Array, heatmap: Array, score: Score) -> float:
    """Chattopadhyay 2018: whether O > Y."""
    return float(score(picture * heatmap) > score(picture))


# Curves ---------------------------------------------------------------------------------------------------------------


def blurred(picture: Array, *, sigma: float = 5.0, taps: int = 11) -> Array:
    """A Gaussian of 11 taps along every spatial axis; the border's values go on beyond it."""
    reach, size = taps // 2, picture.shape[1:]
    weights = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)])
    window = functools.reduce(np.multiply.outer, [weights / weights.sum()] * len(size))
    result = np.zeros_like(picture)
    for position in np.ndindex(size):
        around = [
            [min(max(at + i, 0), side - 1) for i in range(-reach, reach + 1)]
            for at, side in zip(position, size, strict=True)
        ]
        for c in range(len(picture)):
            result[c][position] = (window * picture[c][np.ix_(*around)]).sum()
    return result


def step_counts(pixels: int, steps: int) -> list[int]:
    """How many pixels are changed at each step."""
    return [round(j * pixels / steps) for j in range(steps + 1)]


def deletion_curve(picture: Array, heatmap: Array, score: Score, *, steps: int, baseline: Array) -> Array:
    """Petsiuk 2018: scores of the picture with ever more of the most important pixels at the baseline."""
    order = most_important_first(heatmap)
    return np.array([score(replaced(picture, order[:count], baseline)) for count in step_counts(heatmap.size, steps)])


def insertion_curve(picture: Array, heatmap: Array, score: Score, *, steps: int, baseline: Array) -> Array:
    """Petsiuk 2018: scores of the baseline with ever more of the most important pixels of the picture."""
    order = most_important_first(heatmap)
    return np.array([score(replaced(baseline, order[:count], picture)) for count in step_counts(heatmap.size, steps)])


def area(curve: Array, pixels: int) -> float:
    """Trapezoids over the share of pixels that were changed."""
    counts = step_counts(pixels, len(curve) - 1)
    total = 0.0
    for j in range(len(curve) - 1):
        total += (counts[j + 1] - counts[j]) / pixels * (curve[j] + curve[j + 1]) / 2
    return total


# ROAD -----------------------------------------------------------------------------------------------------------------


def neighbours(position: Position, size: Position) -> Iterator[tuple[Position, float]]:
    """The up to 8 around a pixel and their weights: 1/6 beside and above, 1/12 diagonally."""
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        at = (position[0] + down, position[1] + right)
        if (down, right) != (0, 0) and 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
            yield at, 1 / 12 if down and right else 1 / 6


def imputed(picture: Array, known: Array) -> Array:
    """Rong 2022: every unknown pixel is the weighted mean of its neighbours; one dense system for all of them."""
    unknown = [position for position in np.ndindex(known.shape) if not known[position]]
    number = {position: i for i, position in enumerate(unknown)}
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), len(picture)))
    for position, i in number.items():
        around = list(neighbours(position, known.shape))
        total = sum(weight for _, weight in around)
        matrix[i, i] = 1
        for at, weight in around:
            if known[at]:
                right[i] += weight / total * picture[(slice(None), *at)]
            else:
                matrix[i, number[at]] -= weight / total
    solution = np.linalg.solve(matrix, right)
    result = picture.copy()
    for position, i in number.items():
        result[(slice(None), *position)] = solution[i]
    return result


def imputation_residual(picture: Array, known: Array) -> float:
    """How far an unknown pixel is from its neighbours' weighted mean, at most."""
    largest = 0.0
    for position in np.ndindex(known.shape):
        if not known[position]:
            around = list(neighbours(position, known.shape))
            mean = sum(weight * picture[(slice(None), *at)] for at, weight in around) / sum(w for _, w in around)
            largest = max(largest, np.abs(picture[(slice(None), *position)] - mean).max())
    return largest


def road_known(heatmap: Array, share: float, *, least: bool = False) -> Array:
    """What is left when the most (or the least) important share of the pixels has been taken away."""
    order = most_important_first(heatmap)
    known = np.ones(heatmap.shape, dtype=bool)
    for position in (order[::-1] if least else order)[: round(share * heatmap.size)]:
        known[position] = False
    return known


def road(picture: Array, heatmap: Array, score: Score, *, shares: Sequence[float], least: bool = False) -> float:
    """Rong 2022 without noise: the mean over shares of the score's change."""
    scores = [score(imputed(picture, road_known(heatmap, share, least=least))) for share in shares]
    return sum(s - score(picture) for s in scores) / len(scores)


def road_combined(picture: Array, heatmap: Array, score: Score, *, shares: Sequence[float]) -> float:
    """(LeRF - MoRF) / 2."""
    least = road(picture, heatmap, score, shares=shares, least=True)
    return (least - road(picture, heatmap, score, shares=shares)) / 2


# Correlation and infidelity -------------------------------------------------------------------------------------------


def pearson(a: Array, b: Array) -> float:
    """scipy's; 0 where one of them is constant."""
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return 0.0 if constant else float(scipy.stats.pearsonr(np.ravel(a), np.ravel(b)).statistic)


def faithfulness_correlation(heatmap: Array, subsets: Sequence[Array], clean: float, scores: Sequence[float]) -> float:
    """Bhatt 2020: Pearson of the heatmap's sums over subsets (*grid) and of the scores' drops without them."""
    sums, drops = [], []
    for subset, s in zip(subsets, scores, strict=True):
        sums.append(sum(heatmap[position] for position in np.ndindex(heatmap.shape) if subset[position]))
        drops.append(clean - s)
    return pearson(np.array(sums), np.array(drops))


def infidelity(
    heatmap: Array, perturbations: Sequence[Array], clean: float, scores: Sequence[float], *, normalize: bool = False
) -> float:
    """Yeh 2019: mean of (sum_p H_p sum_c I_cp - (Y - s(x - I)))^2; normalised with the scale of H that is best."""
    a, b = [], []
    for perturbation, s in zip(perturbations, scores, strict=True):
        a.append(
            sum(
                heatmap[position] * sum(channel[position] for channel in perturbation)
                for position in np.ndindex(heatmap.shape)
            )
        )
        b.append(clean - s)
    beta = 1.0
    if normalize and sum(x**2 for x in a) > 0:
        beta = sum(x * y for x, y in zip(a, b, strict=True)) / sum(x**2 for x in a)
    return sum((beta * x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


# Similarity -----------------------------------------------------------------------------------------------------------


def spearman(a: Array, b: Array) -> float:
    """scipy's, average ranks for ties; 0 where one of them is constant."""
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return 0.0 if constant else float(scipy.stats.spearmanr(np.ravel(a), np.ravel(b)).statistic)


def ssim(a: Array, b: Array) -> float:
    """scikit-image's; where 7 pixels are too many, the largest odd window."""
    side = min(a.shape)
    window = min(7, side if side % 2 else side - 1)
    return float(skimage.metrics.structural_similarity(a, b, data_range=1.0, win_size=window))


def hog_cell(heatmap: Array) -> tuple[int, int]:
    """An eighth of each side, at least 2 pixels."""
    return max(2, heatmap.shape[0] // 8), max(2, heatmap.shape[1] // 8)


def hog_descriptor(heatmap: Array) -> Array:
    """scikit-image's, in double precision throughout: 9 orientations, cells an eighth of the sides, blocks of 3 x 3.

    A cell's histogram holds the mean length of the gradients of each orientation; borders have none across them. A
    block is divided by its norm, cut off at 0.2, and divided again (L2-Hys, with scikit-image's 1e-5).
    """
    height, width = heatmap.shape
    tall, wide = hog_cell(heatmap)
    cells = np.zeros((height // tall, width // wide, 9))
    for row, column in np.ndindex(cells.shape[0] * tall, cells.shape[1] * wide):
        down = heatmap[row + 1, column] - heatmap[row - 1, column] if 0 < row < height - 1 else 0.0
        right = heatmap[row, column + 1] - heatmap[row, column - 1] if 0 < column < width - 1 else 0.0
        orientation = math.degrees(math.atan2(down, right)) % 180
        if orientation < 180:  # scikit-image leaves out what rounding makes 180
            cells[row // tall, column // wide, int(orientation // 20)] += math.hypot(down, right) / (tall * wide)
    blocks = []
    for row, column in np.ndindex(cells.shape[0] - 2, cells.shape[1] - 2):
        block = cells[row : row + 3, column : column + 3].ravel()
        block = np.minimum(block / math.sqrt((block**2).sum() + 1e-10), 0.2)
        blocks.append(block / math.sqrt((block**2).sum() + 1e-10))
    return np.concatenate(blocks)


def scikit_image_hog_descriptor(heatmap: Array) -> Array:
    """The same by scikit-image, which adds up histograms in single precision."""
    return skimage.feature.hog(
        heatmap, orientations=9, pixels_per_cell=hog_cell(heatmap), cells_per_block=(3, 3), block_norm="L2-Hys"
    )


def hog(a: Array, b: Array) -> float:
    """Pearson of the descriptors."""
    return pearson(hog_descriptor(a), hog_descriptor(b))


SIMILARITIES = {"ssim": ssim, "spearman": spearman, "hog": hog}


# Localisation ---------------------------------------------------------------------------------------------------------


def box_mask(boxes: Sequence[Box], size: tuple[int, int]) -> Array:
    """True in any of the boxes."""
    mask = np.zeros(size, dtype=bool)
    for row, column in np.ndindex(size):
        mask[row, column] = any(left <= column < right and top <= row < bottom for left, top, right, bottom in boxes)
    return mask


def pointing_game(heatmap: Array, mask: Array, *, tolerance: float) -> float:
    """Zhang 2016: whether the one maximum lies at most ``tolerance`` pixels from the mask."""
    at = most_important_first(heatmap)[0]
    return float(any(math.dist(at, inside) <= tolerance for inside in np.ndindex(mask.shape) if mask[inside]))


def energy_pointing_game(heatmap: Array, mask: Array) -> float:
    """Arras 2022's relevance mass: the sum inside over the sum; 0 where there is none."""
    inside = sum(heatmap[position] for position in np.ndindex(mask.shape) if mask[position])
    return inside / heatmap.sum() if heatmap.sum() else 0.0


def relevance_rank(heatmap: Array, mask: Array) -> float:
    """Arras 2022: the share of the |mask| highest pixels that lie inside."""
    return top_k_intersection(heatmap, mask, k=int(mask.sum()))


def top_k_intersection(heatmap: Array, mask: Array, *, k: int) -> float:
    """Theiner 2021: the share of the k highest pixels that lie inside."""
    return sum(float(mask[position]) for position in most_important_first(heatmap)[:k]) / k


def roc_auc(heatmap: Array, mask: Array) -> float:
    """The area under the ROC curve by the trapezoidal rule, at every threshold that the heatmap has."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(heatmap.flatten().tolist()), reverse=True):
        chosen = heatmap >= threshold
        points.append(((chosen & ~mask).sum() / (~mask).sum(), (chosen & mask).sum() / mask.sum()))
    return float(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points)))


def iou(heatmap: Array, mask: Array, *, threshold: float) -> float:
    """Intersection over union of the mask and the pixels of at least the threshold."""
    both = either = 0
    for position in np.ndindex(mask.shape):
        both += heatmap[position] >= threshold and mask[position]
        either += heatmap[position] >= threshold or mask[position]
    return both / either


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def component_boxes(heatmap: Array, threshold: float) -> list[tuple[int, Box]]:
    """Sizes and tight boxes of what is connected, diagonally too, where the heatmap reaches the threshold."""
    labels, count = scipy.ndimage.label(heatmap >= threshold, structure=np.ones((3, 3)))
    found = []
    for label in range(1, count + 1):
        rows, columns = np.nonzero(labels == label)
        found.append((len(rows), (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    return found


def largest_component_hits(heatmap: Array, boxes: Sequence[Box], threshold: float, iou: float) -> set[bool]:
    """Choe 2020, MaxBoxAcc: whether the largest component's box meets a true one; of several largest, each answer."""
    components = component_boxes(heatmap, threshold)
    if not components:
        return {False}
    largest = max(size for size, _ in components)
    return {any(box_iou(box, true) >= iou for true in boxes) for size, box in components if size == largest}


def any_component_hits(heatmap: Array, boxes: Sequence[Box], threshold: float, iou: float) -> bool:
    """Choe 2020, MaxBoxAccV2: whether any component's box meets a true one."""
    return any(box_iou(box, true) >= iou for _, box in component_boxes(heatmap, threshold) for true in boxes)


# Shape ----------------------------------------------------------------------------------------------------------------


def sparseness(heatmap: Array) -> float:
    """Chalasani 2020's Gini index of |H|: the mean difference of two of its values over twice their mean."""
    values = np.abs(np.ravel(heatmap))
    if values.sum() == 0:
        return 0.0
    differences = sum(np.abs(value - values).sum() for value in values)
    return differences / len(values) ** 2 / (2 * values.mean())


def entropy(heatmap: Array) -> float:
    """Bhatt 2020's complexity: -sum p log p, p = |H| / sum |H|; where there is nothing all are alike."""
    values = np.abs(np.ravel(heatmap))
    if values.sum() == 0:
        return math.log(len(values))
    return -sum(v / values.sum() * math.log(v / values.sum()) for v in values if v > 0)


def complexity(heatmap: Array) -> float:
    """Poppi 2021: the L1 norm over the number of pixels."""
    return sum(abs(value) for value in np.ravel(heatmap)) / heatmap.size


# Mosaics, regions, completeness ---------------------------------------------------------------------------------------


def grid_pointing_game(heatmap: Array, mask: Array) -> float:
    """Böhle 2021, Rao 2022: the positive values on the tile over all positive values; 0 where there is none."""
    return energy_pointing_game(np.where(heatmap > 0, heatmap, 0), mask)


def completeness(signed_map: Array, score: float, of_baseline: float) -> float:
    """Sundararajan 2017: how far the sum of the map is from s(x) - s(x')."""
    return abs(sum(signed_map[position] for position in np.ndindex(signed_map.shape)) - (score - of_baseline))


def scores_without_regions(picture: Array, heatmap: Array, score: Score, *, labels: Array, by: Array) -> list[float]:
    """The scores while regions are replaced, that of the highest mean first."""
    members = {label: [at for at in np.ndindex(labels.shape) if labels[at] == label] for label in np.unique(labels)}
    means = {label: sum(heatmap[at] for at in those) / len(those) for label, those in members.items()}
    assert len(set(means.values())) == len(means), "ties are not decided here"
    scores = [score(picture)]
    for label in sorted(means, key=lambda one: -means[one]):
        picture = replaced(picture, members[label], by)
        scores.append(score(picture))
    return scores


def region_perturbation(picture: Array, heatmap: Array, score: Score, *, labels: Array, by: Array) -> float:
    """Samek 2017: the mean of s(x) - s(x_k) over k = 0, ..., L."""
    scores = scores_without_regions(picture, heatmap, score, labels=labels, by=by)
    return sum(scores[0] - one for one in scores) / len(scores)


def irof(picture: Array, heatmap: Array, score: Score, *, labels: Array, by: Array) -> float:
    """Rieger 2020: the area over s(x_k) / s(x), by trapezoids, for k / L from 0 to 1."""
    scores = scores_without_regions(picture, heatmap, score, labels=labels, by=by)
    under = sum((one + next_) / 2 for one, next_ in itertools.pairwise(scores)) / (len(scores) - 1)
    return 1 - under / scores[0]


# Coherency, robustness ------------------------------------------------------------------------------------------------


def coherency(heatmap: Array, of_masked: Array) -> float:
    """Poppi 2021: (1 + Pearson) / 2 of the heatmap and that of the picture times the heatmap."""
    return (1 + pearson(heatmap, of_masked)) / 2


def harmonic_mean(parts: Sequence[float]) -> float:
    """Of numbers that are not negative; 0 if one is 0."""
    return 0.0 if 0 in parts else len(parts) / sum(1 / part for part in parts)


def sensitivities(heatmap: Array, of_copies: Sequence[Array]) -> list[float]:
    """Yeh 2019: ||H(x + d) - H(x)|| / ||H(x)|| of every copy; a norm of 0 counts as 1."""
    size = math.sqrt((heatmap**2).sum()) or 1.0
    return [math.sqrt(((copy - heatmap) ** 2).sum()) / size for copy in of_copies]


def lipschitz_estimate(heatmap: Array, of_copies: Sequence[Array], shifts: Sequence[Array]) -> float:
    """Alvarez-Melis 2018: the largest ||H(x + d) - H(x)|| / ||d||."""
    return max(
        math.sqrt(((copy - heatmap) ** 2).sum()) / math.sqrt((shift**2).sum())
        for copy, shift in zip(of_copies, shifts, strict=True)
    )


def relative_stability(
    signed_map: Array, of_copies: Sequence[Array], changes: Sequence[float], *, least: float
) -> float:
    """Agarwal 2022: the largest || (M(x') - M(x)) / M(x) || / max(change, least); a value of 0 is divided by least."""
    ratios = []
    for copy, change in zip(of_copies, changes, strict=True):
        shares = [
            (copy[at] - signed_map[at]) / (least if signed_map[at] == 0 else signed_map[at])
            for at in np.ndindex(signed_map.shape)
        ]
        ratios.append(math.sqrt(sum(share**2 for share in shares)) / max(change, least))
    return max(ratios)


def histogram_entropy(heatmap: Array, bins: int) -> float:
    """Hedström 2024: the entropy of the histogram of values, whose bins divide their range equally."""
    counts, _ = np.histogram(heatmap, bins)
    return float(scipy.stats.entropy(counts))
