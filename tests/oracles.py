"""Naive float64 re-statements of the papers' equations, in loops, and networks split by hand into trunk and tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


@dataclass
class Split:
    """A network, the name of a layer, and the network by hand: ``tail(trunk(x))`` is ``model(x)``."""

    model: nn.Module
    layer: str
    trunk: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], Tensor]

    def activations_and_gradients(self, images: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """A and G by the whole tail's autograd, from a leaf that nothing else touches."""
        with torch.no_grad():
            activations = self.trunk(images)
        leaf = activations.clone().requires_grad_()
        score(self.tail(leaf.clone())).sum().backward(inputs=[leaf])
        assert leaf.grad is not None
        return activations, leaf.grad


def grad_cam(activations: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Selvaraju 2017, equations 1 and 2 without the ReLU; and sum_k |w_k A_k|, the scale of rounding errors."""
    images, channels, rows, columns = activations.shape
    maps = torch.zeros(images, rows, columns, dtype=torch.float64)
    scale = torch.zeros(images, rows, columns, dtype=torch.float64)
    for n in range(images):
        for k in range(channels):
            alpha = 0.0
            for i in range(rows):
                for j in range(columns):
                    alpha += gradients[n, k, i, j].double().item() / (rows * columns)
            maps[n] += alpha * activations[n, k].double()
            scale[n] += (alpha * activations[n, k].double()).abs()
    return maps, scale


def assert_close(maps: Tensor, expected: Tensor, scale: Tensor, tolerance: float) -> None:
    """Compare maps relative to sum_k |w_k A_k|: the maps themselves may cancel."""
    assert maps.shape == expected.shape
    error = (maps.double() - expected).abs()
    bound = tolerance * scale.amax((-2, -1), keepdim=True)
    assert (error <= bound).all(), f"error {error.max():.3g}, allowed {bound.min():.3g}"


def sequential_split(model: nn.Sequential, cut: int) -> Split:
    """Split a Sequential after its layer number ``cut``."""
    return Split(model, str(cut), model[: cut + 1], model[cut + 1 :])


def resnet18() -> Split:
    m = torchvision.models.resnet18(num_classes=5)
    trunk = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4)
    return Split(m, "layer4", trunk, lambda a: m.fc(a.mean((2, 3))))


def resnet18_bn2() -> Split:
    """Inside the last residual block: the sum with the identity and an in-place ReLU follow the layer."""
    m = torchvision.models.resnet18(num_classes=5)
    before = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4[0])
    block = m.layer4[1]
    identity: list[Tensor] = []

    def trunk(x: Tensor) -> Tensor:
        identity[:] = [before(x)]
        return block.bn2(block.conv2(F.relu(block.bn1(block.conv1(identity[0])))))

    return Split(m, "layer4.1.bn2", trunk, lambda a: m.fc(F.relu(a + identity[0]).mean((2, 3))))


def densenet() -> Split:
    """torchvision's forward applies ReLU in place right behind ``features``."""
    m = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5)
    return Split(m, "features", m.features, lambda a: m.classifier(F.relu(a).mean((2, 3))))


def vgg11() -> Split:
    m = torchvision.models.vgg11(num_classes=5)
    last = len(m.features) - 2

    def tail(a: Tensor) -> Tensor:
        return m.classifier(m.avgpool(m.features[last + 1](a)).flatten(1))

    return Split(m, f"features.{last}", lambda x: m.features[: last + 1](x), tail)


def mobilenet_v3_small() -> Split:
    m = torchvision.models.mobilenet_v3_small(num_classes=5)
    return Split(m, "features", m.features, lambda a: m.classifier(a.mean((2, 3))))


def convnext() -> Split:
    m = torchvision.models.convnext_tiny(num_classes=5)
    return Split(m, "features", m.features, lambda a: m.classifier(m.avgpool(a)))


def squeezenet() -> Split:
    m = torchvision.models.squeezenet1_1(num_classes=5)
    return Split(m, "features", m.features, lambda a: m.classifier(a).flatten(1))


def efficientnet_b0() -> Split:
    m = torchvision.models.efficientnet_b0(num_classes=5)
    return Split(m, "features", m.features, lambda a: m.classifier(a.mean((2, 3))))


ARCHITECTURES = {
    split.__name__: split
    for split in (
        resnet18,
        resnet18_bn2,
        densenet,
        vgg11,
        mobilenet_v3_small,
        convnext,
        squeezenet,
        efficientnet_b0,
    )
}
