"""Leave the model and the process unchanged: flags, buffers, random numbers, grad mode and inference mode."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from camlib.inputs.nested import map_tensors
from camlib.passes.calling import lazy
from camlib.passes.hooks import CALL
from camlib.passes.network import modules_of, usable
from camlib.passes.undoing import undone


@dataclass(eq=False)
class _Kept:
    """A module that calls run in eval mode, and what the last of them restores."""

    training: bool
    buffers: dict[str, tuple[Tensor, Tensor, int]]
    """Each buffer, a copy of its values, and its version."""
    caches: dict[str, tuple[dict[Any, Any], dict[Any, Any]]]
    """Each attribute that is a dict, with a copy of it."""
    calls: set[object] = field(default_factory=set)
    """The calls that are running."""

    @staticmethod
    def of(training: bool, buffers: Mapping[str, Tensor], caches: Mapping[str, dict[Any, Any]]) -> _Kept:
        """Note the state of a module: its flag, its buffers, and its attributes that are dicts."""
        copies = {name: (one, one.clone(), one._version) for name, one in buffers.items() if not one.is_inference()}
        return _Kept(training, copies, {name: (cache, dict(cache)) for name, cache in caches.items()})

    def restore(self, module: nn.Module) -> None:
        """Put the state back."""
        if self.training:
            module.training = True
        for name, (buffer, values, version) in self.buffers.items():
            if buffer._version != version or _observes(type(module)):
                if buffer.shape != values.shape:
                    buffer.resize_(values.shape)
                buffer.copy_(values)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        for cache, content in self.caches.values():
            if len(cache) != len(content) or any(cache.get(key) is not value for key, value in content.items()):
                cache.clear()
                cache.update(content)


Undo = list[Callable[[], Any]]
"""What restores the changes that were made so far."""

_lock = threading.RLock()
_kept: dict[nn.Module, _Kept] = {}
_eager_calls: set[object] = set()
_eager_stances: list[contextlib.AbstractContextManager[None]] = []


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.Size})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _observes(kind: type[nn.Module]) -> bool:
    """Whether modules are torch.ao's: its observers' buffers grow, and their kernels count no change of them."""
    return kind.__module__.startswith("torch.ao.")


def _may_change(kind: type[nn.Module]) -> bool:
    """Whether a pass in eval mode may change modules of a class; torch's own keep nothing, unless they are lazy."""
    return not kind.__module__.startswith("torch.") or _observes(kind) or issubclass(kind, LazyModuleMixin)


