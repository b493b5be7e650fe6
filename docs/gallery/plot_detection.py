"""Detection
=========

A detector finds several objects in one picture, and each box has its own score. ``camlib.targets.Box`` explains
the score of one of them. The detector is torchvision's FCOS on a tiny backbone, trained for some seconds on drawn discs
and squares.
"""

# %%
# Drawings with one disc and one or two squares, and their boxes; label 0 is a disc, label 1 a square.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

import camlib

SIDE = 96
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
CORNERS = np.array([(24, 24), (72, 24), (24, 72), (72, 72)])


def scene(random):
    """A picture (3, H, W), and its boxes and labels."""
    picture = np.full((SIDE, SIDE, 3), random.uniform(0.2, 0.5, 3))
    boxes, labels = [], []
    places = random.permutation(CORNERS)[: random.integers(2, 4)] + random.uniform(-9, 9, (1, 2))
    for (x, y), label in zip(places, (0, 1, 1), strict=False):
        radius = random.uniform(7, 13)
        across, down = np.abs(COLUMNS - x), np.abs(ROWS - y)
        inside = np.hypot(across, down) < radius if label == 0 else np.maximum(across, down) < radius
        picture[inside] = random.uniform(0.5, 1, 3)
        boxes.append([x - radius, y - radius, x + radius, y + radius])
        labels.append(label)
    picture = (picture + random.normal(0, 0.03, picture.shape)).clip(0, 1).transpose(2, 0, 1)
    known = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
    return torch.tensor(picture, dtype=torch.float32), known


random = np.random.default_rng(0)
scenes = [scene(random) for _ in range(320)]

# %%
# The detector
# ------------
#
# A backbone is any module that has ``out_channels``. FCOS cuts negative distances off with a ReLU; a bias keeps it from
# never learning some of them.

torch.manual_seed(0)


def block(before, after):
    """A convolution that halves the side, a batch norm, a ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


backbone = nn.Sequential(block(3, 16), block(16, 32), block(32, 32))
backbone.out_channels = 32
detector = FCOS(
    backbone,
    num_classes=2,
    anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
    min_size=SIDE,
    max_size=SIDE,
    score_thresh=0.5,
    nms_thresh=0.3,
)
nn.init.ones_(detector.head.regression_head.bbox_reg.bias)
optimizer = torch.optim.Adam(detector.parameters(), 3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
for _ in range(12):
    for batch in torch.randperm(300).split(20):
        optimizer.zero_grad()
        pictures, known = zip(*(scenes[index] for index in batch), strict=True)
        sum(detector(list(pictures), list(known)).values()).backward()
        optimizer.step()
    schedule.step()

# %%
# What it finds in a drawing that it has not seen, best first:

detector.eval()
picture, _ = scenes[311]
with torch.no_grad():
    found = detector([picture])[0]
names = ("disc", "square")
for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
    print(f"{names[label]:6} {score:.2f} at {box.round().int().tolist()}")

# %%
# Two boxes
# ---------
#
# ``Box`` takes boxes (N, K, 4): K maps of each picture, from one forward pass. The detection that overlaps best with a
# box is explained, wherever it stands in the list. The layer is the backbone's last, which both of the detector's heads
# read.

boxes, labels = found["boxes"][:2], found["labels"][:2]
target = camlib.targets.Box(boxes[None], labels[None])
comparison = camlib.compare(detector, [picture], ["grad_cam", "layer_cam"], target, layer="backbone")
print(comparison["layer_cam"])


def draw(axis, image, *shown):
    """Draw an image and boxes."""
    axis.imshow(image)
    axis.set_axis_off()
    for left, top, right, bottom in torch.stack(shown).tolist():
        axis.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linewidth=1.5))


figure, axes = plt.subplots(2, 3, figsize=(8, 5), layout="constrained")
figure.colorbar(plt.cm.ScalarMappable(cmap=camlib.imaging.DEFAULT_COLORMAP), ax=axes, label="share of the map's range")
for row, (method, explanation) in zip(axes, comparison.items(), strict=True):
    draw(row[0], picture.movedim(0, -1).numpy(), *boxes)
    row[0].set_title("picture and boxes", fontsize=10)
    for axis, overlay, box, label in zip(row[1:], explanation.overlays([picture])[0], boxes, labels, strict=True):
        draw(axis, overlay, box)
        axis.set_title(f"{method}, score of the {names[label]}", fontsize=10)

# %%
# Grad-CAM gives each channel one weight for the whole picture and colours whatever the channel responds to, so it does
# not distinguish the boxes. LayerCAM weights each position separately: for the disc's score it marks only the disc, for
# the square's score both squares. This may still be correct: the heads see 11 x 11 cells, nearly the whole picture, and
# their group norms are computed over all of it, so that a score may well depend on another object.
