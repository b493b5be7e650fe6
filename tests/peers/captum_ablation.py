"""captum's tests of feature ablation, input times gradient and integrated gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import camlib
from tests.peers.captum import PEER, SEVERAL, SIGNAL, TWO_SIGNALS, Signal, refused
from tests.peers.case import Case

FIRST_TWO, OF_EACH = [[0, 0, 1]], torch.tensor([[[0, 0, 1]], [[1, 1, 0]]])
INTEGERS = "camlib refuses images of integers and bools, which a method cannot change by a little; give floats"
WHOLE_BATCH = "camlib explains the score of each image; one number for the whole batch is refused"
LOGITS = "of a network that ends in a softmax camlib explains the logits; Probability(5) is what captum explains"
SPREAD = "camlib averages maps over noisy copies; it has no variance or mean square of them"
BATCHES = torch.tensor([[1.5, 2.0, 1.3], [0.5, 0.1, 2.3], [1.5, 2.0, 1.3]]).reshape(3, 1, 1, 3)


class Capped(nn.Module):
    """1 - relu(1 - x), for three numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - (1 - x.flatten(1)).relu()


def softmax() -> nn.Sequential:
    """Three linear layers and a softmax, of five numbers."""
    torch.manual_seed(0)
    layers = (nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10), nn.Softmax(1))
    return nn.Sequential(nn.Flatten(), *layers).eval()


def ablated(
    expected: Any, images: Tensor, regions: Any, model: Callable[[], nn.Module] = Signal, **options: Any
) -> Callable[[], None]:
    """A check of the ablation of class 0, for several sizes of chunks."""

    def check() -> None:
        for size in (1, 2, 3):
            cam = camlib.Occlusion(model(), regions=regions, relu=False, chunk_size=size, **options)
            found = cam(images, 0).maps
            torch.testing.assert_close(found, torch.tensor(expected).reshape(found.shape))

    return check


def with_little_noise() -> None:
    """Noise of 1e-10 does not change what ablation finds."""
    cam = camlib.Occlusion(Capped(), regions=[[0, 1, 2]], relu=False)
    images = torch.tensor([[[[-3.0, 1.0, 2.0]]]])
    found = camlib.NoiseAveraging(cam, sigma=1e-10)(images, 0).maps
    torch.testing.assert_close(found, torch.tensor([[[-3.0, 0.0, 0.0]]]))


def one_number(total: Callable[[Tensor], Any], images: Tensor) -> Callable[[], None]:
    """A check that a score of the whole batch is refused."""
    return refused(
        lambda: camlib.Occlusion(Signal(), regions=[[0, 1, 2]], forward=lambda net, x: total(net(x)))(images)
    )


def input_times_gradient() -> None:
    """The input times the gradient of the logit, before the softmax."""
    images = torch.arange(5.0).reshape(1, 1, 1, 5)
    found = camlib.InputXGradient(softmax()).attributions(images, 5).values
    leaf = images.clone().requires_grad_()
    softmax()[:-1](leaf)[:, 5].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(found.reshape(images.shape), leaf.grad * images, rtol=1e-5, atol=1e-6)


def smoothed(method: str, images: Tensor, model: Callable[[], nn.Module], **options: Any) -> None:
    """The mean over noisy copies has the shape of the image."""
    found = camlib.NoiseAveraging(camlib.create(method, model(), **options), samples=10, sigma=0.5)(images, 0).maps
    assert found.shape == (len(images), *images.shape[2:])
    assert bool(found.isfinite().all())


def completes(images: Tensor, model: Callable[[], nn.Module], baseline: float, target: Any = 0) -> None:
    """The attributions sum to the difference of the scores, for the batch and each image alone."""
    cam = camlib.IntegratedGradients(model(), steps=50, baseline=baseline)
    found = cam.attributions(images, target)
    network = model()
    with torch.no_grad():
        difference = (network(images) - network(torch.full_like(images, baseline)))[:, 0]
    torch.testing.assert_close(found.values.flatten(1).sum(1), difference, rtol=0, atol=0.04)
    alone = torch.cat([cam.attributions(image, target).values for image in images.split(1)])
    torch.testing.assert_close(found.values, alone)


