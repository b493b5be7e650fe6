"""Expectations of the checks; each raises an AssertionError that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from camlib.explanation import Explanation
from camlib.testing.subject import Subject, differences, snapshot


def expect(condition: bool, problem: str) -> None:
    """Expect a condition; ``problem`` says what is wrong if it does not hold."""
    if not condition:
        raise AssertionError(problem)


def expect_close(actual: Tensor, expected: Tensor, problem: str, tolerance: float = 1e-6) -> None:
    """Compare, relative to the largest value expected."""
    expect(actual.shape == expected.shape, f"{problem}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    largest = float(expected.abs().max())
    error = float((actual - expected).abs().max())
    expect(error <= tolerance * largest, f"{problem}: off by {error:.3g}; the largest value is {largest:.3g}")


def expect_same(actual: Tensor, expected: Tensor, problem: str) -> None:
    """Compare bit for bit."""
    error = float((actual - expected).abs().max()) if actual.shape == expected.shape else float("nan")
    expect(torch.equal(actual, expected), f"{problem}: off by {error:.3g}, but every bit should be the same")


def expect_refusal(act: Callable[[], Any], errors: tuple[type[Exception], ...], what: str) -> None:
    """Expect one of the errors and no other."""
    names = " or ".join(error.__name__ for error in errors)
    try:
        act()
    except errors:
        return
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__} instead of {names}: {error}") from error
    raise AssertionError(f"{what} raised nothing; it should raise {names} and say what is wrong")


def expect_valid(explanation: Explanation, on: Subject) -> None:
    """Expect what holds for every explanation."""
    maps = explanation.maps
    expect(bool(maps.isfinite().all()), "maps hold NaN or infinity")
    for what in ("maps", "scores"):
        expect(not getattr(explanation, what).requires_grad, f"{what} still require gradients; detach them")
    for name, own in explanation.layers.items():
        expect(
            bool(own.isfinite().all()) and not own.requires_grad,
            f"maps of layer {name!r} are not finite and detached",
        )
    heatmaps = explanation.heatmaps()
    within = heatmaps.isfinite().all() and heatmaps.min() >= 0 and heatmaps.max() <= 1
    expect(bool(within), "heatmaps are not within [0, 1]")
    expect(heatmaps.shape[-on.images.dim() + 2 :] == on.images.shape[2:], "heatmaps do not have the inputs' size")
    expect(not bool(heatmaps[explanation.degenerate].any()), "heatmaps of degenerate maps are not all zeros")


def expect_untouched(model: nn.Module, images: Tensor, before: dict[str, Any], what: str) -> None:
    """Expect model, inputs and process as they were before."""
    expect_same_state(before, snapshot(model, images), what)


def expect_same_state(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    """Expect two snapshots to be the same."""
    changed = list(differences(before, after))
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    expect(not changed, f"{what} changed {'; '.join(changed[:4])}{more}")
