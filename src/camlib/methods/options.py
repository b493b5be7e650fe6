"""Options that do not exist are refused with the name of the one that was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from camlib.errors import CamlibTypeError

Function = TypeVar("Function", bound=Callable[..., Any])

_ELSEWHERE = {
    "target_layers": "layer=, which takes a name, a module, or a list of these",
    "target_layer": "layer=, which takes a name, a module, or a list of these",
    "layers": "layer=, which takes a name, a module, or a list of these",
    "reshape_transform": "reshape=",
    "forward_func": "forward=",
    "target": "the second argument of the call: cam(images, target)",
    "targets": "the second argument of the call: cam(images, target)",
    "target_category": "the second argument of the call: cam(images, target)",
    "use_cuda": "model.cuda(): camlib computes where the model is",
    "input_shape": "nothing: camlib finds the layer from the images of the first call",
}
"""What other libraries call an option, and what camlib has in its place."""


_IN_A_CALL = {
    **dict.fromkeys(("input", "images", "image", "input_tensor", "input_image", "x"), "the first argument, the inputs"),
    **dict.fromkeys(
        ("targets", "class_idx", "class_index", "target_category", "category", "label", "labels", "classes"), "target="
    ),
    "aug_smooth": "camlib.TestTimeAugmentation(cam)",
    "layer": "the layer of the method, camlib.GradCAM(model, layer)",
}
"""What the calls of other libraries' methods have, and what camlib has in its place."""


def refuses_unknown_options(init: Function) -> Function:
    """Decorate an ``__init__`` to say which option was meant when it gets an unknown one."""
    return _refusing(init, _unknown_option)


def refuses_unknown_arguments(call: Function) -> Function:
    """Decorate a method's ``__call__`` to say which argument was meant when it gets an unknown one."""
    return _refusing(call, _unknown_argument)


def _refusing(function: Function, error: Callable[[type[Any], str, list[str]], CamlibTypeError]) -> Function:
    """Decorate a method to raise an error, made of the class, the unknown name and the known names."""
    own = list(inspect.signature(function).parameters)[1:]

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **named: Any) -> Any:
        for name in named:
            if name not in own:
                raise error(type(self), name, own)
        return function(self, *args, **named)

    return cast(Function, checked)


def _unknown_argument(cls: type[Any], name: str, own: list[str]) -> CamlibTypeError:
    """The error for an argument that a call does not have."""
    meant = _IN_A_CALL.get(name)
    hint = f"use {meant}" if meant else f"it takes {', '.join(own)}"
    return CamlibTypeError(f"a call of {cls.__name__} has no argument {name!r}; {hint}")


def _unknown_option(cls: type[Any], name: str, own: list[str]) -> CamlibTypeError:
    """The error for an option that neither the base class nor the method has."""
    of_method = [
        one.name for one in inspect.signature(cls).parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    options = [one for one in dict.fromkeys([*of_method, *own]) if one != "model"]
    close = difflib.get_close_matches(name, options, n=1)
    instead = _ELSEWHERE.get(name) or (f"{close[0]}=" if close else None)
    if getattr(cls, "layerless", False) and (instead or "").startswith("layer="):
        instead, options = None, [one for one in options if one != "layer"]
    hint = f"use {instead}" if instead else f"it has {', '.join(options)}"
    return CamlibTypeError(f"{cls.__name__} has no option {name!r}; {hint}")
