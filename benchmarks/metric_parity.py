"""camlib's metrics beside those of Quantus, captum, grad-cam, torchcam, scikit-image and scipy: where they agree.

All judge the same heatmaps, for the probability of class 4 of the same pictures: maps drawn at random, in which no two
pixels are alike, and Grad-CAM's at two layers, one of them small, so that its upsampled heatmaps have ties. Where a
peer draws random numbers it is given those that camlib drew, or no noise. The table gives the largest difference over
the pictures; where a peer differs by definition, the reason.

Run it with ``benchmarks/run metric_parity``; it writes ``benchmarks/results/metric_parity.json`` and
``metric_parity.csv``, which the documentation shows.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import captum.metrics
import numpy as np
import pytorch_grad_cam.metrics.arcc as arcc_of_grad_cam
import pytorch_grad_cam.metrics.road as road_of_grad_cam
import quantus
import scipy.stats
import skimage.feature
import skimage.metrics
import torch
import torchcam.metrics
import torchvision
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor, nn

import camlib
from benchmarks.results import provenance, save
from camlib import metrics
from camlib.metrics import similarity
from camlib.metrics.imputation import impute

CLASS, IMAGES, SIDE, STEPS = 4, 4, 40, 16
"""The sides and steps are such that all count the same pixels: shares of a fifth and steps of a sixteenth are whole."""
PACKAGES = ("torch", "torchvision", "quantus", "captum", "grad-cam", "torchcam", "scikit-image", "scipy")

RANDOM, FINE, COARSE = "random", "Grad-CAM, conv1, signed", "Grad-CAM, layer2"
"""What is judged; the last has ties, and one map of it is of zeros."""
EXPLAINERS: dict[str, tuple[str, bool]] = {FINE: ("conv1", False), COARSE: ("layer2", True)}
"""Their layers, and whether negative values are cut off."""
TIES = "ties, which camlib shuffles, are decided by the order of pixels"
GROUPS = "pixels that tie are removed together: more than the share goes, of many zeros all"
NOTHING = "NaN for a heatmap of zeros, left out of the difference; camlib documents a number"
REASONS = {
    ("arcc", "grad-cam", FINE): "camlib imputes to its default tolerance of 1e-4, grad-cam directly",
    ("relevance_rank", "quantus", COARSE): TIES,
    ("top_k_intersection", "quantus", COARSE): TIES,
    ("deletion", "torchcam", COARSE): TIES,
    ("insertion", "torchcam", COARSE): TIES,
    ("road_combined", "grad-cam", COARSE): GROUPS,
    ("arcc", "grad-cam", COARSE): GROUPS,
    ("average_drop", "grad-cam", RANDOM): "the drop is not divided by the confidence",
    ("average_drop", "grad-cam", FINE): "the drop is not divided by the confidence",
    ("average_drop", "grad-cam", COARSE): "the drop is not divided by the confidence",
}
AGREES = 1e-5
"""Differences below this are rounding, in single precision for some peers, or their absolute epsilons."""

Rows = list[dict[str, Any]]


def network() -> tuple[nn.Module, Tensor]:
    """A network of random weights that tells pictures apart, but is not sure, in double precision; and pictures."""
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18(num_classes=10).double().eval()
    images = torch.randn(IMAGES, 3, SIDE, SIDE, dtype=torch.float64)
    images += torch.linspace(-1, 1, IMAGES)[:, None, None, None]
    with torch.no_grad():
        model.fc.bias -= model(images).mean(0)
        spread = model(images).std()
        model.fc.weight /= spread
        model.fc.bias /= spread
    return model, images


def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """(N, classes)."""
    logits: Tensor = model(images)
    return logits.softmax(1)


class Judge:
    """Heatmaps of pictures, and every metric of them by camlib and a peer."""

    def __init__(self, on: str, model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
        self.on, self.model, self.images, self.heatmaps = on, model, images, heatmaps
        self.masks = torch.zeros(IMAGES, SIDE, SIDE, dtype=torch.bool)
        for n in range(IMAGES):
            self.masks[n, 5 : 15 + 3 * n, 10:25] = True
        self.rows: Rows = []

    def compare(self, metric: str, peer: str, own: Any, theirs: Any) -> None:
        """Put down the largest difference, over the pictures that the peer has a number for."""
        ours = np.asarray(own, dtype=np.float64)
        others = np.asarray(theirs, dtype=np.float64).reshape(ours.shape)
        difference = float(np.nanmax(np.abs(ours - others)))
        why = [REASONS.get((metric, peer, self.on), "?")] if difference > AGREES else []
        why += [NOTHING] if np.isnan(others).any() else []
        row = {"metric": metric, "peer": peer, "on": self.on, "difference": difference}
        self.rows.append(row | ({"why": "; ".join(why)} if why else {}))

    def quantus(self) -> None:
        """Localisation and shape."""

        def of(peer: Any, *, localised: bool = True) -> Any:
            return peer(
                model=None,
                x_batch=self.images.numpy(),
                y_batch=np.full(IMAGES, CLASS),
                a_batch=self.heatmaps[:, None].numpy().copy(),
                s_batch=self.masks[:, None].numpy() if localised else None,
                channel_first=True,
            )

        options: dict[str, Any] = {"abs": False, "normalise": False, "disable_warnings": True}
        h, masks = self.heatmaps, self.masks
        mass, rank = quantus.RelevanceMassAccuracy(**options), quantus.RelevanceRankAccuracy(**options)
        self.compare("energy_pointing_game", "quantus", metrics.energy_pointing_game(h, masks), of(mass))
        self.compare("relevance_rank", "quantus", metrics.relevance_rank(h, masks), of(rank))
        highest = of(quantus.TopKIntersection(k=300, **options))
        self.compare("top_k_intersection", "quantus", metrics.top_k_intersection(h, masks, k=300), highest)
        options["abs"] = True
        gini = of(quantus.Sparseness(**options), localised=False)
        self.compare("sparseness", "quantus", metrics.sparseness(h), gini)
        self.compare("entropy", "quantus", metrics.entropy(h), of(quantus.Complexity(**options), localised=False))

    def captum(self) -> None:
        """Infidelity of given perturbations."""
        perturbations = 0.1 * torch.randn(8, *self.images.shape[1:], dtype=torch.float64)
        for normalize in (False, True):
            own = metrics.infidelity(
                self.model, self.images, self.heatmaps, CLASS, perturbations=perturbations, normalize=normalize
            )

            def perturbed(images: Tensor) -> tuple[Tensor, Tensor]:
                noise = perturbations.repeat(IMAGES, 1, 1, 1)
                return noise, images - noise

            theirs = captum.metrics.infidelity(
                functools.partial(probabilities, self.model),
                perturbed,
                self.images,
                self.heatmaps[:, None].expand_as(self.images),
                target=CLASS,
                n_perturb_samples=len(perturbations),
                normalize=normalize,
            )
            # In units of the numbers themselves, which are squares of sums over all pixels.
            name = "infidelity, normalized" if normalize else "infidelity"
            self.compare(name, "captum", own / theirs, torch.ones_like(theirs))

    def grad_cam(self) -> None:
        """Drop, increase, complexity, and ROAD without noise."""
        targets = [ClassifierOutputSoftmaxTarget(CLASS)] * IMAGES
        given = (self.images, self.heatmaps.numpy(), targets, self.model)
        ours = (self.model, self.images, self.heatmaps, CLASS)
        self.compare("average_drop", "grad-cam", metrics.average_drop(*ours), DropInConfidence()(*given))
        self.compare("average_increase", "grad-cam", metrics.average_increase(*ours), IncreaseInConfidence()(*given))
        complexity = arcc_of_grad_cam.Complexity()(self.heatmaps.numpy())
        self.compare("complexity", "grad-cam", metrics.complexity(self.heatmaps), complexity)
        own = metrics.road_combined(*ours, noise=0.0, tolerance=1e-10)
        road = quiet(road_of_grad_cam.ROADCombined([20, 40, 60, 80]))
        theirs = road(self.images.float(), self.heatmaps.numpy(), targets, single(self.model))
        self.compare("road_combined", "grad-cam", own, theirs)

    def torchcam(self) -> None:
        """Drop, increase, deletion and insertion."""

        def of(peer: Any, *keys: str) -> list[list[float]]:
            found = []
            for n in range(IMAGES):  # a picture at a time: it sums them up
                peer.cam_extractor = Given(self.model, self.heatmaps[n : n + 1])
                peer.reset()
                peer.update(self.images[n : n + 1], CLASS)
                summary = peer.summary()
                found.append([summary[key] for key in keys])
            return [list(column) for column in zip(*found, strict=True)]

        extractor, softmax = Given(self.model, self.heatmaps), functools.partial(torch.softmax, dim=-1)
        ours = (self.model, self.images, self.heatmaps, CLASS)
        drop, increase = of(torchcam.metrics.ClassificationMetric(extractor, softmax), "avg_drop", "conf_increase")
        self.compare("average_drop", "torchcam", metrics.average_drop(*ours), drop)
        self.compare("average_increase", "torchcam", metrics.average_increase(*ours), increase)
        curves = torchcam.metrics.DeletionInsertionMetric(extractor, softmax, steps=STEPS)
        deletion, insertion = of(curves, "deletion_auc", "insertion_auc")
        own = metrics.deletion(*ours, steps=STEPS, baseline="zero")
        self.compare("deletion", "torchcam", own, deletion)
        own = metrics.insertion(*ours, steps=STEPS, baseline="zero")
        self.compare("insertion", "torchcam", own, insertion)

    def scikit_image(self) -> None:
        """Similarities of the heatmaps and noisy ones; scipy's rank correlation, too."""
        other = (self.heatmaps + torch.rand_like(self.heatmaps)) / 2
        pairs = list(zip(self.heatmaps.numpy(), other.numpy(), strict=True))
        ssim = [skimage.metrics.structural_similarity(a, b, data_range=1.0) for a, b in pairs]
        self.compare("ssim", "scikit-image", similarity.ssim(self.heatmaps, other), ssim)

        def hog(heatmap: Any) -> Any:
            return skimage.feature.hog(heatmap, pixels_per_cell=(SIDE // 8, SIDE // 8), cells_per_block=(3, 3))

        descriptors = [scipy.stats.pearsonr(hog(a), hog(b)).statistic for a, b in pairs]
        ranks = [scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs]
        self.compare("hog", "scikit-image", similarity.hog(self.heatmaps, other), descriptors)
        self.compare("spearman", "scipy", similarity.spearman(self.heatmaps, other), ranks)


class Given:
    """Heatmaps in the place of one of torchcam's extractors."""

    def __init__(self, model: nn.Module, heatmaps: Tensor) -> None:
        self.model, self.heatmaps = model, heatmaps

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Return them."""
        return [self.heatmaps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        """Return the only one."""
        return cams[0]

    def _hooks_off(self) -> Any:
        return contextlib.nullcontext()


def single(model: nn.Module) -> nn.Module:
    """The network in single precision, the only one that grad-cam imputes in."""
    return copy.deepcopy(model).float()


def quiet(road: Any) -> Any:
    """grad-cam's ROAD without noise."""

    def silenced(metric: Callable[[int], Any], percentile: int) -> Any:
        made = metric(percentile)
        made.perturbation.imputer.noise = 0.0
        return made

    for averager in (road.morf_averager, road.lerf_averager):
        averager.imputer = functools.partial(silenced, averager.imputer)
    return road


def imputation(images: Tensor) -> float:
    """The largest difference of imputed pictures, of which a fifth is known at random."""
    known = torch.rand(IMAGES, SIDE, SIDE) < 0.2
    imputer = road_of_grad_cam.NoisyLinearImputer(noise=0.0)
    theirs = torch.stack([imputer(image.float(), mask.float()) for image, mask in zip(images, known, strict=True)])
    return float((impute(images, known, tolerance=1e-12) - theirs).abs().max())


def of_explainers(model: nn.Module, images: Tensor, judge: Judge) -> None:
    """What explains again: sensitivity, with the copies that camlib drew, coherency and ARCC."""
    shown: list[Tensor] = []

    class Shown(camlib.GradCAM):
        """Keeps the pictures."""

        def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
            shown.append(inputs.clone())
            return super().__call__(inputs, target)

    layer, relu = EXPLAINERS[judge.on]
    samples, explainer = 5, camlib.GradCAM(model, layer, relu=relu)
    own = metrics.max_sensitivity(Shown(model, layer, relu=relu), images, CLASS, samples=samples)
    copies = torch.stack(shown[1:], 1).flatten(0, 1)  # of the first picture, of the second, ...

    def explain(inputs: Any) -> tuple[Tensor]:
        pictures = inputs[0] if isinstance(inputs, tuple) else inputs
        return (explainer(pictures.double(), CLASS).heatmaps(),)

    theirs = captum.metrics.sensitivity_max(explain, images, lambda _: copies, n_perturb_samples=samples)
    judge.compare("max_sensitivity", "captum", own, theirs)

    def base_method(input_tensor: Tensor, targets: Any) -> Any:
        return explain(input_tensor)[0].numpy()

    targets = [ClassifierOutputSoftmaxTarget(CLASS)] * IMAGES
    given = (images, judge.heatmaps.numpy(), targets, model)
    coherency = arcc_of_grad_cam.Coherency()(*given, base_method)
    judge.compare("coherency", "grad-cam", metrics.coherency(explainer, images, CLASS), coherency)
    arcc = arcc_of_grad_cam.ARCC(base_method, [20, 40, 60, 80])
    quiet(arcc.road)
    theirs = arcc(images.float(), *given[1:3], single(model))
    judge.compare("arcc", "grad-cam", metrics.arcc(explainer, images, CLASS, noise=0.0), theirs)


def main() -> None:
    """Compare, print the table, write JSON and CSV."""
    model, images = network()
    maps = {RANDOM: (torch.randperm(IMAGES * SIDE**2).double() / IMAGES / SIDE**2).reshape(IMAGES, SIDE, SIDE)}
    for on, (layer, relu) in EXPLAINERS.items():
        maps[on] = camlib.GradCAM(model, layer, relu=relu)(images, CLASS).heatmaps()
    rows: Rows = []
    for on, heatmaps in maps.items():
        judge = Judge(on, model, images, heatmaps)
        for peer in (judge.quantus, judge.captum, judge.grad_cam, judge.torchcam, judge.scikit_image):
            with warnings.catch_warnings(action="ignore"):  # of peers, about heatmaps of zeros
                peer()
        if on in EXPLAINERS:
            of_explainers(model, images, judge)
        rows += judge.rows
    rows.append({"metric": "impute", "peer": "grad-cam", "on": "a fifth known", "difference": imputation(images)})
    rows.sort(key=lambda row: (row["peer"], row["metric"]))
    results = provenance(*PACKAGES) | {"rows": rows}
    save("metric_parity", results)


if __name__ == "__main__":
    main()
