"""Segmentation
============

A network that gives every pixel a category, trained for a few seconds on drawn discs and squares. What is explained is
not one number of the network but a region: the mean logit of a category over a mask, or over what the network itself
gives to that category.
"""

# %%
# Drawings with their true categories: 0 background, 1 discs, 2 squares.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import camlib

SIDE = 64
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def scene(random):
    """A picture (3, H, W) with a disc and two squares of any colour, and its categories (H, W)."""
    picture = np.full((SIDE, SIDE, 3), random.uniform(0.2, 0.5, 3))
    categories = np.zeros((SIDE, SIDE), dtype=np.int64)
    for category in (2, 1, 2):
        x, y, radius = *random.uniform(10, SIDE - 10, 2), random.uniform(6, 10)
        across, down = np.abs(COLUMNS - x), np.abs(ROWS - y)
        inside = np.hypot(across, down) < radius if category == 1 else np.maximum(across, down) < radius * 0.9
        picture[inside], categories[inside] = random.uniform(0.4, 1, 3), category
    return (picture + random.normal(0, 0.03, picture.shape)).clip(0, 1).transpose(2, 0, 1), categories


random = np.random.default_rng(0)
scenes = [scene(random) for _ in range(304)]
pictures = torch.tensor(np.stack([picture for picture, _ in scenes]), dtype=torch.float32)
categories = torch.tensor(np.stack([category for _, category in scenes]))

# %%
# The network: down to a quarter of the side, features that see far, one score for each category, and up again. The
# last four drawings are kept for later.

torch.manual_seed(0)


def block(before, after, stride=1, dilation=1):
    """A convolution, a batch norm, a ReLU."""
    convolution = nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


model = nn.Sequential(
    block(3, 16, stride=2),
    block(16, 32, stride=2),
    block(32, 32, dilation=2),
    block(32, 32),
    nn.Conv2d(32, 3, 1),
    nn.Upsample(scale_factor=4, mode="bilinear"),
)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
for _ in range(15):
    for batch in torch.randperm(300).split(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures[batch]), categories[batch]).backward()
        optimizer.step()
    schedule.step()
model.eval()

shown, truth = pictures[300:], categories[300:]
with torch.no_grad():
    predicted = model(shown).argmax(1)
print(f"{(predicted == truth).float().mean():.1%} of the pixels are right")

# %%
# The region that the network predicts
# ------------------------------------
#
# ``Region(1)`` is the mean logit of the discs where the network says disc. It is explained with Grad-CAM, which sums
# over channels whose weights are means over the whole picture, and with Seg-Eigen-CAM, which was made for regions.

discs = camlib.targets.Region(1)
comparison = camlib.compare(model, shown, ["grad_cam", "seg_eigen_cam"], discs)

figure, axes = plt.subplots(4, 4, figsize=(8, 8), layout="constrained")
colors = plt.cm.ScalarMappable(cmap=camlib.imaging.DEFAULT_COLORMAP)
figure.colorbar(colors, ax=axes, label="share of the map's range", shrink=0.5)
columns = {
    "picture": shown.movedim(1, -1).numpy(),
    "predicted category": predicted.numpy() / 2,
    "Grad-CAM, discs": comparison["grad_cam"].overlays(shown),
    "Seg-Eigen-CAM, discs": comparison["seg_eigen_cam"].overlays(shown),
}
for column, (title, drawn) in zip(axes.T, columns.items(), strict=True):
    column[0].set_title(title, fontsize=10)
    for axis, image in zip(column, drawn, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()

# %%
# Both lie on the discs, Seg-Eigen-CAM more exactly: Grad-CAM colours some squares as well, as its weights are the same
# everywhere in the picture. In the third picture three shapes touch, the network itself takes parts of the squares for
# a disc, and both heatmaps follow it. They show the network, not the truth.
#
# One region among several
# ------------------------
#
# A mask asks about a part: the upper of the two squares of the second picture, then the lower one.

upper = (truth[1] == 2) & torch.tensor(ROWS < 30)
lower = (truth[1] == 2) & torch.tensor(ROWS >= 30)
figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
axes = axes.reshape(2, 2)
for pair, mask in zip(axes, (upper, lower), strict=True):
    of_mask = camlib.compare(model, shown[1:2], ["grad_cam", "seg_eigen_cam"], camlib.targets.Region(2, mask))
    for axis, (name, explanation) in zip(pair, of_mask.items(), strict=True):
        axis.imshow(explanation.overlays(shown[1:2])[0])
        axis.contour(mask.numpy(), [0.5], colors="white", linewidths=1.2)
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()

# %%
# The masks are outlined. Grad-CAM hardly tells the two squares apart; Seg-Eigen-CAM lies on the one that was asked
# about.
