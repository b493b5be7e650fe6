"""A model with its heatmaps as one module, without hooks and autograd."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import camlib
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, boolean
from camlib.exporting.call import CLASS_INDEX, Call, call_of
from camlib.exporting.decompositions import plain_operations
from camlib.exporting.preprocessing import Preprocessing
from camlib.exporting.proof import Trials, random_inputs, trials_of
from camlib.passes.isolation import undisturbed
from camlib.passes.recording import CannotRecordError, recorded
from camlib.targets import TopK


class WithHeatmaps(nn.Module):
    """A model together with the heatmaps of its outputs; :func:`camlib.as_module` makes it.

    The module holds a recorded graph of plain operations: no hook, no autograd, and no Python code of the model. Its
    parameters and buffers are those of the model, under the same names below ``graph``, and shared with it.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        call: Call,
        metadata: Mapping[str, str],
        example: tuple[Tensor, ...],
        dynamic_batch: bool,
        dynamic_size: bool,
    ) -> None:
        super().__init__()
        self.graph = graph
        """The recorded graph."""
        self.inputs = call.inputs
        """The names of its inputs."""
        self.metadata = dict(metadata)
        """What the graph is: its method, layer, target, class names, preprocessing and versions."""
        self.call = call
        """What was recorded."""
        self.example = example
        """Inputs of the graph, from which others copy shapes and types."""
        self.trials: Trials | None = None
        """What it was compared with."""
        self.dynamic_batch = dynamic_batch
        """Whether it takes batches of any length."""
        self.dynamic_size = dynamic_size
        """Whether it takes images of any size."""
        self.spatial = call.spatial if call.preprocessing is None else (1, 2)
        """The spatial axes of its images, or of its pictures."""
        self.train(False)

    def forward(self, images: Tensor, class_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs of the model, and the heatmaps (N, H, W), or (N, K, H, W) for K classes.

        Args:
            images: the images, or the pictures if the graph contains the preprocessing.
            class_index: (N,) int64, the class of each image, if the classes are an input of the graph.

        Raises:
            CamlibTypeError: classes are missing, or given where they are no input.
        """
        if (class_index is not None) != (CLASS_INDEX in self.inputs):
            wanted = " and ".join(self.inputs)
            raise CamlibTypeError(f"the module takes {wanted}; it was made with target={self.metadata['target']}")
        given = (images,) if class_index is None else (images, class_index)
        with torch.no_grad():
            outputs, heatmaps = self.graph(*given)
        return outputs, heatmaps


def as_module(
    explainer: Any,
    inputs: Any,
    *,
    target: Any = None,
    heatmap_size: tuple[int, ...] | None = None,
    normalize: bool = True,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> WithHeatmaps:
    """Return a module that computes a model's outputs and their heatmaps, in one graph of plain operations.

    The module has no hooks and needs no autograd. Serve it eagerly, compile it by ``torch.compile``, capture it in a
    CUDA graph, or export it: :func:`camlib.export`, :func:`camlib.export_onnx`. It shares its parameters and buffers
    with the model. The model's Python code is recorded once, in eval mode and in the model's precision.

    Before it is returned, the module and eager calls are both compared with eager calls of a copy of the model in
    float64, on random images in batches of several lengths. The module is accepted if its largest error is at most
    1e-5, or at most 4 times that of eager calls, up to 0.1. A model that cannot be made float64 is compared with eager
    calls as they are, to 1e-5. The metadata hold both errors, and what the reference was.

    Heatmaps are those of :meth:`camlib.Explanation.heatmaps`. Where eager calls raise
    :class:`camlib.errors.NotFiniteError`, the heatmaps are NaN.

    Args:
        explainer: a method on a model, such as ``camlib.GradCAM(model)``. Its map must be a function of activations, or
            of activations and gradients: Grad-CAM, Grad-CAM++, XGrad-CAM, HiResCAM, element-wise Grad-CAM, LayerCAM,
            CAM, EigenCAM and its variants, KPCA-CAM, FEM, RefineCAM, and subclasses of the public base classes.
        inputs: images as the model takes them, (N, C, H, W), which show the shapes; with ``preprocessing`` pictures.
        target: None for the predicted class of each image; a class index; :class:`camlib.TopK`; or "class_index" for
            a second input of the module, (N,) int64.
        heatmap_size: (H, W) of the heatmaps; by default that of the images.
        normalize: True for heatmaps in [0, 1]; False for maps that are only resized.
        dynamic_batch: whether the module takes batches of any length; False for that of ``inputs``.
        dynamic_size: whether it takes images of any height and width, which the model must allow.
        preprocessing: makes the module take pictures of uint8 (N, H, W, channels).
        class_names: the name of each class, for the metadata.

    Returns:
        A module from images to (outputs, heatmaps). The outputs are the model's, if they are a tensor, and otherwise
        its logits (N, C). With :class:`camlib.TopK`, heatmaps are (N, K, H, W), the class with the highest output
        first.

    Raises:
        CamlibTypeError, CamlibValueError: an argument is invalid, or the method cannot be exported.
        CamlibRuntimeError: the model cannot be recorded, or the module's error is larger.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> module = camlib.as_module(camlib.GradCAM(model), torch.rand(2, 3, 64, 64))
        >>> logits, heatmaps = module(torch.rand(5, 3, 64, 64))
        >>> logits.shape, heatmaps.shape
        (torch.Size([5, 4]), torch.Size([5, 64, 64]))
    """
    for name, flag in (("normalize", normalize), ("dynamic_batch", dynamic_batch), ("dynamic_size", dynamic_size)):
        boolean(name, flag)
    call = call_of(explainer, inputs, target, heatmap_size, normalize, preprocessing)
    if dynamic_size and call.covered is not None:
        raise CamlibValueError(
            "dynamic_size=True: the maps cover another part of the images than the whole, which depends on their size; "
            "export a graph for each size"
        )
    module = _recorded(call, inputs, dynamic_batch, dynamic_size, class_names)
    module.trials = trials_of(call, inputs, dynamic_batch, dynamic_size)
    module.metadata |= module.trials.prove(module, "the module").metadata
    return module


def _recorded(
    call: Call, inputs: Tensor, dynamic_batch: bool, dynamic_size: bool, class_names: Sequence[str] | None
) -> WithHeatmaps:
    """The module of a call."""
    example = random_inputs(call, inputs, 3 if dynamic_batch else len(inputs), inputs.shape[1:], seed=0)
    spatial = call.spatial if call.preprocessing is None else (1, 2)
    axes = {*((0,) if dynamic_batch else ()), *(spatial if dynamic_size else ())}
    dynamic = [axes, *[{0} if dynamic_batch else set() for _ in example[1:]]]
    try:
        with undisturbed(call.method.model):
            graph = recorded(call, call.method.model, example, dynamic, plain_operations())
    except CannotRecordError as error:
        remedy = ""
        if dynamic_size:
            remedy = "; leave dynamic_size out, for images of one size"
        elif dynamic_batch:
            remedy = "; try dynamic_batch=False, for batches of one length, or change that line of the model"
        raise CamlibRuntimeError(
            f"{type(call.method.model).__name__} with {type(call.method).__name__} cannot be exported: {error}{remedy}"
        ) from error
    return WithHeatmaps(graph, call, _metadata(call, class_names), example, dynamic_batch, dynamic_size)


def _metadata(call: Call, class_names: Sequence[str] | None) -> dict[str, str]:
    """What a graph is, in words."""
    import json

    target = "predicted class" if call.target is None else str(call.target)
    if isinstance(call.target, TopK):
        target = f"the {call.target.k} classes with the highest outputs"
    found = {
        "method": call.method.title,
        "layer": " + ".join(call.layers),
        "model": type(call.method.model).__name__,
        "target": target,
        "heatmaps": "in [0, 1]" if call.normalize else "maps, resized",
        "input_size": " x ".join(map(str, call.input_size)),
        "camlib": camlib.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if class_names is not None:
        names = class_names if isinstance(class_names, Sequence) and not isinstance(class_names, str) else [None]
        if not all(isinstance(one, str) for one in names):
            raise CamlibTypeError(f"class_names must be a sequence of strings, got {class_names!r}")
        found["class_names"] = json.dumps(list(class_names), ensure_ascii=False)
    if call.preprocessing is not None:
        mean, std = list(call.preprocessing.mean), list(call.preprocessing.std)
        found["preprocessing"] = json.dumps({"input": "uint8 (N, H, W, channels)", "mean": mean, "std": std})
    return found
