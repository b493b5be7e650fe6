"""Small networks, trained on drawn scenes whose pixels are known: a detector, a segmenter, a transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from benchmarks.subjects import Trial, indexed, scene
from camlib import targets

SEEDS = (0, 1, 2)
IMAGES = 24
"""Explained with each network."""
FEWER: dict[str, dict[str, Any]] = {"occlusion": {"window": 16, "stride": 8}, "rise": {"samples": 60}}
"""Fewer windows and masks than by default."""


def block(before: int, after: int, stride: int = 2) -> nn.Sequential:
    """A convolution, a batch norm, a ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def trained(model: nn.Module, steps: int, rate: float, loss: Callable[[int], Tensor], decay: float = 0.0) -> nn.Module:
    """The model after so many steps of AdamW, whose rate rises for a tenth of them and then falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def draws(random: np.random.Generator, count: int, batch: int, steps: int) -> list[Any]:
    """The pictures of each step: random ones, of so many."""
    return [random.choice(count, batch, replace=False) for _ in range(steps)]


# A detector: FCOS on a tiny backbone, as in the gallery.

SIDE = 96


def boxes_of(random: np.random.Generator) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """A picture with a disc and one or two squares, its boxes and labels, and masks."""
    labels = [0, 1, 1][: random.integers(2, 4)]
    picture, masks, boxes = scene(random, SIDE, labels, (7, 13))
    return picture, {"boxes": boxes, "labels": torch.tensor(labels)}, masks


def detector(seed: int) -> nn.Module:
    """The detector, trained on 400 pictures."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    pictures, known, _ = zip(*(boxes_of(random) for _ in range(400)), strict=True)
    backbone: Any = nn.Sequential(block(3, 16), block(16, 32), block(32, 32))
    backbone.out_channels = 32
    model = FCOS(
        backbone,
        num_classes=2,
        anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
        min_size=SIDE,
        max_size=SIDE,
        score_thresh=0.3,
        nms_thresh=0.3,
    )
    nn.init.ones_(model.head.regression_head.bbox_reg.bias)
    order = draws(random, len(pictures), 16, 240)

    def loss(step: int) -> Tensor:
        losses = model([pictures[n] for n in order[step]], [known[n] for n in order[step]])
        total: Tensor = sum(losses.values(), torch.zeros(()))
        return total

    return trained(model, len(order), 4e-3, loss)


def detected(seed: int) -> Trial:
    """One found object of each picture, discs and squares in turns."""
    model, random = detector(seed), np.random.default_rng(1000 + seed)
    inputs: list[Tensor] = []
    truth, boxes, labels = [], [], []
    for n in range(10 * IMAGES):
        picture, known, masks = boxes_of(random)
        with torch.no_grad():
            (found,) = model([picture])
        index = n % 2  # 0 is the disc, 1 the first square
        box = known["boxes"][index]
        for own, label in zip(found["boxes"], found["labels"], strict=True):
            near = (own - box).abs().max() < 4
            if near and label == known["labels"][index] and len(inputs) < IMAGES:
                inputs.append(picture)
                truth.append(masks[index])
                boxes.append(own)
                labels.append(label)
                break
    where, of = torch.stack(boxes), torch.stack(labels)
    return Trial(
        model,
        inputs,
        torch.stack(truth),
        lambda rows: targets.Box(where[rows], of[rows]),
        range(len(inputs)),
        layer="backbone",
        options=FEWER,
    )


# A segmenter: an encoder and a decoder with one skip.


class Segmenter(nn.Module):
    """Logits of the background and two shapes for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = block(3, 16, 1), nn.Sequential(block(16, 32), block(32, 32, 1))
        self.deep, self.up = nn.Sequential(block(32, 48), block(48, 48, 1)), block(80, 32, 1)
        self.decoder = block(48, 32, 1)
        self.head = nn.Conv2d(32, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W)."""
        fine = self.stem(images)
        middle = self.down(fine)
        deep = F.interpolate(self.deep(middle), scale_factor=2.0)
        joined = F.interpolate(self.up(torch.cat([middle, deep], 1)), scale_factor=2.0)
        logits: Tensor = self.head(self.decoder(torch.cat([fine, joined], 1)))
        return logits


def regions_of(random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A picture with two discs and a cross (or the reverse), the category of each pixel, and masks."""
    labels = [[0, 0, 2], [2, 2, 0]][random.integers(2)]
    picture, masks, _ = scene(random, 64, labels, (6, 10))
    categories = torch.zeros(64, 64, dtype=torch.long)
    for label, mask in zip(labels, masks, strict=True):
        categories[mask] = 1 if label == 0 else 2
    return picture, categories, masks


def segmented(seed: int) -> Trial:
    """The region of one of two objects of the same category."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    pictures, categories, _ = map(torch.stack, zip(*(regions_of(random) for _ in range(400)), strict=True))
    model, order = Segmenter(), draws(random, len(pictures), 16, 200)
    trained(model, len(order), 4e-3, lambda n: F.cross_entropy(model(pictures[order[n]]), categories[order[n]]))
    unseen = np.random.default_rng(1000 + seed)
    inputs, truth_categories, masks = map(torch.stack, zip(*(regions_of(unseen) for _ in range(IMAGES)), strict=True))
    region = masks[:, 0]  # the first two objects are of one category
    category = truth_categories[region.nonzero(as_tuple=True)]
    of = torch.stack([one[mask][0] for one, mask in zip(truth_categories, region, strict=True)])
    assert set(category.tolist()) <= {1, 2}
    return Trial(
        model,
        inputs,
        region,
        lambda rows: targets.Region(of[rows].tolist(), region[rows]),
        range(IMAGES),
        options=FEWER,
    )


# A transformer: which two of three shapes there are.

VIT: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 6,
    "num_layers": 4,
    "num_heads": 4,
    "hidden_dim": 64,
    "mlp_dim": 128,
}


def pairs(random: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of two different shapes, the two labels, and the masks."""
    labels = np.stack([random.permutation(3)[:2] for _ in range(count)])
    pictures, masks, _ = zip(*(scene(random, 48, of.tolist(), (7, 10)) for of in labels), strict=True)
    return torch.stack(pictures), torch.from_numpy(labels), torch.stack(masks)


def attended(seed: int) -> Trial:
    """The logit of one of the two shapes."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = VisionTransformer(**VIT, num_classes=3)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    pictures, labels, _ = pairs(random, 4000)
    present = F.one_hot(labels, 3).sum(1).float()
    order = draws(random, len(pictures), 32, 1000)

    def loss(step: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(pictures[order[step]] - 0.5), present[order[step]])

    trained(model, len(order), 2e-3, loss, 0.05)
    pictures, labels, masks = pairs(np.random.default_rng(1000 + seed), 4 * IMAGES)
    with torch.no_grad():
        right = ((model(pictures - 0.5) > 0) == (F.one_hot(labels, 3).sum(1) > 0)).all(1)
    print("right:", float(right.float().mean()))
    chosen = right.nonzero().flatten()[:IMAGES]
    of = labels[chosen, 0]
    return Trial(
        model,
        pictures[chosen] - 0.5,
        masks[chosen, 0],
        indexed(of.tolist()),
        range(len(chosen)),
        probability=lambda rows: targets.Probability(of[rows].tolist(), link="sigmoid"),
        options=FEWER,
    )


def seeded(make: Callable[[int], Trial]) -> Callable[[], Iterator[Trial]]:
    """A trial for each seed."""
    return lambda: map(make, SEEDS)
