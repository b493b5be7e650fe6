"""Training: epochs of augmented pictures, averaged weights, a checkpoint after each epoch, resuming from it."""

from __future__ import annotations

import copy
import csv
import hashlib
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

from pneumonia import distributed
from pneumonia.augment import augment, views
from pneumonia.data import Pictures
from pneumonia.errors import InputError
from pneumonia.model import read_checkpoint, save_whole, train_mode


@dataclass(frozen=True)
class Recipe:
    """How to train. A checkpoint is resumed only under the recipe it was made with."""

    epochs: int
    batch_size: int
    size: int
    learning_rate: float
    seed: int
    finetune: str
    weights: str
    images: str
    """Fingerprint of the training and validation images."""
    full_size_epochs: int
    """The last epochs see the pictures at full size; before, the size grows from half of it: cheaper, and as good."""
    label_smoothing: float = 0.1
    weight_decay: float = 0.05
    averaging: float = 0.995
    """Weight of the past in the running average of the network's weights."""

    def size_at(self, epoch: int) -> int:
        """Return the side of the input in an epoch, counted from 0: a multiple of 32 until it is full."""
        growing = self.epochs - self.full_size_epochs
        if epoch >= growing:
            return self.size
        return max(32, 32 * round(self.size * (0.5 + 0.5 * epoch / growing) / 32))


def fingerprint(training: Pictures, validation: Pictures) -> str:
    """Tell one split of one data set from another, wherever its folder lies."""
    rows = [
        (Path(name).name, label)
        for part in (training, validation)
        for name, label in [*zip(part.names, part.labels.tolist(), strict=True), ("", -1)]
    ]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:12]


