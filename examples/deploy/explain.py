"""Explain a picture with NumPy and ONNX Runtime alone: without PyTorch, and without camlib.

python examples/deploy/explain.py model.onnx picture.npy heatmap.npy

The picture is gray, uint8 (H, W), of the size that the file's metadata say.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime


def main(model: str, picture: str, heatmap: str) -> None:
    """Print the class of a picture with its probability, and save its heatmap, float32 (H, W) in [0, 1]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    pixels = np.load(picture, allow_pickle=False)
    logits, heatmaps = session.run(["outputs", "heatmaps"], {"pictures": pixels[None, ..., None]})
    powers = np.exp(logits[0] - logits[0].max())
    probabilities = powers / powers.sum()
    names, best = json.loads(about["class_names"]), int(probabilities.argmax())
    row, column = np.unravel_index(heatmaps[0].argmax(), heatmaps[0].shape)
    print(f"{names[best]} {probabilities[best]:.3f}")
    print(f"{about['method']} at {about['layer']}: PNEUMONIA is seen most at row {row}, column {column}")
    np.save(heatmap, heatmaps[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
