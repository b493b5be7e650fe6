"""A user's model and how to call it: unwrapped, checked against its inputs, and run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError, CamlibWarning, optional_function
from camlib.inputs import Inputs
from camlib.inputs.detections import remember_sizes
from camlib.layers.texts import has_two_towers, text_modules
from camlib.passes.balancing import PlainGradients
from camlib.passes.calling import Arguments, batches_only, explained
from camlib.passes.ending import Ending
from camlib.passes.located import LocatedLayers

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, inputs) -> outputs``."""
Reshape = Callable[[Tensor], Tensor]
"""``reshape(tensor) -> (N, C, ...)``."""


@dataclass(frozen=True, eq=False)
class Network:
    """A model, the function that calls it, and the function that rearranges its features.

    Example:
        >>> import torch
        >>> network = Network.of(nn.Linear(2, 3), forward=lambda model, inputs: model(inputs) + 1)
        >>> network.run(network.ready(torch.zeros(4, 2))).shape
        torch.Size([4, 3])
    """

    module: nn.Module
    """The model, without wrappers."""
    forward: Forward | None = None
    """``forward(model, inputs) -> outputs`` in place of ``model(inputs)``, ``model(**inputs)`` or ``model(*inputs)``,
    of which :class:`camlib.passes.calling.Arguments` decides."""
    reshape: Reshape | None = None
    """The user's function from a layer's features to (N, C, ...); None to infer the layout."""
    ending: Ending = field(default_factory=Ending)
    """Whether the outputs are probabilities, which the first run of :meth:`scored` shows."""
    located: LocatedLayers = field(default_factory=LocatedLayers)
    """Where the cells of its layers lie, as found in its first passes."""
    shared: dict[Any, tuple[int, ...]] = field(default_factory=dict)
    """Indices of the tensors shared by all images, keyed by the inputs' kind, their count and the candidates."""
    gradients: type[PlainGradients] = PlainGradients
    """The gradients of its passes."""

    @staticmethod
    def of(model: nn.Module, forward: Forward | None = None, reshape: Reshape | None = None) -> Network:
        """Return the network for a model that may be wrapped; see :func:`unwrap`.

        Raises:
            CamlibTypeError: ``forward`` or ``reshape`` is not a function, or as for :func:`unwrap`.
        """
        optional_function("forward", forward)
        optional_function("reshape", reshape)
        return Network(unwrap(model), forward, reshape)

    def is_called_as(self, other: Network) -> bool:
        """Whether both have the same model, ``forward``, ``reshape`` and gradients."""
        return self._called == other._called

    @property
    def _called(self) -> tuple[Any, ...]:
        return self.module, self.forward, self.reshape, self.gradients

    def on(self, model: nn.Module) -> Network:
        """Return the network of another model that is called in the same way."""
        return replace(Network.of(model, self.forward, self.reshape), gradients=self.gradients)

    def with_gradients(self, gradients: type[PlainGradients]) -> Network:
        """Return the same network with other gradients; what is known of its layers is shared."""
        return replace(self, gradients=gradients)

    def ready(self, raw: Any) -> Inputs:
        """Parse the inputs, and replace inference tensors by clones.

        Raises:
            CamlibValueError: the batch is empty.
        """
        inputs = raw if isinstance(raw, Inputs) else Inputs(raw)
        if inputs.shared is None and self._texts_apart and inputs.texts:
            inputs = Inputs(inputs.raw, inputs.texts, inputs.axes)
        for tensor in inputs.tensors:
            if tensor is inputs.raw and not tensor.dim():
                raise CamlibValueError("inputs are a single number; give a batch of images, (N, C, H, W)")
            if tensor.dim() and not tensor.shape[0]:
                raise CamlibValueError(f"inputs are empty: shape {tuple(tensor.shape)}; give at least one image")
        if not any(map(Tensor.is_inference, inputs.tensors)):
            return inputs
        with torch.inference_mode(False):  # or the clones would be inference tensors again
            return inputs.map(usable)

    @cached_property
    def arguments(self) -> Arguments:
        """How the model takes its inputs."""
        return Arguments(self.module)

    @cached_property
    def text_modules(self) -> set[nn.Module]:
        """The modules whose tokens are a text."""
        return text_modules(self.module)

    @cached_property
    def _texts_apart(self) -> bool:
        return has_two_towers(self.module)

    def run(self, inputs: Inputs) -> Any:
        """Return the model's outputs, without its compiled code, which would not see new hooks.

        The model gets a copy of the inputs, since it may change them in place, as with ``Normalize(inplace=True)``. On
        a CPU the copy takes 0.2% of the time of a ResNet-18's forward pass, and 2% of a MobileNetV3-Small's.

        Raises:
            CamlibTypeError: the model fails, and its inputs are of a kind or dtype that it does not take.
            CamlibValueError: the model fails, and its inputs are on another device, or a single image without the axis
                of the batch.
            CamlibRuntimeError: the model fails at tensors of inference mode that it keeps.
        """
        outputs = self._outputs(inputs.copied())
        if not isinstance(outputs, Tensor):
            remember_sizes(outputs, inputs)
        return outputs

    def called(self, raw: Any) -> Any:
        """Return the outputs for inputs of the usual kind, such as images (N, C, H, W), which the model may change."""
        return self._call(raw) if self.forward is None else self.forward(self.module, raw)

    @property
    def _call(self) -> Callable[..., Any]:
        compiled = getattr(self.module, "_compiled_call_impl", None) is not None
        return self.module._call_impl if compiled else self.module

    def scored(self, inputs: Inputs) -> Any:
        """Return the outputs of :meth:`run`; those that are probabilities bear a note with their logits."""
        return self.ending.noted(lambda: self.run(inputs))

    def _outputs(self, inputs: Inputs) -> Any:
        try:
            if self.forward is not None or (isinstance(inputs.raw, Tensor) and inputs.raw.dim() != 3):
                return self.called(inputs.raw)
            args, named = self.arguments.of(inputs.raw)
            with batches_only(self.module, inputs):
                return self._call(*args, **named)
        except Exception as error:
            in_words = explained(self.module, None if self.forward else self.arguments, inputs, error)
            if in_words is None:
                raise
            raise in_words from error


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``YOLO`` wrappers.

    Hooks added after compilation do not fire, and replicas have no hooks, so camlib runs the module itself, eagerly
    and on one device. Ultralytics' ``YOLO`` has no forward pass: a call of it predicts in inference mode, from files,
    with the network that is its ``model`` or a copy. A warning says so.

    Raises:
        CamlibTypeError: ``model`` is not a module, is scripted, or is a ``YOLO`` without a network in PyTorch.
    """
    if not isinstance(model, nn.Module):
        raise CamlibTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CamlibTypeError("the model is a ScriptModule, which takes no hooks; explain the original model")
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            _say("compiled with torch.compile: camlib runs the original module, eagerly")
            model = compiled
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            _say(f"wrapped in {type(model).__name__}: camlib runs the module inside, on one device")
            model = model.module
        elif _only_predicts(model):
            inner = model.model
            if not isinstance(inner, nn.Module):
                raise CamlibTypeError(
                    f"the {type(model).__name__} holds no network in PyTorch, but a {type(inner).__name__}: {inner!r}. "
                    "Load the original weights instead of an exported model"
                )
            _say(
                f"a {type(model).__name__}, whose call predicts in inference mode: camlib runs its .model, a "
                f"{type(inner).__name__}, which takes tensors (N, 3, H, W) as its own preprocessing makes them"
            )
            model = inner
        else:
            if getattr(model, "_compiled_call_impl", None) is not None:
                _say("compiled in place: camlib runs it eagerly")
            return model


def _only_predicts(model: nn.Module) -> bool:
    """Whether a module has no forward pass but predicts with a network that it holds, as ultralytics' YOLO does."""
    kind = type(model)
    return (
        kind.forward is nn.Module.forward
        and callable(getattr(kind, "predict", None))
        and hasattr(model, "model")
        and hasattr(model, "task")
    )


def _say(what: str) -> None:
    warnings.warn(f"The model is {what}.", CamlibWarning, stacklevel=5)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return a module and all modules inside it, each once; torch's own iterators take four times as long."""
    found = dict.fromkeys([model])
    waiting = [model]
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def state(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers."""
    for module in modules_of(model):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor


def usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can use: a clone of an inference tensor, made outside of inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
