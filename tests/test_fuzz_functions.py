"""Wrong arguments of everything public that is not a method: a result, or one of camlib's errors.

The functions, the methods of results, and all arguments are found by inspection. What is new is tried, too: it fails
here until each argument that it requires has a valid value.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import inspect
import itertools
import math
import os
import shutil
import types
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import camlib
import camlib.evaluation
from camlib import functional, imaging, metrics, reporting, targets, testing
from tests.test_fuzz import IMAGES, MODEL, WRONG, is_function

GENERATOR = torch.Generator().manual_seed(0)
MAPS = torch.rand(2, 8, 8, generator=GENERATOR)
FEATURES, SCORES = torch.rand(2, 4, 4, 4, generator=GENERATOR), torch.rand(2, 4, generator=GENERATOR)
PICTURE = np.zeros((12, 10, 3), np.uint8)
CAM = camlib.GradCAM(MODEL, "2")
EXPLANATION = CAM(IMAGES, 1)
EVALUATION = camlib.evaluate(MODEL, IMAGES, ["grad_cam", "eigen_cam"], layers=["2"], metrics=["sparseness"])
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
"""A picture of one pixel."""
GEOMETRY = imaging.resize_center_crop((12, 10), 8, 6)
with camlib.capture(MODEL, "2") as CAPTURED:
    OUTPUTS = MODEL(IMAGES)

RESULTS: dict[str, Any] = {
    "Explanation": EXPLANATION,
    "Evaluation": EVALUATION,
    "Geometry": GEOMETRY,
    "Concepts": camlib.deep_feature_factorization(MODEL, IMAGES, 2, "2"),
    "Report": camlib.report(EXPLANATION, IMAGES),
    "Randomization": metrics.randomization(CAM, IMAGES, 1),
    "Captured": CAPTURED,
    "Scorer": metrics.Scorer(MODEL, IMAGES, 1),
    "Comparison": camlib.compare(MODEL, IMAGES, layer="2"),
    "LayerScan": camlib.scan_layers(MODEL, IMAGES, layers=["2"], metric="sparseness"),
}
"""Objects that camlib returns, whose methods are called."""
MADE_BY_CAMLIB = {
    "HotRegion", "Geometry", "BoundLogits", "BoundTarget", "Target", "Measure", "Metric", "Randomization", "Report",
    "Check", "Evaluation", "Failure", "TableRow", "FullGradients", "Link", "LayerScan",
}  # fmt: skip
"""Types of results, and bases of classes: nobody but camlib makes them of numbers."""

BOXES = torch.tensor([[1, 1, 5, 5], [2, 2, 6, 6]])
SQUARE = torch.rand(2, 3, 4, 4)
VALID: dict[str, Any] = {
    "source": IMAGES, "out": "run", "box": (1, 1, 5, 5),
    "model": MODEL, "inputs": IMAGES, "images": IMAGES, "loader": IMAGES, "explainer": CAM, "method": CAM,
    "explanations": EXPLANATION, "heatmaps": MAPS, "heatmap": MAPS[0], "maps": MAPS, "first": MAPS, "second": MAPS,
    "masks": MAPS > 0.5, "boxes": BOXES, "known": MAPS > 0.5, "image": PICTURE, "picture": PICTURE,
    "size": (8, 8),
    "original": (8, 8), "result": (8, 8), "outputs": OUTPUTS, "k": 2, "layer": "2", "path": "nothing",
    "scorer": RESULTS["Scorer"], "explained": metrics.Explained(CAM, IMAGES, 1),
    "labels": torch.tensor([[0, 1, 1]] * 2),
    "activations": FEATURES, "gradients": FEATURES, "products": FEATURES, "scores": SCORES, "score": SCORES[:, 0],
    "ablated": SCORES, "weights": SCORES, "category": 1, "function": lambda outputs: outputs[:, 0],
    "reference": torch.rand(4), "references": torch.rand(2, 4),
    "target": targets.Classes(1), "title": "a", "figure": b"", "alt": "a", "name": "a",
    "value": 1.0, "parts": ["a"], "columns": ["a"], "rows": [["a"]], "index": 0, "row": EVALUATION.rows[0],
    "other": EVALUATION.rows[1], "metric": "sparseness", "key": "grad_cam",
    "image_index": torch.arange(2),
}  # fmt: skip
"""Valid values of arguments, by name."""
FEW: dict[str, Any] = {"samples": 2, "steps": 2, "iterations": 2, "order": "cascading"}
"""Options that keep a call short, or that fit the small images."""
OTHER: dict[str, dict[str, Any]] = {
    "functional.full_grad": {"input_term": FEATURES, "bias_terms": [FEATURES]},
    "functional.guided_grad_cam": {"gradients": IMAGES, "maps": MAPS},
    "functional.le_grad": {"gradients": [FEATURES]},
    "functional.generic_attention": {"attention": [SQUARE], "gradients": [SQUARE]},
    "functional.attention_rollout": {"attention": [SQUARE]},
    "functional.grad_eclip": {"gradients": SQUARE, "query": SQUARE, "key": SQUARE},
    "functional.input_x_gradient": {"gradients": IMAGES},
    "functional.integrated_gradients": {"baselines": IMAGES, "gradients": [IMAGES]},
    "functional.expected_gradients": {"baselines": IMAGES[:1], "gradients": [IMAGES]},
    "functional.smooth_grad_cam_plus_plus": {"gradients": [FEATURES]},
    "functional.random_cam": {"generator": GENERATOR},
    "functional.rise": {"masks": torch.rand(4, 8, 8), "scores": SCORES},
    "functional.occlusion": {"masks": torch.rand(4, 8, 8), "score": SCORES[:, 0], "scores": SCORES},
    "targets.two_class_logits": {"outputs": SCORES},
    "targets.score": {"target": targets.bind(1, OUTPUTS)},
    "testing.check_method": {"method": camlib.EigenCAM},
    "testing.checks": {"method": camlib.EigenCAM},
    "create": {"name": "grad_cam"},
    "metrics.consistency": {
        "classes": torch.tensor([0, 1]),
        "discretise": lambda heatmaps: heatmaps.flatten(1).argmax(1),
    },
    "scan_layers": {"layers": ["2"], "metric": "sparseness"},
    "evaluation.scan_layers": {"layers": ["2"], "metric": "sparseness"},
    "LayerScan.difference": {"layer": "2", "other": "2"},
    "explain_dataset": {"target": 1, "progress": False},
    "compare": {"methods": ["grad_cam"], "layer": "2"},
    "evaluate": {"methods": ["grad_cam"], "layers": ["2"], "metrics": ["sparseness"]},
    "evaluation.evaluate": {"methods": ["grad_cam"], "layers": ["2"], "metrics": ["sparseness"]},
    "deep_feature_factorization": {"layer": "2", "concepts": 2},
    "Captured.gradients": {"scores": OUTPUTS[:, 1].sum()},
    "Captured.in_graph": {"scores": OUTPUTS[:, 1]},
    "Explanation": dict(vars(EXPLANATION)),
    "Explanation.cat": {"explanations": [EXPLANATION]},
    **{key: {"images": IMAGES} for key in ("Explanation.overlays", "Explanation.plot", "Explanation.report")},
    "Geometry.apply": {"pictures": torch.rand(2, 3, 12, 10)},
    "Geometry.then": {"following": imaging.Resize((6, 6), (8, 8))},
    "metrics.top_k_intersection": {"k": 4},
    "metrics.mosaics": {"images": torch.rand(4, 3, 8, 8), "classes": [0, 1, 2, 3], "count": 1},
    "reporting.Chart": {"figure": PNG},
}
"""Valid values that the names of the arguments do not say."""
CALLED = (
    "model",
    "perturb",
    "discretise",
    "forward",
    "reshape",
    "target",
    "score",
    "explainer",
    "method",
    "function",
    "perturbations",
    "transforms",
    "change",
)
"""Arguments that are called: what a wrong function raises then is not camlib's error."""
NOT_CALLED = {
    "functional.full_gradients", "functional.guided_gradients",  # take only what a method takes
    "Scorer.scores", "Scorer.scores_of_variants",  # for metrics: they take functions
    "Comparison.get",  # of every mapping
}  # fmt: skip


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All public functions and classes that a user calls, but for the methods, which ``test_fuzz`` tries."""
    for module in (camlib, functional, imaging, targets, metrics, reporting, testing, camlib.evaluation):
        prefix = module.__name__.removeprefix("camlib").removeprefix(".")
        for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType) or not callable(value) or name in MADE_BY_CAMLIB:
                continue
            if not value.__module__.startswith("camlib"):
                continue
            if inspect.isclass(value) and issubclass(value, (Exception, Warning, camlib.methods.Method)):
                continue
            yield f"{prefix}.{name}" if prefix else name, value


def of_results() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of results."""
    for kind, result in RESULTS.items():
        for name, _ in inspect.getmembers(type(result), callable):
            if not name.startswith("_"):
                yield f"{kind}.{name}", getattr(result, name)


