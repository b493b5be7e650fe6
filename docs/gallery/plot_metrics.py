"""Evaluate a heatmap
==================

A heatmap always looks convincing. Three questions to ask: does the score depend on the pixels that it marks, is it
better than a map that ignores the image, and does it change when the network's weights are randomised?
"""

# %%
# The network is EfficientNet-Lite0 with its ImageNet weights; :doc:`plot_photographs` builds it step by step. Here it
# comes from a file in the same folder: :download:`efficientnet_lite0.py <../gallery/efficientnet_lite0.py>`.

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from efficientnet_lite0 import efficientnet_lite0
from PIL import Image

import camlib
from camlib import metrics

model = efficientnet_lite0()

# %%
# Nine images: three crops of each of three photographs.

crops = []
for photograph in (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()):
    picture = Image.fromarray(photograph)
    side = picture.height
    corners = np.linspace(0, picture.width - side, 3).astype(int).tolist()
    crops += [picture.resize((224, 224), box=(left, 0, left + side, side)) for left in corners]
images = torch.stack([torch.from_numpy(np.array(crop)) for crop in crops]).movedim(-1, 1) / 127.5 - 1

# %%
# Deletion and insertion
# ----------------------
#
# An espresso, and three heatmaps: Grad-CAM, a Gaussian in the centre, and random weights.

espresso = images[4:5]
comparison = camlib.compare(model, espresso, ["grad_cam", "center_gaussian", "random_cam"])

figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
for axis, (name, explanation) in zip(axes[1:], comparison.items(), strict=True):
    axis.imshow(explanation.overlays([crops[4]])[0])
    axis.set_title(name, fontsize=10)
axes[0].imshow(crops[4])
for axis in axes:
    axis.set_axis_off()

# %%
# The probability of the class while the most important pixels are covered in grey, and while they appear on a blurred
# picture. A good heatmap makes the first curve fall early and the second rise early; the area under the curve sums it
# up.

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for name, explanation in comparison.items():
    for axis, curve in ((left, metrics.deletion_curve), (right, metrics.insertion_curve)):
        scores = curve(model, espresso, explanation.heatmaps(), steps=14)[0]
        shares = torch.linspace(0, 1, len(scores))
        axis.plot(shares, scores, label=f"{name}, area {torch.trapezoid(scores, shares):.2f}")
for axis, title in ((left, "deletion: lower is better"), (right, "insertion: higher is better")):
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("share of the pixels")
    axis.legend(fontsize=8)
left.set_ylabel("p(espresso)")

# sphinx_gallery_thumbnail_number = 2

# %%
# Deletion distinguishes Grad-CAM from both baselines. Insertion hardly distinguishes it from the centre Gaussian: the
# cup is in the middle, and even random weights come close.
#
# Many methods, many metrics
# --------------------------
#
# ``camlib.evaluate`` computes all metrics on all images. The two baselines are always among the methods.

evaluation = camlib.evaluate(
    model,
    images,
    ["grad_cam", "layer_cam", "eigen_cam"],
    metrics={"average_drop": {}, "deletion": {"steps": 7}, "insertion": {"steps": 7}},
)
print(evaluation)
evaluation.plot()

# %%
# How much better one row is than another, image by image, with its 95% interval:

rows = {row.method: row for row in evaluation.rows}
for metric in evaluation.metrics:
    mean, (low, high) = evaluation.difference(rows["grad_cam"], rows["center_gaussian"], metric)
    print(f"{metric:13} Grad-CAM is better than the centre Gaussian by {mean:.3f} ({low:.3f} to {high:.3f})")

# %%
# In the table Grad-CAM is first everywhere. But none of these three intervals is clearly above zero, and crops of one
# photograph are not independent images: with so few, Grad-CAM does not beat the centre Gaussian. Use more images of
# your own.
#
# Does the map change when the weights are randomised?
# ----------------------------------------------------
#
# The network's parameters are randomised, from the output to the input, and each heatmap is compared with that of the
# trained network. A heatmap that stays similar does not explain the network. Randomised here: the classifier, the last
# batch norm and convolution, and the six blocks before them.

top = [f"features.network.{name}" for name in ("_bn1", "_conv_head", *(f"_blocks.{n}" for n in range(15, 9, -1)))]
result = metrics.randomization(camlib.GradCAM(model), images[::3], stages=["head", *top])
result.plot()

# %%
# With a random classifier the heatmaps are already no more similar to the original ones than two random maps are to
# each other, and in later stages hardly more: Grad-CAM depends on what the network has learned. Passing this test is
# necessary, but not sufficient: noise passes it best.