class Run:
    """Everything that training changes: what a checkpoint holds."""

    def __init__(self, model: nn.Module, recipe: Recipe, batches: int) -> None:
        self.recipe = recipe
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.learning_rate, total_steps=max(6, recipe.epochs * batches + 1), pct_start=0.2
        )
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.history: list[dict[str, float]] = []
        self.steps = 0

    def update_average(self) -> None:
        """Move the averaged weights and BatchNorm statistics towards the current ones."""
        self.steps += 1
        past = min(self.recipe.averaging, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for ours, theirs in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                if ours.is_floating_point():
                    ours.lerp_(theirs, 1 - past)
                else:
                    ours.copy_(theirs)

    def save(self, path: Path) -> None:
        """Write the checkpoint: whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "model": self.average.state_dict(),
            "training": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if isinstance(v, (int, float, list))},
            "generator": self.generator.get_state(),
            "history": self.history,
            "steps": self.steps,
        }
        save_whole(state, path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: it was made under another recipe, or is damaged.
        """
        state = read_checkpoint(path)
        recipe = state.get("recipe")
        if recipe != asdict(self.recipe):
            differing = (
                [
                    f"{k}: {recipe.get(k)!r} there, {v!r} now"
                    for k, v in asdict(self.recipe).items()
                    if recipe.get(k) != v
                ]
                if isinstance(recipe, dict)
                else ["it has no recipe"]
            )
            raise InputError(f"{path} was trained with another recipe ({'; '.join(differing)}); start without --resume")
        try:
            self.average.load_state_dict(state["model"])
            self.model.load_state_dict(state["training"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.generator.set_state(state["generator"])
            self.history, self.steps = list(state["history"]), int(state["steps"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{path} does not hold a whole run ({reason}); start without --resume") from error


def train(
    model: nn.Module,
    training: Pictures,
    validation: Pictures,
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    amp: bool = False,
    compiled: bool = False,
    resume: bool = False,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train, and return the network with averaged weights, and a row of figures for each epoch.

    A killed run loses at most an epoch: ``checkpoint.pt`` and ``history.csv`` in ``folder`` are written after each.

    Raises:
        InputError: ``resume`` is asked for and the checkpoint there does not fit.
    """
    if distributed.count() > 1 and recipe.batch_size < 2 * distributed.count():
        raise InputError(
            f"--batch-size {recipe.batch_size} is shared by {distributed.count()} processes, with two images each at "
            f"least; give {2 * distributed.count()} or more"
        )
    batches = max(1, len(training) // recipe.batch_size)
    run = Run(distributed.with_shared_statistics(model.to(device), device), recipe, batches)
    forward = distributed.together(run.model, device)
    if compiled:
        forward = cast(nn.Module, torch.compile(forward))
    path = folder / "checkpoint.pt"
    if resume and path.exists():
        run.restore(path)
        print(f"resuming after epoch {len(run.history)} of {recipe.epochs}")
    counts = torch.bincount(training.labels, minlength=2)
    class_weights = (len(training) / (2 * counts)).to(device)
    pixels, labels = training.pixels.to(device), training.labels.to(device)  # as bytes they fit
    for epoch in range(len(run.history), recipe.epochs):
        start = time.monotonic()
        loss = _epoch(run, forward, pixels, labels, class_weights, epoch, amp)
        distributed.share_first(run.average)
        views = margins(run.average, validation.pixels, recipe.size_at(epoch), device=device, amp=amp)
        probabilities = views.sigmoid().mean(1)
        row = {
            "epoch": epoch + 1,
            "training_loss": loss,
            "validation_loss": F.binary_cross_entropy(probabilities, validation.labels.float()).item(),
            "validation_auroc": float(roc_auc_score(validation.labels, probabilities)),
            "seconds": time.monotonic() - start,
        }
        run.history.append(row)
        if distributed.is_first():
            run.save(path)
            write_history(run.history, folder / "history.csv")
        tqdm.write(
            f"epoch {epoch + 1:2}/{recipe.epochs}: loss {loss:.3f}, validation loss {row['validation_loss']:.3f}, "
            f"AUROC {row['validation_auroc']:.4f}, {row['seconds']:.0f} s"
        )
    return run.average, run.history


def _epoch(
    run: Run, forward: nn.Module, pixels: Tensor, labels: Tensor, class_weights: Tensor, epoch: int, amp: bool
) -> float:
    """Train for one epoch and return the mean loss. Of every batch, each process takes its part."""
    recipe = run.recipe
    order = torch.randperm(len(labels), generator=run.generator)
    batches = [b for b in order.split(recipe.batch_size) if len(b) == recipe.batch_size] or [order]
    generator = distributed.own_generator(run.generator, recipe.seed, epoch)
    train_mode(run.model)
    total = 0.0
    for batch in tqdm(batches, desc=f"epoch {epoch + 1}/{recipe.epochs}", unit="batch", leave=False):
        own = distributed.own_part(batch)
        inputs = augment(pixels[own], recipe.size_at(epoch), generator)
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=amp):
            outputs = forward(inputs)
        loss = batch_loss(outputs.float(), labels[own], labels[batch], class_weights, recipe.label_smoothing)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        run.schedule.step()
        run.update_average()
        total += distributed.mean(loss)
        if not math.isfinite(total):
            raise InputError(f"the loss is no longer finite in epoch {epoch + 1}: training diverged; give a lower --lr")
    return total / len(batches)


def batch_loss(outputs: Tensor, own: Tensor, whole: Tensor, class_weights: Tensor, smoothing: float) -> Tensor:
    """Return this process's part of the weighted cross-entropy of a batch.

    The mean over the processes, which is what their gradients are averaged to, is the weighted mean over the batch.

    Args:
        outputs: logits (n, 2) of the images of this process.
        own: their labels (n,).
        whole: the labels of the whole batch.
        class_weights: (2,).
        smoothing: of the labels. Not by the option ``weight`` of ``cross_entropy``, which would weigh the smoothed part
            of a label by the other class, and pull every image towards the rare one.
    """
    losses = F.cross_entropy(outputs, own, label_smoothing=smoothing, reduction="none")
    return distributed.count() * (losses * class_weights[own]).sum() / class_weights[whole].sum()


@torch.inference_mode()
def margins(
    model: nn.Module, pixels: Tensor, size: int, *, device: torch.device, amp: bool = False, batch_size: int = 64
) -> Tensor:
    """Return by how much the logit of PNEUMONIA exceeds the other, (N, views), for each of :func:`views`.

    The probability is the mean of their sigmoids. Several processes share the pictures, at least one for each.
    """
    model.eval()
    parts = []
    for batch in tqdm(distributed.own_part(pixels).split(batch_size), desc="predicting", unit="batch", leave=False):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            logits = torch.stack([model(view) for view in views(batch.to(device), size)], 1).float()
        parts.append((logits[..., 1] - logits[..., 0]).cpu())
    return distributed.gathered(torch.cat(parts))


def write_history(history: list[dict[str, Any]], path: Path) -> None:
    """Write one row for each epoch."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def fast_bfloat16(device: torch.device) -> bool:
    """Say whether the device computes with bfloat16 natively; where that is unknown, no."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
    return False