@functools.wraps(camlib.explain_dataset)
def in_a_new_folder(*args: Any, **given: Any) -> Any:
    """A run into a folder of the same name that holds no run with other settings."""
    shutil.rmtree("run", ignore_errors=True)
    return camlib.explain_dataset(*args, **given)


@functools.wraps(camlib.open_run)
def of_a_run(*args: Any, **given: Any) -> Any:
    """A run is opened that was made before."""
    if not os.path.exists("run"):
        in_a_new_folder(CAM, IMAGES, "run", target=1, progress=False)
    return camlib.open_run(*args, **given)


CALLS = {
    **{name: function for name, function in [*functions(), *of_results()] if name not in NOT_CALLED},
    "explain_dataset": in_a_new_folder,
    "open_run": of_a_run,
}


@functools.cache
def arguments_of(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Valid arguments of a function, and the names of all that it has."""
    try:
        parameters = inspect.signature(CALLS[name]).parameters.values()
    except ValueError:  # a builtin's
        return {}, ()
    named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    known = {**VALID, **OTHER.get(name, {})}
    missing = [one.name for one in named if one.default is one.empty and one.name not in known]
    assert not missing, f"give a valid value for {missing} of {name}, in VALID or OTHER"
    given = {one.name: known[one.name] for one in named if one.default is one.empty}
    given |= {one.name: FEW[one.name] for one in named if one.name in FEW and one.default is not one.empty}
    return given | OTHER.get(name, {}), tuple(one.name for one in named)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_the_valid_arguments_are_valid(name: str) -> None:
    """Or the other test would only meet the first error again and again."""
    given, _ = arguments_of(name)
    if given.get("path") == "nothing" and name.rpartition(".")[2] in ("read_image", "read_gray", "load"):
        with pytest.raises(camlib.CamlibError, match="nothing"):
            CALLS[name](**given)
    else:
        CALLS[name](**given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CALLS if arguments_of(name)[1]])
def test_every_argument(name: str) -> None:
    """Every wrong value of every argument, with valid values of the others."""
    given, names = arguments_of(name)
    for argument, value in itertools.product(names, WRONG):
        if argument in CALLED and is_function(value):
            continue
        if argument == "path" and isinstance(value, str):
            continue  # it would be read or written
        try:
            CALLS[name](**{**given, argument: value})
        except camlib.CamlibError:
            pass
        except Exception as error:
            raise AssertionError(f"{name}({argument}={value!r}) raised {type(error).__name__}: {error}") from error
        os.fstat(1)  # an int is a file descriptor to open()
        plt.close("all")


USES: dict[str, Callable[[camlib.Explanation], Any]] = {
    "heatmaps": lambda one: one.heatmaps(),
    "heatmaps of a size": lambda one: one.heatmaps((8,) * one.dims),
    "overlays": lambda one: one.overlays(IMAGES),
    "plot": lambda one: one.plot(IMAGES),
    "title": lambda one: one.title(),
    "to": lambda one: one.to(torch.float64).cpu(),
    "numpy": lambda one: one.numpy(),
    "cat": lambda one: camlib.Explanation.cat([one, one]),
    "index": lambda one: [one[0], one[-1:], *one],
    "attributes": lambda one: (len(one), one.degenerate, one.signed, one.has_class_axis, repr(one)),
    "notebook": lambda one: one._repr_png_(),
    "file": lambda one: (one.save("a.npz"), camlib.Explanation.load("a.npz")),
    "report": lambda one: camlib.report(one, IMAGES),
}
"""What is done with an explanation."""
MORE: list[Any] = [
    torch.zeros(2, 4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(0, 4, 4), torch.zeros(2, 0, 8),
    torch.zeros(2, 8, 8).to_sparse(),
    torch.zeros(2, 8, 8, requires_grad=True), torch.zeros(2, 8, 8, dtype=torch.bfloat16),
    torch.zeros(2, 8, 8, dtype=torch.float8_e4m3fn), torch.full((2, 8, 8), math.nan), torch.full((2, 8, 8), math.inf),
    torch.zeros(2, dtype=torch.long), torch.tensor([-3, 99]), torch.zeros(2, dtype=torch.bool), torch.zeros(2, 2),
    torch.zeros(2, dtype=torch.complex64), {"a": torch.zeros(2, 4, 4)}, {"a": torch.zeros(())},
    {"a": torch.zeros(5, 4, 4)}, (8, 8), (8,), (8, 8, 8), (8.0, 8.0), (1e300, 1e300), (-5.0, 2.0),
]  # fmt: skip
"""Values that are right for some fields of an explanation."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("field", vars(EXPLANATION))
def test_an_explanation_of_fields_that_are_accepted_can_be_used(field: str) -> None:
    fields = vars(CAM(IMAGES, camlib.TopK(2) if field in ("maps", "scores", "layers") else 1))
    accepted = 0
    for value in [fields[field], *WRONG, *MORE]:
        with contextlib.suppress(camlib.CamlibError):
            explanation = camlib.Explanation(**{**fields, field: value})
            accepted += 1
            if isinstance(value, torch.Tensor) and value.is_meta:
                continue  # without values; torch says so
            for name, use in USES.items():
                try:
                    with contextlib.suppress(camlib.CamlibError):
                        use(explanation)
                except Exception as error:
                    raise AssertionError(f"{name} with {field}={value!r} raised {error!r}") from error
    assert accepted >= 1


def test_scores_without_the_axis_of_the_images_are_refused() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"got \(8, 8\) for \(\)"):
        camlib.Explanation(**{**vars(EXPLANATION), "maps": MAPS[0], "scores": torch.zeros(()), "target": "a"})


def test_more_than_20_000_calls_are_made() -> None:
    assert sum(len(arguments_of(name)[1]) for name in CALLS) * len(WRONG) > 20_000
