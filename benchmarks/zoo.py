"""Grad-CAM at the automatic layer of many networks: does each cell of the map lie where the map says?

Each network of :mod:`benchmarks.zoo_networks` is explained once, with random weights. The results hold the layer and
the grid, or why camlib refuses, and two checks that share no code with it (:mod:`benchmarks.zoo_checks`): how far the
signed map is from a restatement by plain hooks and autograd, and of how many cells the strongest place in the picture
is their own.

    benchmarks/run zoo                       # in .venv-benchmark; continues a run that was stopped
    python -m benchmarks.zoo --only hiera    # again, the networks whose names match a pattern
    python -m benchmarks.zoo --fresh         # all of them again

It writes ``zoo.json`` after each network (ten minutes on one core). Networks whose package is not installed are left
out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import re
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import camlib
from benchmarks import results
from benchmarks.zoo_checks import Restated, differentiable, outputs_at, places, restated
from benchmarks.zoo_networks import NETWORKS, PACKAGES, Network

Record = dict[str, Any]
AGREES = {"float64": 1e-6, "float32": 1e-2}
"""Differences from the restatement up to these are rounding."""
OUTER = 0.1
"""By this factor for each step from its middle, the weights of a kernel of stride 1 become smaller."""
ATTENDED = 0.01
"""By this factor, what attention adds becomes smaller."""


NEAR = 8.0
"""How much attention that has a bias for each distance favours a patch's own place."""
OUTPUT = re.compile(r"((out_)?proj|to_out|output\.dense|projection)\.(.*\.)?weight$")
"""The weights of what attention does last."""


def built(network: Network) -> nn.Module:
    """The network in eval mode, with random weights also in heads and norms that start with zeros.

    The middle of kernels counts most, and attention adds little: with plain random weights a cell of a deep network
    reads the whole picture alike, so that its place cannot be seen at any layer.
    """
    torch.manual_seed(0)
    model = network.build().eval()
    for module in model.modules():
        if re.search("atten|attn|MLA", type(module).__name__, re.IGNORECASE):
            outputs = [value for name, value in module.named_parameters() if OUTPUT.match(name)]
            for value in outputs[-1:]:
                value.data *= ATTENDED
        if isinstance(module, _ConvNd) and not module.transposed and set(module.stride) == {1}:
            for axis, size in enumerate(module.kernel_size, 2):
                distance = (torch.arange(size) - (size - 1) / 2).abs()
                weight = module.weight.data
                weight *= (OUTER ** (distance - distance.min())).view(-1, *[1] * (weight.dim() - axis - 1))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.any():
                continue
            if name == "attention_biases":  # (heads, distances), of which the first is none
                parameter.data[:, 0] = NEAR
                continue
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name == "weight" and "norm" in type(module).__name__.lower():
                nn.init.constant_(parameter, 0.5)
    return model


def calibrated(network: Network, model: nn.Module, inputs: Any) -> None:
    """Give batch norms the statistics of these inputs, without which signals fade or grow from layer to layer."""

    def take(module: nn.Module, arguments: Any) -> None:
        values = arguments[0].movedim(1, 0).flatten(1)
        if values.shape[1] > 1:
            variance, mean = torch.var_mean(values, 1)
            # not the mean itself: behind the last norm, the average over the picture would be zero
            module.get_buffer("running_mean").copy_(mean - 0.1 * variance.sqrt())
            module.get_buffer("running_var").copy_(variance + 1e-4)

    norms = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "running_var", None), Tensor) and not isinstance(module, torch.jit.ScriptModule)
    ]
    hooks = [module.register_forward_pre_hook(take) for module in norms]
    with torch.no_grad():
        network.call(model, inputs)
    for hook in hooks:
        hook.remove()


def precise(network: Network, inputs: Any) -> tuple[nn.Module, Any, str]:
    """The model and its inputs in float64 if it runs in it, else in float32."""
    try:
        model, inputs = built(network).double(), cast(inputs, torch.float64)
        calibrated(network, model, inputs)
    except Exception:  # whatever a network raises that has float32 written into it
        model, inputs = built(network), cast(inputs, torch.float32)
        calibrated(network, model, inputs)
        return model, inputs, "float32"
    return model, inputs, "float64"


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """The inputs with floating-point tensors of this type."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: cast(value, dtype) for key, value in inputs.items()}
    return type(inputs)(cast(value, dtype) for value in inputs) if isinstance(inputs, (list, tuple)) else inputs


def measured(network: Network) -> Record:
    """What camlib says of a network, and the checks of it; what failed, and where, if anything raises."""
    start, stage = time.perf_counter(), "not built"
    record: Record = {"source": network.source}
    try:
        torch.manual_seed(0)
        model, inputs, record["precision"] = precise(network, network.inputs())
        record["input"] = described(inputs)
        stage = "crash"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", camlib.CamlibWarning)
            explanation = camlib.GradCAM(model, forward=network.forward, relu=False)(inputs, network.target)
        record["warnings"] = [str(one.message) for one in caught if issubclass(one.category, camlib.CamlibWarning)]
        stage = "not checked"
        record |= checked(network, model, inputs, explanation)
    except camlib.CamlibError as error:
        record["refused"], record["message"] = first_sentence(error), str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        record[stage] = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}, {where.name})"
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def checked(network: Network, model: nn.Module, inputs: Any, explanation: camlib.Explanation) -> Record:
    """The checks of each layer of an explanation, and of what it explains as a whole."""
    maps = dict(explanation.layers) or {explanation.layer: explanation.maps}
    tracked, leaves = differentiable(inputs)
    with torch.enable_grad():
        outputs, kept = outputs_at(model, [*maps, ""], lambda: network.call(model, tracked))
        score = network.score(outputs)
        returned = [*tensors(outputs), *kept[""]]
        layers: list[Record] = []
        for name, own in maps.items():
            found = layer_record(own, restated(own, kept[name], score, network.features), leaves, network, explanation)
            is_output = any(same(one, other) for one in kept[name] for other in returned)
            layers.append({"layer": name} | found | ({"is output": True} if is_output else {}))
    apart = (explanation.scores.reshape(score.shape) - score).detach().abs().amax() / score.detach().abs().amax()
    record: Record = {"layers": layers, "scores apart": float(apart)}
    if len(maps) < network.trunks:
        record["trunks shown"] = f"{len(maps)} of {network.trunks}"
    if network.grid is not None and all(tuple(layer["grid"]) != network.grid for layer in layers):
        record["grid of the last map"] = list(network.grid)
    return record


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors in nested outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (list, tuple)) else []
    return [tensor for value in values for tensor in tensors(value)]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of more than two axes hold the same numbers."""
    return one.dim() > 2 and one.shape == other.shape and torch.equal(one, other)


