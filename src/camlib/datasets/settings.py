"""What must be the same for a run to resume: the explainer, its model, the target, the transforms."""

from __future__ import annotations

import enum
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from camlib.errors import CamlibError, CamlibTypeError, CamlibValueError
from camlib.evaluation.run_log import as_json, attributes_of, digest_of, environment
from camlib.methods import Method

NOT_OPTIONS = frozenset({"network", "layers", "on_nonfinite"})
"""Attributes of a method that are described elsewhere, or that a run sets."""


def settings_of(arguments: Mapping[str, Any], given: Mapping[str, Any] | None, *, resumes: bool) -> dict[str, Any]:
    """Return as JSON what must be the same to resume.

    Args:
        arguments: the run's arguments, by name.
        given: descriptions that replace those of arguments with their names, and others.
        resumes: whether a run that cannot be recognised is refused.

    Raises:
        CamlibTypeError: ``given`` is no mapping of JSON.
        CamlibValueError: an argument cannot be recognised.
    """
    if given is not None and not isinstance(given, Mapping):
        raise CamlibTypeError(f"settings must be a mapping from names to JSON, got {given!r}")
    own = dict(given or {})
    try:
        found: dict[str, Any] = json.loads(json.dumps(own))
    except (TypeError, ValueError) as error:
        raise CamlibTypeError(f"settings must hold only JSON: {error}") from error
    for name, value in arguments.items():
        if name not in found:
            found[name] = _recognised(name, value, resumes=resumes)
    return {**found, **environment()}


def _recognised(name: str, value: Any, *, resumes: bool) -> Any:
    try:
        return explained_by(value) if name == "explainer" else described(value)
    except CamlibError as error:
        if not resumes:
            return None
        why = str(error).partition(" when an evaluation resumes")[0].partition(" cannot be recognised")[0]
        raise CamlibValueError(
            f"{name} cannot be recognised when the run resumes ({why}); give a function defined with def at the top of "
            f'a module, or an object with attributes; or name it, settings={{"{name}": "a text of yours"}}; or give '
            "resume=False"
        ) from error


def explained_by(explainer: Any) -> Any:
    """Describe an explainer: its class, options and layers, and its model's tensors, attributes and code."""
    if isinstance(explainer, Method):
        model = explainer.model
        own = {key: one for key, one in vars(explainer).items() if key not in NOT_OPTIONS and key[0] != "_"}
        return {
            "method": as_json(type(explainer)),
            "title": explainer.title,
            "options": described(own),
            "layers": None if explainer.layers is None else list(explainer.layers),
            "forward": described(explainer.network.forward),
            "reshape": described(explainer.network.reshape),
            "model": digest_of(model),
            "code": hashlib.sha256(json.dumps(attributes_of(model)).encode()).hexdigest(),
        }
    inner = {key: explained_by(one) for key, one in vars(explainer).items() if hasattr(one, "on_nonfinite")}
    others = {key: one for key, one in vars(explainer).items() if key not in inner}
    return {"method": as_json(type(explainer)), "of": inner, "options": described(others)}


def described(value: Any) -> Any:
    """Return an object as JSON: the same in another process, and different for another object.

    Modules, containers and objects are described by their classes and attributes; functions as by
    :func:`camlib.evaluate`; bound methods by their object.

    Raises:
        CamlibValueError: it cannot be recognised, as a lambda, a partial or a nested function.

    Example:
        >>> from torchvision.transforms import CenterCrop
        >>> described(CenterCrop(8)) == described(CenterCrop(8)), described(CenterCrop(8)) == described(CenterCrop(9))
        (True, False)
    """
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, types.MethodType):
        return [value.__func__.__qualname__, as_json(value.__func__), described(value.__self__)]
    if isinstance(value, nn.Module):
        own = {key: one for key, one in vars(value).items() if key not in _OF_EVERY_MODULE}
        children = {key: described(one) for key, one in value.named_children()}
        return [_name(type(value)), described(own), children, digest_of(value) if value.state_dict() else ""]
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(one) for one in value]
    if _is_object(value):
        return [_name(type(value)), described(vars(value))]
    return as_json(value)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _is_object(value: Any) -> bool:
    plain = isinstance(value, (Tensor, type, types.FunctionType)) or type(value).__module__ in ("numpy", "functools")
    return hasattr(value, "__dict__") and not plain and (not callable(value) or not hasattr(value, "__qualname__"))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