def _changeable(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a module's forward may change in eval mode; those of batch norms do not change."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {}
    return {name: buffer for name, buffer in module._buffers.items() if buffer is not None}


def _kept_from_pass_to_pass(module: nn.Module) -> dict[str, Any]:
    """A module's attributes that may hold tensors of an earlier pass."""
    attributes = module.__dict__
    own = attributes.keys() - _OF_EVERY_MODULE
    return {name: attributes[name] for name in own if type(attributes[name]) not in _PLAIN}


def _dicts(attributes: Mapping[str, Any]) -> dict[str, dict[Any, Any]]:
    """The attributes that are dicts, in which LeViT and others keep tensors (and their graph) in eval mode."""
    return {name: value for name, value in attributes.items() if type(value) is dict and not name.startswith("_")}


def _renew(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Replace the inference tensors in a module's attributes by clones, which autograd can use.

    A module that keeps tensors from one pass to the next, such as the anchors of a detector's head, keeps inference
    tensors after a pass in ``torch.inference_mode()``. The clones are equal and stay: any later pass can use them.
    """
    for name, value in attributes.items():
        if _holds_inference_tensors(value):
            setattr(module, name, map_tensors(usable, value))


def _holds_inference_tensors(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_inference()
    if isinstance(value, (tuple, list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return any(type(item) not in _PLAIN and _holds_inference_tensors(item) for item in items)
    return False


def _evaluate(model: nn.Module, call: object, undo: Undo) -> list[nn.Module]:
    """Keep every module of ``model`` in eval mode; its flag, its own buffers, and its dicts are restored afterwards.

    Calls are counted per module, so calls from several threads may overlap: the last one restores the state. Returns
    all modules, from the only walk over them in a call.

    Raises:
        CamlibRuntimeError: a module has lazy parameters.
    """
    held: list[nn.Module] = []

    def release() -> None:
        with _lock:
            while held:
                kept = _kept.get(held[-1])
                if kept is not None:
                    kept.calls.discard(call)
                    if not kept.calls:
                        kept.restore(held[-1])
                        del _kept[held[-1]]
                held.pop()

    def hold(module: nn.Module, buffers: Mapping[str, Tensor], caches: Mapping[str, dict[Any, Any]]) -> None:
        held.append(module)
        if module not in _kept:
            _kept[module] = _Kept.of(module.training, buffers, caches)
        _kept[module].calls.add(call)
        module.training = False

    undo.append(release)
    modules = modules_of(model)
    with _lock:
        may_change = {kind: _may_change(kind) for kind in set(map(type, modules))}
        for module in modules:
            buffers, caches = {}, {}
            if may_change[type(module)]:
                if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                    raise lazy()
                if attributes := _kept_from_pass_to_pass(module):
                    _renew(module, attributes)
                    caches = _dicts(attributes)
                if module._buffers:
                    buffers = _changeable(module)
            if module.training or buffers or caches or module in _kept:
                hold(module, buffers, caches)
    return modules


def _run_eagerly(call: object, undo: Undo) -> None:
    """Run compiled submodules and functions eagerly: hooks do not fire in compiled code, nor does its graph stay.

    The setting is torch's, for the whole process; the last of several calls that overlap restores it.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return  # nothing was compiled, or torch has no such setting

    def release() -> None:
        with _lock:
            _eager_calls.discard(call)
            while _eager_stances and not _eager_calls:
                _eager_stances[-1].__exit__(None, None, None)
                _eager_stances.pop()

    undo.append(release)
    with _lock:
        _eager_calls.add(call)
        if not _eager_stances:
            _eager_stances.append(torch.compiler.set_stance("force_eager"))


def _in_child() -> None:
    """Forget, in a forked process, the calls of the parent's other threads, which do not run there."""
    global _lock
    _lock = threading.RLock()
    for module, kept in _kept.items():
        kept.restore(module)
    for stance in _eager_stances:
        stance.__exit__(None, None, None)
    for calls in (_kept, _eager_calls, _eager_stances):
        calls.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _keep_random_numbers(undo: Undo) -> None:
    """Restore the global generators of torch, NumPy and Python afterwards."""
    import numpy as np

    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    of_python, of_torch = random.getstate(), torch.get_rng_state()
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    of_cuda = {index: torch.cuda.get_rng_state(index) for index in devices}

    def restore() -> None:
        torch.set_rng_state(of_torch)
        for index, of_device in of_cuda.items():
            torch.cuda.set_rng_state(of_device, index)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002

    undo.append(restore)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Run without autograd, in eval mode, outside inference mode, eagerly; everything is restored afterwards.

    Forward hooks from outside do not act, such as those of a capture around the block. Yields all modules of the model.

    Raises:
        CamlibRuntimeError: a module has lazy parameters.
    """
    call, outside, caching = object(), CALL.get(), torch.is_autocast_cache_enabled()
    undo: Undo = []  # the last change first; each entry is made before its change, and may be called again

    def restore() -> None:
        while undo:
            undo[-1]()
            undo.pop()

    with torch.inference_mode(False), torch.no_grad(), undone(restore):
        undo.append(lambda: CALL.set(outside))
        CALL.set(call)
        _keep_random_numbers(undo)
        modules = _evaluate(model, call, undo)
        _run_eagerly(call, undo)
        # Casts cached under no_grad would have no gradient when the caller trains in the same autocast region.
        undo.append(lambda: torch.set_autocast_cache_enabled(caching))
        torch.set_autocast_cache_enabled(False)
        yield modules