def layer_record(
    maps: Tensor, restatement: Restated, leaves: list[Tensor], network: Network, explanation: camlib.Explanation
) -> Record:
    """The grid of a layer, how far its map is from the restatement, and where its cells come from."""
    record: Record = {"grid": list(maps.shape[1:]), "largest": float(maps.abs().amax())}
    if restatement.arrangement is None or restatement.output is None:
        return record | {
            "difference": None,
            "arrangement": None,
            "cells": 0,
            "own": 0,
            "shared out": 0,
            "proved": False,
        }
    found = places(
        restatement.arrangement.features(restatement.output),
        leaves,
        network.axes,
        explanation.extent,
        explanation.origin,
    )
    return record | {
        "difference": restatement.difference,
        "arrangement": restatement.arrangement.name,
        "cells": found.cells,
        "own": found.own,
        "shared out": found.shared_out,
        "shift": list(found.shift),
        "picture": found.picture,
        "proved": found.proved or (found.shared_out == found.cells and not restatement.arrangement.flattened),
    }


def described(inputs: Any) -> str:
    """The shapes of the inputs."""
    if isinstance(inputs, Tensor):
        return " x ".join(map(str, inputs.shape[1:])) if inputs.dim() > 1 else str(len(inputs))
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return " and ".join(described(value) for value in values if isinstance(value, Tensor))


def first_sentence(error: Exception) -> str:
    """An error's class and the beginning of its message."""
    message = re.split(r"(?<=[^.\d])[.;:](?:\s|$)", str(error))[0]
    return f"{type(error).__name__}: {message if len(message) <= 160 else message[:157] + '...'}"


FAILURES = ("refused", "crash", "not built", "not checked")


def verdict_of(record: Record) -> str:
    """What a record amounts to in a few words; "proved" if nothing is wrong with the map."""
    for failed in FAILURES:
        if failed in record:
            return failed
    layers, rounding = record["layers"], AGREES[record["precision"]]
    if record["scores apart"] > rounding or any((layer["difference"] or 0) > rounding for layer in layers):
        return "differs"
    if any(layer["difference"] is None for layer in layers):
        return "not restated"
    if any("is output" in layer for layer in layers):
        return "the output"
    if not all(layer["proved"] for layer in layers):
        return "unproved"
    if "grid of the last map" in record:
        return "another layer"
    return "one trunk" if "trunks shown" in record and not record["warnings"] else "proved"


def installed(packages: dict[str, str]) -> dict[str, str]:
    """The distributions that are installed, by source."""
    found = {}
    for source, distribution in packages.items():
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            print(f"{source}: {distribution} is not installed, left out", flush=True)
            continue
        found[source] = distribution
    return found


def main() -> None:
    """Measure, print, write the JSON after each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", help="measure again the networks whose names match")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="where zoo.json is written")
    options = parser.parse_args()
    present = installed(PACKAGES)
    stored: Record = {} if options.fresh else results.load_if_there("zoo", options.folder)
    networks: dict[str, Record] = stored.get("networks", {})
    wanted = {
        name: network
        for name, network in NETWORKS.items()
        if network.source in present and (re.search(options.only, name) if options.only else name not in networks)
    }
    warnings.simplefilter("ignore")
    for name, network in wanted.items():
        networks[name] = measured(network)
        ordered = {name: networks[name] for name in NETWORKS if name in networks}
        results.save("zoo", results.provenance("torch", *present.values()) | {"networks": ordered}, options.folder)
        print(f"{name}: {verdict_of(networks[name])}", summary(networks[name]), flush=True)
        gc.collect()


def summary(record: Record) -> str:
    """A record on one line."""
    layers = "; ".join(
        f"{layer['layer']} {layer['grid']} {layer['own']} and {layer['shared out']} of {layer['cells']} "
        f"{layer['difference'] or 0:.0e}"
        for layer in record.get("layers", [])
    )
    failures = [record[key] for key in FAILURES if key in record]
    return " ".join([layers, *failures, f"[{record['seconds']} s]"])


if __name__ == "__main__":
    main()
