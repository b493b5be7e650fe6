"""The checkpoint of a run: the network, the recipe it was trained with, and how it decides."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from pneumonia import InputError
from pneumonia.model import build, read_state, write_state


@dataclass(frozen=True)
class Recipe:
    """How to train. A run resumes only from a checkpoint with the same recipe."""

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
    """The last epochs use the full size; before them the size grows from half of it, which is cheaper and as good."""
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


@dataclass(frozen=True)
class Decision:
    """How probabilities become decisions, and which layer explains them."""

    threshold: float
    temperature: float
    rule: str
    """How the threshold was chosen."""
    layer: str


@dataclass(frozen=True)
class Checkpoint:
    """What a finished or interrupted run has left."""

    model: nn.Module
    """In eval mode, on the CPU."""
    recipe: Recipe
    decision: Decision | None
    """None if the run was interrupted before it chose one."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint of a run.

    Raises:
        InputError: there is none, or it was not written by run.py.
    """
    state = read_state(path)
    model = build("none")[0].eval()
    try:
        model.load_state_dict(state["model"])
        recipe = Recipe(**state["recipe"])
        decision = Decision(**state["decision"]) if "decision" in state else None
        valid = recipe.size >= 32 and (
            decision is None or (0 <= decision.threshold <= 1 and 0 < decision.temperature < math.inf)
        )
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not a checkpoint of run.py ({reason}); train one with run.py") from error
    if not valid:
        raise InputError(
            f"{path} holds an input size of {recipe.size} and {decision}; expected a size of at least 32, a threshold "
            "between 0 and 1 and a positive temperature; train the network again"
        )
    return Checkpoint(model, recipe, decision)


def write_decision(path: Path, decision: Decision) -> None:
    """Add a decision to the checkpoint of a run."""
    write_state(read_state(path) | {"decision": asdict(decision)}, path)
