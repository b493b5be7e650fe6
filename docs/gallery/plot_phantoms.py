"""Medicine: where is the opacity?
================================

A small network learns to distinguish drawings of chests with an opacity from drawings without. As the drawings are
ours, it is known where the opacities are, so that heatmaps can be evaluated. Then the same network is given a shortcut.

These are drawings, not medical images, and camlib is research software, not a medical device.
"""

# %%
# The drawings
# ------------
#
# A body, two dark lungs crossed by ribs, a bright heart, noise. Sick ones have an opacity in one lung. All have a
# bright blob somewhere below the lungs, so that a bright spot alone is no sign of an opacity.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import camlib
from camlib import metrics

SIDE = 64
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] / SIDE


def ellipse(x, y, width, height):
    """Between 0 and 1: an ellipse with a soft edge."""
    distance = np.hypot((COLUMNS - x) / width, (ROWS - y) / height)
    return 1 / (1 + np.exp((distance - 1) * 12))


def chest(random, sick):
    """One drawing in [0, 1], (H, W), and where its opacity is, (H, W)."""
    x, y = random.normal(0.5, 0.02), random.normal(0.45, 0.02)
    width, height = random.uniform(0.14, 0.17), random.uniform(0.26, 0.3)
    lungs = np.maximum(ellipse(x - 0.21, y, width, height), ellipse(x + 0.21, y, width, height))
    ribs = (np.sin((ROWS + 0.3 * np.abs(COLUMNS - x)) * 50 + random.uniform(0, 6)) > 0.6) * 0.08
    picture = (
        0.6 * ellipse(x, 0.6, 0.46, 0.75) - 0.4 * lungs + ribs * lungs + 0.2 * ellipse(x + 0.06, y + 0.15, 0.12, 0.15)
    )
    picture += 0.3 * ellipse(random.uniform(0.25, 0.75), random.uniform(0.85, 0.92), 0.08, 0.06)
    opacity = np.zeros_like(picture)
    if sick:
        side, radius = random.choice([-0.21, 0.21]), random.uniform(0.07, 0.11)
        centre = x + side + random.uniform(-0.05, 0.05), y + random.uniform(-0.15, 0.15)
        opacity = ellipse(*centre, radius, radius * random.uniform(0.8, 1.25)) * lungs
    picture += 0.28 * opacity + random.normal(0, 0.03, picture.shape)
    return picture.clip(0, 1), opacity > 0.4


def chests(count, seed):
    """Drawings (N, 1, H, W), labels (N,), of which every other is sick, and masks (N, H, W)."""
    random = np.random.default_rng(seed)
    labels = torch.arange(count) % 2
    drawn, masks = zip(*(chest(random, sick) for sick in labels.tolist()), strict=True)
    return torch.tensor(np.stack(drawn), dtype=torch.float32)[:, None], labels, torch.tensor(np.stack(masks))


pictures, labels, _ = chests(400, seed=0)
test_pictures, test_labels, test_masks = chests(100, seed=1)

# %%
# The network
# -----------


