"""Video
=====

A 3-D network tells whether a disc moves to the left or to the right, while another one moves up or down. Heatmaps of
videos have a time axis: they show where, and when. The network is trained for some seconds on drawn clips.
"""

# %%
# Clips of 16 frames. One disc stands still, moves sideways for four frames, and stands still again. The other moves up
# or down all the time, and says nothing about the class.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import camlib

FRAMES, SIDE, MOVES = 16, 32, 4
TIME = np.arange(FRAMES)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def disc(x, y):
    """A soft disc in every frame, (T, H, W), whose middle is at x and y, each (T,)."""
    distance = np.hypot(COLUMNS - x[:, None, None], ROWS - y[:, None, None])
    return 1 / (1 + np.exp(2 * (distance - 3)))


def clip(random, label):
    """A clip (T, H, W) in which a disc goes left (0) or right (1), and the frame in which it starts."""
    start, ahead = random.integers(2, FRAMES - MOVES - 2), 2 * label - 1
    x = random.uniform(12, 20) + ahead * 2.5 * ((TIME - start).clip(0, MOVES) - MOVES / 2)
    y = np.full(FRAMES, random.uniform(5, 27))
    other = random.uniform(12, 20) + random.choice([-1, 1]) * (TIME - FRAMES / 2)
    drawn = np.maximum(disc(x, y), disc(np.full(FRAMES, random.uniform(5, 27)), other))
    return (0.2 + 0.6 * drawn + random.normal(0, 0.05, drawn.shape)).clip(0, 1), start


random = np.random.default_rng(0)
labels = torch.arange(400) % 2
clips, starts = zip(*(clip(random, label) for label in labels.tolist()), strict=True)
videos = torch.tensor(np.stack(clips), dtype=torch.float32)[:, None]  # (N, 1, T, H, W)

# %%
# Three convolutions in space and time, the mean, a linear layer. The last 100 clips are not trained on.

torch.manual_seed(0)
layers = []
for before, after, stride in ((1, 8, (1, 2, 2)), (8, 16, (1, 2, 2)), (16, 16, 1)):
    layers += [nn.Conv3d(before, after, 3, stride, 1, bias=False), nn.BatchNorm3d(after), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
for _ in range(8):
    for batch in torch.randperm(300).split(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(videos[batch]), labels[batch]).backward()
        optimizer.step()
    schedule.step()

model.eval()
with torch.no_grad():
    print(f"accuracy on new clips: {(model(videos[300:]).argmax(1) == labels[300:]).float().mean():.2f}")

# %%
# Where
# -----
#
# A clip in which a disc goes right: every second frame, above the same frames with their heatmaps. ``overlays`` takes
# clips and returns clips.

cam = camlib.GradCAM(model)
explanation = cam(videos[300:])
print(explanation)


def show(number):
    """Draw frames of a new clip, and the same frames under their heatmaps."""
    frames = range(1, FRAMES, 2)
    overlays = explanation[number].overlays(videos[300 + number][None])[0]
    figure, axes = plt.subplots(2, len(frames), figsize=(8, 2.5), layout="constrained")
    colors = plt.cm.ScalarMappable(cmap=camlib.imaging.DEFAULT_COLORMAP)
    figure.colorbar(colors, ax=axes, label="share of\nthe map's range")
    for (above, below), frame in zip(axes.T, frames, strict=True):
        above.imshow(clips[300 + number][frame], cmap="gray", vmin=0, vmax=1)
        below.imshow(overlays[frame])
        above.set_axis_off()
        below.set_axis_off()
        moves = starts[300 + number] < frame <= starts[300 + number] + MOVES
        above.set_title(f"{frame}\nmoves" if moves else f"{frame}\n", fontsize=10)


show(1)

# %%
# And one in which a disc goes left:

show(2)

# %%
# When
# ----
#
# The highest value of the heatmap in each frame, with the frames shaded in which the disc moves sideways. A video's
# heatmap is scaled as a whole, so that its frames can be compared.

figure, axes = plt.subplots(2, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
for number, axis in enumerate(axes.flat):
    start = starts[300 + number]
    axis.axvspan(start, start + MOVES, color="tab:orange", alpha=0.3, label="a disc moves sideways")
    axis.plot(explanation.heatmaps()[number].amax((1, 2)).numpy(), color="black", label="heatmap's maximum")
    axis.set_title(f"goes {('left', 'right')[labels[300 + number]]}", fontsize=10)
axes[0, 0].legend(fontsize=8)
axes[1, 0].set(xlabel="frame", xticks=range(0, FRAMES, 5), ylim=(0, 1.05))

inside = [
    heatmap[start + 1 : start + MOVES + 1].sum() / heatmap.sum()
    for heatmap, start in zip(explanation.heatmaps(), starts[300:], strict=True)
]
print(f"share of the heatmap in the {MOVES} of {FRAMES} frames in which it moves: {torch.stack(inside).mean():.2f}")

# %%
# An even spread would have a quarter there. The heatmap begins before the disc moves and ends after it: its cells see
# some frames to both sides. In space it covers the way that the disc takes, and in places the other disc, too.
