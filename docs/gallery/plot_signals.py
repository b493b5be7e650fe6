"""Signals
=======

A 1-D network finds what is wrong with a drawn trace of heartbeats: nothing, a beat that is too wide, or one that is
left out. Heatmaps of signals are colours along the trace. These are drawings, not recordings, and camlib is research
software, not a medical device.
"""

# %%
# A beat is a small wave, a sharp spike, and a slower wave. The spike of a wide beat is broader, and the small wave
# before it is missing.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import camlib
from camlib import metrics

LENGTH = 400
TIME = np.arange(LENGTH)
CLASSES = ("regular", "wide beat", "pause")


def wave(middle, height, width):
    """A Gaussian along the trace."""
    return height * np.exp(-(((TIME - middle) / width) ** 2) / 2)


def beat(middle, wide):
    """The waves of one beat."""
    if wide:
        return wave(middle, 0.9, 5) + wave(middle + 14, -0.3, 6)
    spike = wave(middle - 3, -0.15, 1.2) + wave(middle, 1, 1.5) + wave(middle + 3, -0.2, 1.2)
    return wave(middle - 10, 0.12, 3) + spike + wave(middle + 16, 0.25, 4)


def trace(random, label):
    """A trace (L,), and where it is not regular, (L,)."""
    every = random.uniform(42, 52)
    middles = random.uniform(0, every) + every * np.arange(-1, 11) + random.normal(0, 1, 12)
    odd = random.choice(np.flatnonzero((middles > 60) & (middles < LENGTH - 60)))
    drawn = sum(
        beat(middle, label == 1 and number == odd)
        for number, middle in enumerate(middles)
        if label != 2 or number != odd
    )
    drift = 0.1 * np.sin(TIME / random.uniform(40, 80) + random.uniform(0, 6))
    return drawn + drift + random.normal(0, 0.03, LENGTH), (np.abs(TIME - middles[odd]) < 20) & (label > 0)


random = np.random.default_rng(0)
labels = torch.arange(600) % 3
traces, masks = zip(*(trace(random, label) for label in labels.tolist()), strict=True)
signals = torch.tensor(np.stack(traces), dtype=torch.float32)[:, None]  # (N, 1, L)
masks = torch.tensor(np.stack(masks))

# %%
# Four convolutions, the mean, a linear layer. The last 150 traces are not trained on.

torch.manual_seed(0)
layers = []
for before, after, stride in ((1, 8, 2), (8, 16, 2), (16, 16, 1), (16, 16, 1)):
    layers += [nn.Conv1d(before, after, 9, stride, 4, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
for _ in range(12):
    for batch in torch.randperm(450).split(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(signals[batch]), labels[batch]).backward()
        optimizer.step()
    schedule.step()

model.eval()
new, truth, masks = signals[450:], labels[450:], masks[450:]
with torch.no_grad():
    print(f"accuracy on new traces: {(model(new).argmax(1) == truth).float().mean():.2f}")

# %%
# Where is it wrong?
# ------------------
#
# One trace of each class, and the predicted class explained. ``plot`` draws signals before a background in the colours
# of the heatmap.

cam = camlib.GradCAM(model)
cam(new[:3]).plot(new[:3], CLASSES, colormap="YlOrRd", alpha=0.8)

# %%
# The wide beat is found, and the pause as well: a heatmap can show that something is missing, where the network looks
# for it. What makes a trace regular is spread over all of it, spikes left out.
#
# One trace, all classes
# ----------------------
#
# The trace with the pause again, explained for each class. ``relu=False`` keeps what speaks against a class, and
# "signed" leaves zero at the middle of the colours.

signed = camlib.GradCAM(model, relu=False)(new[2:3], target=[[0, 1, 2]])
heatmaps = signed.heatmaps(normalize="signed")[0]
figure, axes = plt.subplots(3, 1, figsize=(8, 4.5), sharex=True, layout="constrained")
for axis, name, heatmap, score in zip(axes, CLASSES, heatmaps.numpy(), signed.scores[0], strict=True):
    span = (-0.5, LENGTH - 0.5, -0.5, 1.4)
    drawn = axis.imshow(heatmap[None], cmap="coolwarm", vmin=-1, vmax=1, extent=span, aspect="auto")
    axis.plot(new[2, 0].numpy(), color="black", linewidth=1)
    axis.set_title(f"{name}: logit {score:.1f}", fontsize=10, loc="left")
axes[-1].set_xlabel("sample")
figure.colorbar(drawn, ax=axes, label="against      evidence      for")

# %%
# How much lies where it should
# -----------------------------
#
# The share of each heatmap that lies within 20 samples of the odd beat or of the gap, compared with
# baselines.

for label in (1, 2):
    chosen, where = new[truth == label], masks[truth == label]
    print(f"{CLASSES[label]}: spread evenly {where.float().mean():.2f}", end="")
    for name, found in camlib.compare(model, chosen, ["grad_cam", "random_cam", "center_gaussian"], label).items():
        print(f", {name} {metrics.energy_pointing_game(found.heatmaps(), where).mean():.2f}", end="")
    print()

# %%
# About half lies there, the rest close to it. Random weights are drawn once; this draw misses completely.
