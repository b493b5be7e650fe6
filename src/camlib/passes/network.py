"""A user's model and how to call it: unwrapped, checked against its inputs, and run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, CamlibWarning
from camlib.inputs import Inputs

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
    """``forward(model, inputs) -> outputs`` in place of ``model(inputs)``."""
    reshape: Reshape | None = None
    """The user's function from a layer's features to (N, C, ...); None to infer the layout."""

    @staticmethod
    def of(model: nn.Module, forward: Forward | None = None, reshape: Reshape | None = None) -> Network:
        """Return the network for a model that may be wrapped; see :func:`unwrap`."""
        return Network(unwrap(model), forward, reshape)

    def is_called_as(self, other: Network) -> bool:
        """Whether both have the same model, ``forward`` and ``reshape``."""
        return (self.module, self.forward, self.reshape) == (other.module, other.forward, other.reshape)

    def ready(self, raw: Any) -> Inputs:
        """Parse the inputs, replace inference tensors by clones, and check that the inputs fit the model.

        Raises:
            CamlibRuntimeError: a parameter or buffer was created in inference mode, or is not initialised.
            CamlibValueError: the batch is empty, or the inputs and the model are on different devices.
        """
        tensors = list(state(self.module))
        if any(map(nn.parameter.is_lazy, tensors)):
            raise CamlibRuntimeError("the model has lazy parameters without a shape; run it once before explaining it")
        if any(map(Tensor.is_inference, tensors)):
            raise CamlibRuntimeError(
                "the model's parameters were created in torch.inference_mode(), where autograd cannot use them; "
                "create or load the model outside inference_mode, or pass copy.deepcopy(model) made outside it"
            )
        homes = {tensor.device for tensor in tensors}
        inputs = raw if isinstance(raw, Inputs) else Inputs(raw)
        for tensor in inputs.tensors:
            if self.forward is None and homes and tensor.device not in homes:
                home = ", ".join(sorted(map(str, homes)))
                raise CamlibValueError(
                    f"inputs are on {tensor.device} but the model is on {home}; move one: inputs.to({home!r})"
                )
            if tensor.dim() and not tensor.shape[0]:
                raise CamlibValueError(f"inputs are empty: shape {tuple(tensor.shape)}; give at least one image")
        if not any(map(Tensor.is_inference, inputs.tensors)):
            return inputs
        with torch.inference_mode(False):  # or the clones would be inference tensors again
            return inputs.map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def run(self, inputs: Inputs) -> Any:
        """Return the model's outputs, without its compiled code, which would not see new hooks.

        Raises:
            CamlibTypeError: the inputs hold no tensor (but a PIL image or an array, for example), and the model fails.
        """
        if self.forward is not None:
            return self.forward(self.module, inputs.raw)
        compiled = getattr(self.module, "_compiled_call_impl", None) is not None
        call: Callable[[Any], Any] = self.module._call_impl if compiled else self.module
        try:
            return call(inputs.raw)
        except (AttributeError, TypeError) as error:
            if inputs.tensors:
                raise
            kind = type(inputs.raw)
            raise CamlibTypeError(
                f"{type(self.module).__name__} cannot take {kind.__module__}.{kind.__name__} as inputs; pass what the "
                "model takes, usually a tensor (N, C, H, W): the transforms of the model's weights make one from a PIL "
                "image"
            ) from error


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers.

    Hooks added after compilation do not fire, and replicas have no hooks, so camlib runs the module itself, eagerly
    and on one device. A warning says so.

    Raises:
        CamlibTypeError: ``model`` is not a module, or is scripted.
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
        else:
            if getattr(model, "_compiled_call_impl", None) is not None:
                _say("compiled in place: camlib runs it eagerly")
            return model


def _say(what: str) -> None:
    warnings.warn(f"The model is {what}.", CamlibWarning, stacklevel=5)


def state(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers in one walk; torch's own iterators are slow for networks of many modules."""
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
