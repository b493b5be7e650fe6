"""Leave the model as it was: unwrapping, evaluation mode, random numbers, grad and inference mode."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, CamlibWarning
from camlib.inputs.nested import map_tensors, tensors_in

_flags_lock = threading.Lock()
_held_in_eval: dict[nn.Module, int] = {}  # module that was training -> calls now holding it in eval mode


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers.

    Hooks added after compilation do not fire and replicas do not share theirs, so a call runs on the module
    itself, eagerly and on one device. A warning says so.

    Raises:
        CamlibTypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise CamlibTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CamlibTypeError("the model is a ScriptModule, which takes no hooks; explain the model it was made from")
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
    warnings.warn(f"The model is {what}.", CamlibWarning, stacklevel=4)


def call_eagerly(model: nn.Module, inputs: Any) -> Any:
    """Call ``model(inputs)``, past ``model.compile()``, whose compiled code would not see new hooks.

    Raises:
        CamlibTypeError: the inputs hold no tensor, a picture or an array perhaps, and the model cannot take them.
    """
    call: Callable[[Any], Any] = model if getattr(model, "_compiled_call_impl", None) is None else model._call_impl
    try:
        return call(inputs)
    except (AttributeError, TypeError) as error:
        if any(True for _ in tensors_in(inputs)):
            raise
        raise CamlibTypeError(
            f"{type(model).__name__} cannot take {type(inputs).__module__}.{type(inputs).__name__} as inputs; give it "
            "what it takes, usually a tensor (N, C, H, W): pictures become one by the transforms of the model's weights"
        ) from error


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold every module of ``model`` in eval mode; afterwards each one's flag is what it was.

    Flags are counted per module, so that calls from several threads may overlap: the last one out restores.
    """
    held = []
    with _flags_lock:
        for module in model.modules():
            if module.training or module in _held_in_eval:
                _held_in_eval[module] = _held_in_eval.get(module, 0) + 1
                module.training = False
                held.append(module)
    try:
        yield
    finally:
        with _flags_lock:
            for module in held:
                _held_in_eval[module] -= 1
                if _held_in_eval[module] == 0:
                    del _held_in_eval[module]
                    module.training = True


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run without autograd, in eval mode, outside inference mode; nothing of it is left afterwards."""
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = {tensor.device.index for tensor in _state(model) if tensor.is_cuda} if on_cuda else set()
    caching = torch.is_autocast_cache_enabled()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(sorted(cuda)),
        evaluating(model),
    ):
        # Casts cached under no_grad would have no gradient when the caller trains in the same autocast region.
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(caching)


def checked_inputs(model: nn.Module, inputs: Any) -> Any:
    """Return ``inputs`` free of inference tensors, once model and inputs are known to go together.

    Raises:
        CamlibRuntimeError: a parameter or buffer was created in inference mode, or is not initialised.
        CamlibValueError: the inputs hold no image, or lie on another device than the model.
    """
    state = list(_state(model))
    if any(nn.parameter.is_lazy(tensor) for tensor in state):
        raise CamlibRuntimeError("the model has lazy parameters of no shape yet; run it once before explaining it")
    if any(tensor.is_inference() for tensor in state):
        raise CamlibRuntimeError(
            "the model's parameters were created in torch.inference_mode(), where autograd cannot use them; "
            "create or load the model outside inference_mode, or pass copy.deepcopy(model) made outside it"
        )
    for tensor in tensors_in(inputs):
        if tensor.dim() and not tensor.shape[0]:
            raise CamlibValueError(f"inputs are empty: shape {tuple(tensor.shape)}; give at least one image")
    with torch.inference_mode(False):  # or the clones would be inference tensors again
        return map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, inputs)


def check_device(model: nn.Module, inputs: Any) -> None:
    """Refuse inputs that lie on another device than the whole model.

    Raises:
        CamlibValueError: naming both devices.
    """
    homes = {str(device) for device in {tensor.device for tensor in _state(model)}}
    for tensor in tensors_in(inputs):
        if homes and str(tensor.device) not in homes:
            home = ", ".join(sorted(homes))
            raise CamlibValueError(
                f"inputs are on {tensor.device} but the model is on {home}; move one: inputs.to({home!r})"
            )


def _state(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, in one walk: on a network of many modules the walks of torch's own are felt."""
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
