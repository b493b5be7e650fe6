"""Explain a folder of images with Ray, on one machine or on a cluster, and write the maps as Parquet.

python examples/cluster/explain.py IMAGES MAPS --workers 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import ray.data
import torchvision

import camlib
from camlib.datasets import read_parquet
from camlib.integrations.ray import Explainer


def explainer(model: str, weights: str | None) -> camlib.GradCAM:
    """Make the model on the worker that calls this."""
    return camlib.GradCAM(torchvision.models.get_model(model, weights=weights).eval())


def explain(
    images: str, maps: str, make: Callable[[], Any], transforms: Callable[[Any], Any], workers: int, gpus: float = 0
) -> None:
    """Read images, explain them on some workers, and write the maps.

    Args:
        images: a folder, or an address that Ray reads, such as that of a bucket.
        maps: the folder for Parquet files.
        make: returns the explainer.
        transforms: turns a picture into an input.
        workers: processes that hold a model each.
        gpus: the share of a GPU that each takes.
    """
    files = ray.data.read_binary_files(images, include_paths=True)
    rows = files.map_batches(
        Explainer,
        fn_constructor_kwargs={"make": make, "transforms": transforms},
        batch_size=32,
        concurrency=workers,
        num_gpus=gpus,
    )
    rows.write_parquet(maps)


def main() -> None:
    """Read the arguments, and explain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("maps")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="DEFAULT", help='"none" for random weights, which need no download')
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="the share of a GPU for each worker")
    given = parser.parse_args()
    weights = None if given.weights == "none" else given.weights
    transforms = torchvision.models.get_model_weights(given.model).DEFAULT.transforms()
    explain(given.images, given.maps, partial(explainer, given.model, weights), transforms, given.workers, given.gpus)
    print(sum(1 for _ in read_parquet(given.maps)), "maps")


if __name__ == "__main__":
    main()