def _cases() -> list[Case]:
    def of(test: str, check: Callable[[], object]) -> Case:
        return Case(PEER, test, "pass", check)

    fa, ig, ixg = "test_feature_ablation", "test_integrated_gradients_basic", "test_input_x_gradient"
    capped = torch.tensor([[[[-3.0, 1.0, 2.0]]]])
    numbers = torch.arange(5.0).reshape(1, 1, 1, 5)
    passing = [
        of(f"{fa}.simple_ablation", ablated([80.0, 200.0, 120.0], SIGNAL, [[0, 1, 2]])),
        of(f"{fa}.simple_ablation_with_mask", ablated([280.0, 280.0, 120.0], SIGNAL, FIRST_TWO)),
        of(f"{fa}.simple_ablation_with_baselines", ablated([248.0, 248.0, 104.0], SIGNAL, FIRST_TWO, baseline=4)),
        of(
            f"{fa}.multi_sample_ablation",
            ablated([[8.0, 35.0, 12.0], [80.0, 200.0, 120.0]], TWO_SIGNALS, [[0, 1, 2]]),
        ),
        of(
            f"{fa}.multi_sample_ablation_with_mask",
            ablated([[41.0, 41.0, 12.0], [280.0, 280.0, 120.0]], TWO_SIGNALS, OF_EACH),
        ),
        of(f"{fa}.simple_ablation_int_to_int_nt", with_little_noise),
        of(
            f"{ixg}.classification_smoothgrad",
            functools.partial(smoothed, "input_x_gradient", numbers, softmax),
        ),
        of(f"{ig}.batched_input_vanilla", functools.partial(completes, BATCHES, Signal, 0.0)),
        of(f"{ig}.batched_input_smoothgrad", functools.partial(smoothed, "integrated_gradients", BATCHES, Signal)),
        of(
            f"{ig}.batched_input_smoothgrad_with_batch_size_1",
            functools.partial(smoothed, "integrated_gradients", BATCHES, Signal, chunk_size=1),
        ),
    ]
    for value, start in ((1.0, 0.0), (0.0, 0.0), (-1.0, 0.00001)):
        check = functools.partial(completes, torch.full((1, 1, 1, 1), value), Capped, start, camlib.targets.Output(0))
        passing.append(of(f"{ig}.univariable_vanilla.{value}", check))
    refusals = [
        Case(PEER, f"{ixg}.classification_vanilla", "by design", input_times_gradient, LOGITS),
    ]
    refusals += [
        Case(PEER, f"{fa}.{name}", "by design", refused(functools.partial(explained, given)), INTEGERS)
        for name, given in (
            ("simple_ablation_int_to_int", capped.long()),
            ("simple_ablation_int_to_float", capped.long()),
            ("simple_ablation_boolean", capped > 0),
            ("simple_ablation_boolean_with_baselines", capped > 0),
        )
    ]
    totals: dict[str, Callable[[Tensor], Any]] = {
        "float": lambda out: out.sum().item(),
        "tensor_0d": torch.sum,
        "tensor_1d": lambda out: out.sum().reshape(1),
        "tensor_int": lambda out: int(out.sum().item()),
    }
    for name, total in totals.items():
        check = one_number(total, TWO_SIGNALS)
        test = f"{fa}.multi_sample_ablation_batch_scalar_{name}"
        refusals.append(Case(PEER, test, "by design", check, WHOLE_BATCH))
    several = (
        "multi_input_ablation_with_mask", "multi_input_ablation_with_int_input_tensor_and_float_baseline",
        "multi_input_ablation_with_mask_weighted", "multi_input_ablation_with_mask_dupe_feature_idx",
        "multi_input_ablation_with_mask_nt", "multi_input_ablation", "simple_multi_input_conv",
        *(f"multi_inp_ablation_batch_scalar_{name}" for name in totals),
    )  # fmt: skip
    cannot = {f"{fa}.{name}": SEVERAL for name in several}
    cannot |= {f"{ig}.{kind}_vanilla": SEVERAL for kind in ("multivariable", "multi_argument", "multi_tensor_input")}
    cannot[f"{ig}.batched_multi_input_vanilla"] = SEVERAL
    cannot |= {f"{ixg}.classification_vargrad": SPREAD}
    for kind in ("univariable", "batched_input"):
        cannot |= {f"{ig}.{kind}_{noise}": SPREAD for noise in ("smoothgrad_sq", "vargrad")}
    return [*passing, *refusals, *(Case(PEER, test, "cannot", None, why) for test, why in cannot.items())]


def explained(images: Tensor) -> None:
    camlib.Occlusion(Capped(), regions=FIRST_TWO, forward=lambda net, x: net(x.float()))(images, 0)


CASES = _cases()
