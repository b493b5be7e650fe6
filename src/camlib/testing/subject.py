"""The method under test with its network and images, and snapshots of all state that a call must not change."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.methods import Method
from camlib.targets.indices import class_outputs

MethodFactory = Callable[..., Method]
"""A :class:`camlib.methods.Method` class, or a function ``(model, layer=None, **options) -> Method``."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A method, with the network and the images for its checks. Every model and every explainer it makes is new.

    Args:
        method: the class, or a function with its arguments.
        network: returns logits (N, C) of at least two classes.
        images: at least two.

    Raises:
        CamlibTypeError: the method, the network or the images have another type.
        CamlibValueError: fewer than two images or classes, or numbers that are not finite.
    """

    method: MethodFactory
    network: nn.Module
    images: Tensor

    def __post_init__(self) -> None:
        if not callable(self.method):
            raise CamlibTypeError(
                f"method must be a camlib.methods.Method class, or a function (model, layer=None, **options) that "
                f"returns a method, got {type(self.method).__name__}"
            )
        if not isinstance(self.network, nn.Module):
            raise CamlibTypeError(f"model must be a torch.nn.Module, got {type(self.network).__name__}")
        if not isinstance(self.images, Tensor) or not self.images.is_floating_point():
            given = self.images.dtype if isinstance(self.images, Tensor) else type(self.images).__name__
            raise CamlibTypeError(f"inputs must be a floating tensor of images, got {given}")
        if self.images.is_meta or self.images.dim() < 3:
            raise CamlibValueError(
                f"inputs must be images (N, C, ...) with values, got {tuple(self.images.shape)} on {self.images.device}"
            )
        if not bool(self.images.isfinite().all()):
            raise CamlibValueError("inputs must be finite: the checks compare maps, and NaN equals nothing")
        if len(self.images) < 2 or self.classes < 2:
            raise CamlibValueError(
                f"inputs hold {len(self.images)} images and the model has {self.classes} classes; the checks need two "
                "of both, to compare a batch with its images and several classes with each class"
            )

    @cached_property
    def kind(self) -> type[Method]:
        """The method's class, which has its tags.

        Raises:
            CamlibTypeError: it is not a :class:`camlib.methods.Method`.
        """
        kind = self.method if isinstance(self.method, type) else type(self.method(self.model()))
        if not issubclass(kind, Method):
            raise CamlibTypeError(f"method must be a camlib.methods.Method class or return one, got {kind.__name__}")
        return kind

    @cached_property
    def logits(self) -> Tensor:
        """The logits (N, C), in double precision.

        Raises:
            CamlibValueError: the model does not run on the inputs.
        """
        inputs = self.inputs()
        try:
            with torch.no_grad():
                return class_outputs(self.model()(inputs))
        except Exception as error:  # any error that the model raises
            raise CamlibValueError(f"the model does not run on inputs {tuple(inputs.shape)}: {error}") from error

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.logits.shape[1]

    @cached_property
    def each(self) -> list[int]:
        """A class for each image, not the same for all images."""
        return [image % self.classes for image in range(len(self.images))]

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Return a copy of the network, in eval mode."""
        return copy.deepcopy(self.network).to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return a copy of the images."""
        return self.images.detach().to(dtype, copy=True)

    def explainer(self, model: nn.Module | None = None, layer: Any = None, **options: Any) -> Method:
        """Return the method of a model, by default of a copy of the network in double precision."""
        return self.method(self.model() if model is None else model, layer, **options)

    def signed(self, layer: Any = None, **options: Any) -> Method:
        """Return the method with ``relu=False``, so that maps are signed, or without it if the method refuses it."""
        try:
            return self.explainer(layer=layer, relu=False, **options)
        except CamlibValueError:
            return self.explainer(layer=layer, **options)

    def explain(self, target: Any = None, **options: Any) -> Explanation:
        """Return the explanation of the images, signed if possible, in double precision."""
        return self.signed(**options)(self.inputs(), self.each if target is None else target)

    def layer_names(self) -> list[str] | None:
        """The layers that the method reads by default; None if it reads none."""
        return list(self.explainer().layers_for(Inputs(self.inputs()))) or None

    def model_in_some_state(self) -> nn.Module:
        """Return a copy of the network in training mode, partly in eval mode and frozen, with gradients and a hook."""
        model = self.model(torch.float32).train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            class_outputs(model(self.inputs(torch.float32))).sum().backward()
        modules = list(model.modules())
        modules[-1].eval()
        next(iter(model.parameters())).requires_grad_(False)
        modules[0].register_forward_hook(_somebody_elses)
        return model


def _somebody_elses(module: nn.Module, args: Any, output: Any) -> None:
    """A hook that the user registered before the call."""


def snapshot(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Record all state that a call must not change.

    Args:
        model: every attribute of every module is recorded, including hooks, flags and tensors.
        images: the inputs.

    Returns:
        Nested dicts, to be compared by :func:`differences`.
    """
    import numpy as np

    modules = {
        f"{type(module).__name__} {name!r}" if name else f"{type(module).__name__} itself": module
        for name, module in model.named_modules()
    }
    everywhere = vars(torch.nn.modules.module)
    return {
        **{f"the {what}": {key: _content(value) for key, value in vars(m).items()} for what, m in modules.items()},
        "the inputs": _content(images),
        "torch's random numbers": torch.get_rng_state(),
        "NumPy's random numbers": pickle.dumps(np.random.get_state()),  # noqa: NPY002 - NumPy's global state
        "Python's random numbers": random.getstate(),
        "the grad mode": torch.is_grad_enabled(),
        "the inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "the default dtype": torch.get_default_dtype(),
        "the kernels of attention": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "the hooks on all modules": {k: _content(v) for k, v in everywhere.items() if k.startswith("_global_")},
    }


def _content(value: Any) -> Any:
    """A copy of a tensor with its metadata, of the items of a dict, or the value itself."""
    if isinstance(value, dict):
        return {str(key): _content(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return {
            "object": id(value),
            "values": value.detach().clone(),
            "number of writes": value._version,
            "requires_grad": value.requires_grad,
            "grad": None if value.grad is None else value.grad.clone(),
            "number of hooks": len(value._backward_hooks or ()),
        }
    return value


def differences(before: Any, after: Any) -> Iterator[str]:
    """Yield the differences between two snapshots as paths such as ``the Linear 'head': training``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if key not in before or key not in after:
                yield f"{key} ({'new' if key in after else 'gone'})"
            else:
                for where in differences(before[key], after[key]):
                    yield f"{key}: {where}" if where else key
    elif not _same(before, after):
        yield ""


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.dtype == after.dtype and torch.equal(_bits(before), _bits(after))
    plain = (bool, int, float, str, bytes, tuple, torch.dtype)
    return isinstance(before, plain) and type(before) is type(after) and before == after


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes, so that NaN equals itself."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
