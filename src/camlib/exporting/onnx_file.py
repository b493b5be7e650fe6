"""A model with its heatmaps as a file of ONNX, which runs without PyTorch."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.exporting.module import WithHeatmaps, as_module
from camlib.exporting.program import axes_of, program_of

OPSET = 18
"""The version of ONNX's operators."""
OUTPUTS = ("outputs", "heatmaps")
"""The names of the outputs."""


def export_onnx(explainer: Any, inputs: Any, path: str | os.PathLike[str], **options: Any) -> Path:
    """Export a model together with its heatmaps to a file of ONNX, opset 18.

    ONNX Runtime, OpenVINO and others run the file without PyTorch. Its inputs are named "images", or "pictures" with
    ``preprocessing``, and "class_index"; its outputs "outputs" and "heatmaps". The metadata of the file say which
    method, layer, target, classes and versions it has. ONNX Runtime runs the file before it is written to ``path``,
    and the result is proved as in :func:`camlib.as_module`.

    It needs the packages onnx, onnxscript and onnxruntime: ``pip install torch-camlib[export]``.

    Args:
        explainer: as for :func:`camlib.as_module`.
        inputs: as for :func:`camlib.as_module`.
        path: the file. A model of more than 2 GB has a second file next to it, with the suffix ".data".
        **options: as for :func:`camlib.as_module`.

    Returns:
        The path.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`camlib.as_module`.
        CamlibRuntimeError: as for :func:`camlib.as_module`; or a package is missing, an operation has no translation,
            ONNX Runtime does not load the file, or its error is too large.

    Example:
        >>> import camlib, tempfile, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = camlib.export_onnx(camlib.GradCAM(model), torch.rand(2, 3, 64, 64), f"{folder}/model.onnx")
        ...     print(path.name)
        model.onnx
    """
    onnxruntime = _runtime()
    if not isinstance(path, (str, os.PathLike)):
        raise CamlibTypeError(f"path must be the name of a file, got {type(path).__name__}")
    to = Path(path)
    module = as_module(explainer, inputs, **options)
    program = program_of(module)
    model = _translated(module, program)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        draft = Path(folder) / to.name
        model.save(draft)
        session = _session(onnxruntime, draft, module.metadata)
        assert module.trials is not None
        proof = module.trials.prove(_run(session), "ONNX Runtime")
        metadata = {**module.metadata, **proof.metadata, "opset": str(OPSET)}
        model.model.metadata_props.update(metadata)
        model.save(draft)
        del session
        for part in sorted(Path(folder).iterdir()):
            part.replace(to.parent / part.name)
    return to


def _runtime() -> Any:
    try:
        for needed in ("onnx", "onnxscript"):  # torch's translation needs them
            importlib.import_module(needed)
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise CamlibRuntimeError(
            f"export_onnx needs {error.name}; install it with pip install onnx onnxscript onnxruntime, the packages of "
            "the extra torch-camlib[export]"
        ) from error


def _translated(module: WithHeatmaps, program: torch.export.ExportedProgram) -> Any:
    """The program in ONNX."""
    names = {name: axes_of(module, number) for number, name in enumerate(module.inputs)}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(module.inputs),
                output_names=list(OUTPUTS),
                dynamic_shapes=tuple(names.values()) if any(names.values()) else None,
                verbose=False,
            )
    except Exception as error:  # whatever the translation raises
        raise CamlibRuntimeError(
            f"{module.metadata['model']} with {module.metadata['method']} has no translation to ONNX: {error}; use "
            "camlib.export or camlib.as_module"
        ) from error


def _session(onnxruntime: Any, path: Path, metadata: Mapping[str, str]) -> Any:
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the runtime raises
        why = str(error).partition("failed:")[2] or str(error)
        raise CamlibRuntimeError(
            f"ONNX Runtime does not load {metadata['model']} with {metadata['method']}: {why}; use camlib.export or "
            "camlib.as_module"
        ) from error


def _run(session: Any) -> Callable[..., Sequence[Tensor]]:
    """A function that runs a session of ONNX Runtime."""
    names = [one.name for one in session.get_inputs()]

    def run(*given: Tensor) -> Sequence[Tensor]:
        found = session.run(list(OUTPUTS), {name: one.cpu().numpy() for name, one in zip(names, given, strict=True)})
        return [torch.from_numpy(one) for one in found]

    return run
