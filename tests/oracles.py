"""Networks split by hand into trunk and tail; and, for those who look here, the papers' equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.equations import assert_close as assert_close
from tests.equations import grad_cam as grad_cam


def _same(features: Tensor) -> Tensor:
    return features


@dataclass
class Split:
    """A network, the name of a layer, and the network by hand: ``tail(trunk(x))`` is ``model(x)``.

    ``size`` is an image size that the network takes; ``to_grid`` turns what the layer returns into (N, C, h, w).
    """

    model: nn.Module
    layer: str
    trunk: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], Tensor]
    size: tuple[int, int] = (96, 64)
    to_grid: Callable[[Tensor], Tensor] = _same

    def activations_and_gradients(self, images: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """A and G by the whole tail's autograd, from a leaf that nothing else touches."""
        with torch.no_grad():
            activations = self.trunk(images)
        leaf = activations.clone().requires_grad_()
        score(self.tail(leaf.clone())).sum().backward(inputs=[leaf])
        assert leaf.grad is not None
        return activations, leaf.grad


@dataclass(eq=False)
class Case:
    """A network split by hand, images for it, and a class to explain of each of them."""

    split: Split
    images: Tensor
    target: Sequence[int]

    def score(self, outputs: Tensor) -> Tensor:
        """The logits of the target, (N,)."""
        return outputs[torch.arange(len(outputs)), list(self.target)]

    def features_of(self, score: Callable[[Tensor], Tensor], images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A and G (N, C, *grid) of any score of the outputs, of these images or others."""
        tensors = self.split.activations_and_gradients(self.images if images is None else images, score)
        return self.split.to_grid(tensors[0]), self.split.to_grid(tensors[1])

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """A and G (N, C, *grid)."""
        return self.features_of(self.score)


def randomize(model: nn.Module) -> nn.Module:
    """Give every weight a size at which signals survive: torchvision zero-initialises some heads and scales."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return model.double().eval()


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


def vit() -> Split:
    """The last block's first norm: tokens (N, 1 + 4 * 4, 8), which attention and a skip connection follow."""
    m = torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=5)
    first, last = m.encoder.layers
    skipped: list[Tensor] = []

    def trunk(x: Tensor) -> Tensor:
        patches = m.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([m.class_token.expand(len(x), -1, -1), patches], 1)
        skipped[:] = [first(tokens + m.encoder.pos_embedding)]
        return last.ln_1(skipped[0])

    def tail(a: Tensor) -> Tensor:
        mixed = skipped[0] + last.self_attention(a, a, a, need_weights=False)[0]
        return m.heads(m.encoder.ln(mixed + last.mlp(last.ln_2(mixed)))[:, 0])

    def to_grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))

    return Split(m, "encoder.layers.encoder_layer_1.ln_1", trunk, tail, (32, 32), to_grid)


TRANSFORMERS = {"vit": vit}
"""Their layers return tokens, and they take images of one size only."""

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