def trained(pictures, labels, epochs=15):
    """A small network, trained on these pictures."""
    torch.manual_seed(0)
    layers = []
    for before, after, stride in ((1, 8, 2), (8, 16, 2), (16, 16, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(pictures)).split(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pictures[batch] * 2 - 1), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def accuracy(model, pictures):
    """The share of the test pictures that are classified correctly."""
    with torch.no_grad():
        return (model(pictures * 2 - 1).argmax(1) == test_labels).float().mean().item()


model = trained(pictures, labels)
print(f"accuracy on drawings it has not seen: {accuracy(model, test_pictures):.2f}")

# %%
# Where it looked
# ---------------
#
# The class that is explained is the second, an opacity. Its true outline is drawn in white.

sick = test_labels == 1
cam = camlib.GradCAM(model)
explanation = cam(test_pictures[sick] * 2 - 1, target=1)


def draw(axis, picture, heatmap, mask):
    """Draw an overlay and the outline of the truth."""
    axis.imshow(camlib.overlay(picture, heatmap))
    if mask.any():
        axis.contour(mask.numpy(), [0.5], colors="white", linewidths=1.2)
    axis.set_axis_off()


figure, axes = plt.subplots(2, 5, figsize=(8, 3.4), layout="constrained")
figure.colorbar(plt.cm.ScalarMappable(cmap=camlib.imaging.DEFAULT_COLORMAP), ax=axes, label="share of the map's range")
for index, (above, below) in enumerate(axes.T):
    above.imshow(test_pictures[sick][index, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    above.set_axis_off()
    draw(below, test_pictures[sick][index], explanation.heatmaps()[index], test_masks[sick][index])
axes[0, 0].set_title("drawing", loc="left", fontsize=10)
axes[1, 0].set_title("Grad-CAM of the opacity, and the truth", loc="left", fontsize=10)

# %%
# The heatmaps lie on the opacities, and around them: the last layer has 16 x 16 cells, and each of them sees more than
# its own patch.
#
# Is that good?
# -------------
#
# The energy pointing game: which share of the heatmap's sum lies on the opacity. It says little without baselines: a
# Gaussian in the centre of the picture, random weights, and a heatmap that is spread evenly, which has the opacity's
# own share of the picture.

comparison = camlib.compare(model, test_pictures[sick] * 2 - 1, ["grad_cam", "random_cam", "center_gaussian"], target=1)
print(f"{'spread evenly':16} {test_masks[sick].float().mean():.3f}")
for name, found in comparison.items():
    energy = metrics.energy_pointing_game(found.heatmaps(), test_masks[sick])
    print(f"{name:16} {energy.mean():.3f}")

# %%
# Grad-CAM puts seven times as much on the opacity as an even spread would, and the centre Gaussian less than twice.
# Random weights are drawn once here; another draw may do better.
#
# A shortcut
# ----------
#
# In another hospital every sick patient was drawn with a tag in the corner, and no healthy one. The same network,
# trained there, is right about all of that hospital's patients.


def tagged(pictures, chosen):
    """The pictures, with a bright square in the corner of the chosen ones."""
    pictures = pictures.clone()
    pictures[chosen, :, 3:9, 3:9] = 1
    return pictures


shortcut = trained(tagged(pictures, labels == 1), labels)
print(f"accuracy where the sick carry tags:    {accuracy(shortcut, tagged(test_pictures, sick)):.2f}")
print(f"accuracy where nobody does:            {accuracy(shortcut, test_pictures):.2f}")
print(f"accuracy where only the healthy do:    {accuracy(shortcut, tagged(test_pictures, ~sick)):.2f}")

# %%
# It has learned only the tag: without tags it is no better than guessing. The accuracy at its own hospital hides that;
# the heatmap of one of its patients shows it.

everybody = torch.ones(len(test_pictures), dtype=torch.bool)
cases = {
    "sick, no tag,\nfirst network": (model, test_pictures, 1),
    "sick, tag,\nfirst network": (model, tagged(test_pictures, everybody), 1),
    "sick, tag,\nshortcut": (shortcut, tagged(test_pictures, everybody), 1),
    "healthy, tag,\nshortcut": (shortcut, tagged(test_pictures, everybody), 0),
}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.7), layout="constrained")
for axis, (title, (network, shown, patient)) in zip(axes, cases.items(), strict=True):
    found = camlib.GradCAM(network)(shown[patient : patient + 1] * 2 - 1, target=1)
    draw(axis, shown[patient], found.heatmaps()[0], test_masks[patient])
    axis.set_title(f"{title}\np(sick) = {found.outputs.softmax(1)[0, 1]:.2f}", fontsize=10)

# %%
# The second picture is a warning of another kind. The first network has never seen a tag, and its heatmap is highest
# there: to a network that knows no tags, a bright square may well look like an opacity. The same holds for healthy
# ones:

with torch.no_grad():
    fooled = model(tagged(test_pictures, ~sick)[~sick] * 2 - 1).argmax(1) == 1
print(f"of the healthy with a tag, the first network calls {fooled.float().mean():.0%} sick")
