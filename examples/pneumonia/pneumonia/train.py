"""Training on augmented pictures, with averaged weights and a checkpoint after each epoch to resume from."""

from __future__ import annotations

import copy
import csv
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

from pneumonia import InputError, distributed
from pneumonia.augment import augment
from pneumonia.checkpoint import Recipe
from pneumonia.data import Pictures
from pneumonia.model import read_state, train_mode, write_state
from pneumonia.network import Network


@dataclass(frozen=True)
class Epoch:
    """What was measured in one epoch."""

    epoch: int
    """Counted from 1."""
    training_loss: float
    """Of augmented pictures with smoothed labels."""
    validation_loss: float
    validation_auroc: float
    seconds: float


class Run:
    """Everything that training changes, which is what a checkpoint holds."""

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
        self.history: list[Epoch] = []
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
        """Write the checkpoint."""
        state = {
            "recipe": asdict(self.recipe),
            "model": self.average.state_dict(),
            "training": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if isinstance(v, (int, float, list))},
            "generator": self.generator.get_state(),
            "history": [asdict(epoch) for epoch in self.history],
            "steps": self.steps,
        }
        write_state(state, path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: it was trained with another recipe, or is damaged.
        """
        state, own = read_state(path), asdict(self.recipe)
        recipe = state.get("recipe")
        if recipe != own:
            differing = ["it has no recipe"]
            if isinstance(recipe, dict):
                differing = [f"{k}: {recipe.get(k)!r} there, {v!r} now" for k, v in own.items() if recipe.get(k) != v]
            raise InputError(f"{path} was trained with another recipe ({'; '.join(differing)}); start without --resume")
        try:
            self.average.load_state_dict(state["model"])
            self.model.load_state_dict(state["training"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.generator.set_state(state["generator"])
            self.history, self.steps = [Epoch(**row) for row in state["history"]], int(state["steps"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{path} does not hold a complete run ({reason}); start without --resume") from error


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
) -> tuple[nn.Module, list[Epoch]]:
    """Train, and return the network with averaged weights and what was measured in each epoch.

    A killed run loses at most one epoch: ``checkpoint.pt`` and ``history.csv`` in ``folder`` are written after each.

    Raises:
        InputError: the batch is too small for the processes, training diverged, or the checkpoint to resume from
            does not fit.
    """
    if distributed.count() > 1 and recipe.batch_size < 2 * distributed.count():
        raise InputError(
            f"--batch-size {recipe.batch_size} is shared by {distributed.count()} processes, each of which needs at "
            f"least two images; give {2 * distributed.count()} or more"
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
    pixels, labels = training.pixels.to(device), training.labels.to(device)  # as bytes they fit into its memory
    for epoch in range(len(run.history), recipe.epochs):
        start = time.monotonic()
        loss = _epoch(run, forward, pixels, labels, class_weights, epoch, amp)
        distributed.share_first(run.average)
        network = Network(run.average, recipe.size_at(epoch), device, amp)
        probabilities = network.margins(validation.pixels).sigmoid().mean(1)
        row = Epoch(
            epoch=epoch + 1,
            training_loss=loss,
            validation_loss=F.binary_cross_entropy(probabilities, validation.labels.float()).item(),
            validation_auroc=float(roc_auc_score(validation.labels, probabilities)),
            seconds=time.monotonic() - start,
        )
        run.history.append(row)
        if distributed.is_first():
            run.save(path)
            write_history(run.history, folder / "history.csv")
        tqdm.write(
            f"epoch {row.epoch:2}/{recipe.epochs}: loss {loss:.3f}, validation loss {row.validation_loss:.3f}, "
            f"AUROC {row.validation_auroc:.4f}, {row.seconds:.0f} s"
        )
    return run.average, run.history


def _epoch(
    run: Run, forward: nn.Module, pixels: Tensor, labels: Tensor, class_weights: Tensor, epoch: int, amp: bool
) -> float:
    """Train for one epoch and return the mean loss. Each process takes its part of every batch."""
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
            raise InputError(f"the loss is not finite in epoch {epoch + 1}: training diverged; give a lower --lr")
    return total / len(batches)


def batch_loss(outputs: Tensor, own: Tensor, whole: Tensor, class_weights: Tensor, smoothing: float) -> Tensor:
    """Return this process's part of the weighted cross-entropy of a batch.

    Gradients are averaged over the processes; the mean of these losses is the weighted mean over the whole batch.
    The weights multiply whole losses: the option ``weight`` of ``cross_entropy`` would weight the smoothed part of a
    label by the other class, and pull every image towards the rare class.

    Args:
        outputs: logits (n, 2) of the images of this process.
        own: their labels (n,).
        whole: the labels of the whole batch.
        class_weights: (2,).
        smoothing: of the labels.
    """
    losses = F.cross_entropy(outputs, own, label_smoothing=smoothing, reduction="none")
    return distributed.count() * (losses * class_weights[own]).sum() / class_weights[whole].sum()


def write_history(history: list[Epoch], path: Path) -> None:
    """Write a CSV file with a row for each epoch."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(map(asdict, history))


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 natively; False if that is unknown."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
    return False
