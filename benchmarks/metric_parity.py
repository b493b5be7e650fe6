"""How far camlib's metrics differ from those of Quantus, captum, grad-cam, torchcam, scikit-image and scipy.

All evaluate the same heatmaps of the same pictures, for the probability of class 4: random maps, in which no two
pixels are alike, and Grad-CAM's at two layers, one of them so small that its upsampled heatmaps have ties. A peer that
draws random numbers is given camlib's, or no noise. The table gives the largest difference over the pictures, and
where a peer differs by definition, the reason. ``benchmarks/run metric_parity`` writes ``metric_parity.json``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.results import provenance, save
from camlib import metrics
from camlib.metrics import similarity
from camlib.metrics.imputation import impute

CLASS, IMAGES, SIDE, STEPS = 4, 4, 40, 16
"""With this side and these steps all libraries count the same pixels: a fifth and a sixteenth are whole numbers."""
PACKAGES = ("torch", "torchvision", "quantus", "captum", "grad-cam", "torchcam", "scikit-image", "scipy")
RANDOM, FINE, COARSE = "random", "Grad-CAM, conv1, signed", "Grad-CAM, layer2"
"""The heatmaps; the last have ties, and one of them is zero everywhere."""
EXPLAINERS: dict[str, tuple[str, bool]] = {FINE: ("conv1", False), COARSE: ("layer2", True)}
"""Their layers, and whether negative values are cut off."""
TIES = "ties, which camlib shuffles, are decided by the order of pixels"
GROUPS = "pixels that tie are removed together: more than the share, and all zeros at once"
EDGES = "rounding decides the orientation of gradients that lie along an axis"
UNDIVIDED = "the drop is not divided by the confidence"
NOTHING = "NaN for a heatmap of zeros, left out of the difference; camlib documents a number"
REASONS = {
    ("arcc", "grad-cam", FINE): "camlib imputes to its default tolerance of 1e-4, grad-cam directly",
    **{(name, "quantus", COARSE): TIES for name in ("relevance_rank", "top_k_intersection")},
    **{(name, "torchcam", COARSE): TIES for name in ("deletion", "insertion")},
    **{(name, "grad-cam", COARSE): GROUPS for name in ("road_combined", "arcc")},
    ("hog", "scikit-image", COARSE): EDGES,
    **{("average_drop", "grad-cam", on): UNDIVIDED for on in (RANDOM, FINE, COARSE)},
}
AGREES = 1e-5
"""Smaller differences are rounding, in single precision for some peers, or the peers' absolute epsilons."""
Compared = Iterator[tuple[str, Any, Any]]
"""Names of metrics, camlib's values and a peer's."""


Cam = camlib.GradCAM | None
"""What made the heatmaps."""


def network() -> tuple[nn.Module, Tensor]:
    """A network of random weights in double precision that separates pictures without being sure; and pictures."""
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


def with_quantus(model: nn.Module, images: Tensor, h: Tensor, cam: Cam) -> Compared:
    """Localisation and shape."""
    import quantus

    masks = torch.zeros(IMAGES, SIDE, SIDE, dtype=torch.bool)
    for n in range(IMAGES):
        masks[n, 5 : 15 + 3 * n, 10:25] = True
    given = {"x_batch": images.numpy(), "y_batch": np.full(IMAGES, CLASS), "a_batch": h[:, None].numpy()}

    def of(peer: Callable[..., Any], masks: Any = None, **options: Any) -> Any:
        return peer(normalise=False, disable_warnings=True, **options)(
            model=None, s_batch=masks, channel_first=True, **copy.deepcopy(given)
        )

    there = masks[:, None].numpy()
    mass, rank = quantus.RelevanceMassAccuracy, quantus.RelevanceRankAccuracy
    yield "energy_pointing_game", metrics.energy_pointing_game(h, masks), of(mass, there, abs=False)
    yield "relevance_rank", metrics.relevance_rank(h, masks), of(rank, there, abs=False)
    highest = of(quantus.TopKIntersection, there, k=300, abs=False)
    yield "top_k_intersection", metrics.top_k_intersection(h, masks, k=300), highest
    yield "sparseness", metrics.sparseness(h), of(quantus.Sparseness, abs=True)
    yield "entropy", metrics.entropy(h), of(quantus.Complexity, abs=True)


def with_captum(model: nn.Module, images: Tensor, h: Tensor, cam: Cam) -> Compared:
    """Infidelity of given perturbations; sensitivity, with the copies that camlib drew."""
    import captum.metrics

    noise = 0.1 * torch.randn(8, *images.shape[1:], dtype=torch.float64)
    repeated = noise.repeat(IMAGES, 1, 1, 1)
    for normalize in (False, True):
        own = metrics.infidelity(model, images, h, CLASS, perturbations=noise, normalize=normalize)
        theirs = captum.metrics.infidelity(
            lambda inputs: model(inputs).softmax(1),
            lambda inputs: (repeated, inputs - repeated),
            images,
            h[:, None].expand_as(images),
            target=CLASS,
            n_perturb_samples=len(noise),
            normalize=normalize,
        )
        # The numbers are squares of sums over all pixels: their ratio is compared.
        yield "infidelity, normalized" if normalize else "infidelity", own / theirs, torch.ones_like(theirs)
    if cam:
        shown: list[Tensor] = []
        with model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].clone())):
            own = metrics.max_sensitivity(cam, images, CLASS, samples=5)
        copies = torch.stack(shown[1:], 1).flatten(0, 1)  # of the first picture, of the second, ...

        def explain(inputs: Any) -> tuple[Tensor]:
            return (cam(inputs[0] if isinstance(inputs, tuple) else inputs, CLASS).heatmaps(),)

        theirs = captum.metrics.sensitivity_max(explain, images, lambda _: copies, n_perturb_samples=5)
        yield "max_sensitivity", own, theirs


def with_grad_cam(model: nn.Module, images: Tensor, h: Tensor, cam: Cam) -> Compared:
    """Drop, increase, complexity, ROAD without noise, and what explains again: coherency and ARCC."""
    from pytorch_grad_cam.metrics import arcc, road
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(CLASS)] * IMAGES
    single = (images.float(), h.numpy(), targets, copy.deepcopy(model).float())  # it imputes in no other precision
    double = (images, h.numpy(), targets, model)
    yield "average_drop", metrics.average_drop(model, images, h, CLASS), DropInConfidence()(*double)
    yield "average_increase", metrics.average_increase(model, images, h, CLASS), IncreaseInConfidence()(*double)
    yield "complexity", metrics.complexity(h), arcc.Complexity()(h.numpy())
    own = metrics.road_combined(model, images, h, CLASS, noise=0.0, tolerance=1e-10)
    yield "road_combined", own, without_noise(road.ROADCombined([20, 40, 60, 80]))(*single)
    if cam:

        def again(input_tensor: Tensor, targets: Any) -> Any:
            return cam(input_tensor.double(), CLASS).heatmaps().numpy()

        yield "coherency", metrics.coherency(cam, images, CLASS), arcc.Coherency()(*double, again)
        theirs = arcc.ARCC(again, [20, 40, 60, 80])
        without_noise(theirs.road)
        yield "arcc", metrics.arcc(cam, images, CLASS, noise=0.0), theirs(*single)


def without_noise(road: Any) -> Any:
    """grad-cam's ROAD, imputing without noise."""

    def silenced(metric: Callable[[int], Any], percentile: int) -> Any:
        made = metric(percentile)
        made.perturbation.imputer.noise = 0.0
        return made

    for averager in (road.morf_averager, road.lerf_averager):
        averager.imputer = functools.partial(silenced, averager.imputer)
    return road


def with_torchcam(model: nn.Module, images: Tensor, h: Tensor, cam: Cam) -> Compared:
    """Drop, increase, deletion and insertion."""
    import torchcam.metrics

    class Given(SimpleNamespace):
        """Heatmaps in the place of one of torchcam's extractors."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return [self.heatmaps]

    def of(peer: Any, *keys: str) -> list[list[float]]:
        found = []
        for n in range(IMAGES):  # one picture at a time, because it sums over them
            peer.cam_extractor.heatmaps = h[n : n + 1]
            peer.reset()
            peer.update(images[n : n + 1], CLASS)
            found.append([peer.summary()[key] for key in keys])
        return [list(column) for column in zip(*found, strict=True)]

    extractor = Given(model=model, fuse_cams=lambda cams: cams[0], _hooks_off=contextlib.nullcontext)
    softmax = functools.partial(torch.softmax, dim=-1)
    drop, increase = of(torchcam.metrics.ClassificationMetric(extractor, softmax), "avg_drop", "conf_increase")
    yield "average_drop", metrics.average_drop(model, images, h, CLASS), drop
    yield "average_increase", metrics.average_increase(model, images, h, CLASS), increase
    curves = torchcam.metrics.DeletionInsertionMetric(extractor, softmax, steps=STEPS)
    deletion, insertion = of(curves, "deletion_auc", "insertion_auc")
    yield "deletion", metrics.deletion(model, images, h, CLASS, steps=STEPS, baseline="zero"), deletion
    yield "insertion", metrics.insertion(model, images, h, CLASS, steps=STEPS, baseline="zero"), insertion


def with_scikit_image(model: nn.Module, images: Tensor, h: Tensor, cam: Cam) -> Compared:
    """Similarities of the heatmaps and noisy ones."""
    import scipy.stats
    import skimage.feature
    import skimage.metrics

    other = (h + torch.rand_like(h)) / 2
    pairs = list(zip(h.numpy(), other.numpy(), strict=True))
    hog = functools.partial(skimage.feature.hog, pixels_per_cell=(SIDE // 8, SIDE // 8), cells_per_block=(3, 3))
    ssim = [skimage.metrics.structural_similarity(a, b, data_range=1.0) for a, b in pairs]
    yield "ssim", similarity.ssim(h, other), ssim
    descriptors = [scipy.stats.pearsonr(hog(a), hog(b)).statistic for a, b in pairs]
    yield "hog", similarity.hog(h, other), descriptors
    ranks = [scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs]
    yield "spearman", similarity.spearman(h, other), ranks


def imputed(images: Tensor) -> Compared:
    """Pictures of which a random fifth is known."""
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    known, imputer = torch.rand(IMAGES, SIDE, SIDE) < 0.2, NoisyLinearImputer(noise=0.0)
    theirs = [imputer(image.float(), mask.float()) for image, mask in zip(images, known, strict=True)]
    yield "impute", impute(images, known, tolerance=1e-12), torch.stack(theirs)


def rows(peer: str, on: str, compared: Compared) -> list[dict[str, Any]]:
    """The largest difference of each metric, over the pictures that the peer has a number for, and the reason."""
    found = []
    for metric, own, theirs in compared:
        ours = np.asarray(own, dtype=np.float64)
        others = np.asarray(theirs, dtype=np.float64).reshape(ours.shape)
        difference = float(np.nanmax(np.abs(ours - others)))
        why = [REASONS.get((metric, peer, on), "?")] if difference > AGREES else []
        why += [NOTHING] if np.isnan(others).any() else []
        row = {"metric": metric, "peer": "scipy" if metric == "spearman" else peer, "on": on, "difference": difference}
        found.append(row | {"why": "; ".join(why)})
    return found


def main() -> None:
    """Compare, print, write the JSON."""
    model, images = network()
    maps = (torch.randperm(IMAGES * SIDE**2).double() / IMAGES / SIDE**2).reshape(IMAGES, SIDE, SIDE)
    cases: dict[str, tuple[Tensor, Cam]] = {RANDOM: (maps, None)}
    for on, (layer, relu) in EXPLAINERS.items():
        cam = camlib.GradCAM(model, layer, relu=relu)
        cases[on] = cam(images, CLASS).heatmaps(), cam
    peers = {"captum": with_captum, "grad-cam": with_grad_cam, "quantus": with_quantus}
    peers |= {"scikit-image": with_scikit_image, "torchcam": with_torchcam}
    with warnings.catch_warnings(action="ignore"):  # of peers, about heatmaps of zeros
        found = [
            row
            for on, case in cases.items()
            for peer, of in peers.items()
            for row in rows(peer, on, of(model, images, *case))
        ]
    found += rows("grad-cam", "a fifth known", imputed(images))
    found.sort(key=lambda row: (row["peer"], row["metric"]))
    print(*found, sep="\n")
    save("metric_parity", provenance(*PACKAGES) | {"rows": found})


if __name__ == "__main__":
    main()
