"""How a model takes its inputs: as its one argument, by name, or by position; and why it could not take them."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.inputs import Inputs
from camlib.passes.hooks import pre_hooked

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_DTYPE_ERRORS = r"type|not implemented for"
_AXES_ERRORS = r"unpack|\b4-?[dD]|expected 4|out of range"


class Arguments:
    """The arguments that a model's ``forward`` takes, by which its inputs are passed on.

    A mapping is passed by name where its keys are names of parameters, and a tuple by position where ``forward``
    requires several arguments, or requires none and takes several; otherwise they are the one argument.

    Args:
        model: the model.

    Example:
        >>> import torch
        >>> Arguments(torch.nn.Bilinear(2, 3, 4)).of((torch.zeros(1, 2), torch.zeros(1, 3)))[0][1].shape
        torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):  # a builtin
            parameters = []
        self.names = [one.name for one in parameters if one.kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)]
        """The names of the parameters."""
        self._positional = [one.name for one in parameters if one.kind in _POSITIONAL]
        self._required = [one.name for one in parameters if one.kind in _POSITIONAL and one.default is one.empty]
        self._any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
        first = str(parameters[0].annotation) if parameters else ""
        self._takes_mapping = len(self._required) == 1 and bool(re.search(r"\b([Dd]ict|\w*Mapping)\b", first))

    def of(self, raw: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return positional and named arguments.

        Raises:
            CamlibTypeError: ``forward`` requires several arguments, and the mapping or tuple is not of these.
        """
        several = len(self._required) > 1
        if isinstance(raw, Mapping) and (several or self._by_name(raw)):
            missing = [name for name in self._required if name not in raw]
            unknown = [] if self._any_name else [name for name in raw if name not in self.names]
            if missing or unknown:
                raise CamlibTypeError(
                    f"{self} requires {', '.join(self._required) or 'nothing'}, and the mapping has {_listed(raw)}"
                )
            return (), {**raw}
        if isinstance(raw, tuple):
            if several and not len(self._required) <= len(raw) <= len(self._positional):
                raise CamlibTypeError(
                    f"{self} requires {', '.join(self._required)}, and the tuple has {len(raw)} items"
                )
            if several or (not self._required and 2 <= len(raw) <= len(self._positional)):
                return raw, {}
        return (raw,), {}

    def _by_name(self, raw: Mapping[Any, Any]) -> bool:
        if not raw or self._takes_mapping or not all(isinstance(key, str) for key in raw):
            return False
        if not self.names:  # a wrapper that hands everything on: the inputs of a processor are given by name
            return self._any_name and not isinstance(raw, dict)
        known = [key in self.names for key in raw]
        return all(known) or (self._any_name and any(known))

    def __str__(self) -> str:
        return f"{type(self._model).__name__}.forward({', '.join(self.names)})"

    def misfit(self, raw: Any, error: Exception) -> str | None:
        """Say why the inputs were not understood, if the error shows that they were not; otherwise return None."""
        kind = type(raw).__name__
        if isinstance(raw, (Mapping, tuple)) and self.of(raw)[0] == (raw,) and (not str(error) or kind in str(error)):
            if isinstance(raw, tuple):
                return f"{self} got the {kind} as its one argument; pass the item that it takes"
            unknown = [key for key in raw if key not in self.names]
            return (
                f"{self} got the {kind} as its one argument, because it has no parameters {_listed(unknown)}; leave "
                'these out, or pass the tensor that it takes, such as inputs["pixel_values"]'
            )
        if isinstance(raw, Tensor) and len(self._required) > 1:
            return f"{self} requires {', '.join(self._required)}; give a tuple or a mapping of them as the inputs"
        if isinstance(raw, Tensor) and "pixel_values" in self.names and self.names[0] != "pixel_values":
            return (
                f"{self} takes images as pixel_values, not as its first argument; give the inputs as a mapping, as a "
                'processor returns it: {"pixel_values": images, ...}'
            )
        return None


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "nothing"


def explained(model: nn.Module, arguments: Arguments | None, inputs: Inputs, error: Exception) -> CamlibError | None:
    """Explain why a model failed, if the inputs are to blame.

    Args:
        model: the model.
        arguments: how it was called; None if the user's own function called it.
        inputs: its inputs.
        error: what it raised.

    Returns:
        The error to raise instead; None if there is nothing to say.
    """
    if isinstance(error, (CamlibError, torch.OutOfMemoryError)):
        return None
    held = [*model.parameters(), *model.buffers()]
    if any(map(nn.parameter.is_lazy, held)):
        return lazy()
    homes = {tensor.device for tensor in held}
    away = next((tensor.device for tensor in inputs.tensors if tensor.device not in homes), None)
    if arguments is not None and homes and away is not None:
        home = ", ".join(sorted(map(str, homes)))
        return CamlibValueError(f"inputs are on {away} but the model is on {home}; move one: inputs.to({home!r})")
    if re.search("inference tensor", str(error), re.IGNORECASE):
        return _inference(model)
    wrong = _wrong_dtype(model, inputs, error)
    if wrong is not None or arguments is None:
        return wrong
    if re.search(_AXES_ERRORS, str(error)):
        image, convolution = _image(inputs), _first_convolution(model)
        if image is not None and convolution is not None and image.shape[0] == convolution.in_channels:
            return unbatched(image, convolution.in_channels)
    if isinstance(error, (RuntimeError, ValueError)) and isinstance(inputs.raw, Tensor) and inputs.raw.dim() < 3:
        return CamlibValueError(
            f"the inputs have shape {tuple(inputs.raw.shape)} and are {inputs.raw.dtype}, and the "
            f"{type(model).__name__} failed at them: {error}; give what it takes, usually a batch (N, C, H, W)"
        )
    if isinstance(error, RuntimeError) and "channels" in str(error) and (channels := _channels(model, inputs)):
        return channels
    if not isinstance(error, (AttributeError, TypeError, KeyError, IndexError)):
        return None
    if isinstance(inputs.raw, list) and "invalid combination of arguments" in str(error):
        return CamlibTypeError(f"{arguments} takes no list; give one tensor, such as torch.stack(images)")
    if inputs.tensors:
        what = arguments.misfit(inputs.raw, error)
        return None if what is None else CamlibTypeError(f"{what}, or forward=, a function that calls the model")
    kind = type(inputs.raw)
    if not isinstance(error, (AttributeError, TypeError)):
        return None
    return CamlibTypeError(
        f"{type(model).__name__} cannot take {kind.__module__}.{kind.__name__} as inputs; pass what the model takes, "
        "usually a tensor (N, C, H, W): the transforms of the model's weights make one from a PIL image"
    )


def lazy() -> CamlibError:
    """Return the error for a model with lazy parameters."""
    return CamlibRuntimeError("the model has lazy parameters without a shape; run it once before explaining it")


def _wrong_dtype(model: nn.Module, inputs: Inputs, error: Exception) -> CamlibError | None:
    """The error for images in another dtype than the parameters, if that is what the model failed at."""
    if not isinstance(error, (RuntimeError, TypeError)) or not re.search(_DTYPE_ERRORS, str(error)):
        return None
    own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    strange = [image for image in inputs.tensors if image.dim() > 2 and image.dtype not in own | {torch.bool}]
    if not own or not strange:
        return None
    wanted, given = sorted(map(str, own))[0], strange[0].dtype
    convert = "images.float()" if wanted == "torch.float32" else f"images.to({wanted})"
    how = f"give {convert}"
    if not given.is_floating_point:
        how = f"convert and normalise them as in training, such as {convert} / 255 followed by the mean and deviation"
    return CamlibTypeError(f"the images are {given}, and the {type(model).__name__} computes in {wanted}; {how}")


def _inference(model: nn.Module) -> CamlibError:
    """The error for tensors of inference mode: parameters and buffers, or attributes of modules, which it names."""
    if any(map(Tensor.is_inference, (*model.parameters(), *model.buffers()))):
        return CamlibRuntimeError(
            "the model's parameters were created in torch.inference_mode(), where autograd cannot use them; create or "
            "load the model outside inference_mode, or pass copy.deepcopy(model) made outside it"
        )
    held = [
        f"{name}.{attribute}".lstrip(".")
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute[0] != "_" or isinstance(value, Tensor)
        if not isinstance(value, nn.Module) and any(map(Tensor.is_inference, Inputs(value).tensors))
    ]
    where = f"the model keeps them in {', '.join(held)}, from an earlier run" if held else "its tensors come from one"
    return CamlibRuntimeError(
        f"the model uses tensors that were created in torch.inference_mode(), where autograd cannot use them; {where}. "
        "Build the model again, or reset these attributes, and run it in torch.no_grad() instead"
    )


def _channels(model: nn.Module, inputs: Inputs) -> CamlibError | None:
    """The error for images with other channels than the first convolution takes."""
    convolution, raw = _first_convolution(model), inputs.raw
    if convolution is None or not isinstance(raw, Tensor) or raw.dim() != 4 or raw.shape[1] == convolution.in_channels:
        return None
    wanted = convolution.in_channels
    how = "images.movedim(-1, 1)" if raw.shape[-1] == wanted else f"images of {wanted} channels"
    if raw.shape[1] == 1:
        how = f"images.expand(-1, {wanted}, -1, -1)"
    return CamlibValueError(
        f"the images have shape {tuple(raw.shape)}, and the {type(model).__name__} takes {wanted} channels, "
        f"(N, {wanted}, H, W); give {how}"
    )


def _image(inputs: Inputs) -> Tensor | None:
    """The tensor of images if it has the three axes of a single image."""
    raw = inputs.raw.get("pixel_values") if isinstance(inputs.raw, Mapping) else inputs.raw
    return raw if isinstance(raw, Tensor) and raw.dim() == 3 else None


def _first_convolution(model: nn.Module) -> nn.Conv2d | None:
    """The first convolution, if it is two-dimensional."""
    first = next((module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)), None)
    return first if isinstance(first, nn.Conv2d) else None


class UnbatchedError(CamlibValueError):
    """Images lack the axis of the batch or that of the channels."""

    channels: int
    """How many channels the model takes."""


def unbatched(images: Tensor, channels: int) -> UnbatchedError:
    """Return the error for pictures without the axis of the batch or of the channels.

    Args:
        images: with three axes.
        channels: how many channels the model takes.

    Example:
        >>> str(unbatched(torch.rand(8, 28, 28), 1)).partition("; ")[2]
        'these seem to be 8 pictures without the axis of the channels: give images[:, None]'
    """
    first, *_, last = images.shape
    if first == channels:
        how = "for a single image, give image[None]"
    elif last == channels:
        how = "for a single image with its channels last, give image.movedim(-1, 0)[None]"
    else:
        repeated = f".expand(-1, {channels}, -1, -1)" if channels > 1 else ""
        how = f"these seem to be {first} pictures without the axis of the channels: give images[:, None]{repeated}"
    error = UnbatchedError(
        f"the images have shape {tuple(images.shape)}, and the model takes a batch (N, C, H, W) with C = {channels}; "
        f"{how}"
    )
    error.channels = channels
    return error


@contextlib.contextmanager
def batches_only(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Refuse an image (C, H, W) that the first convolution would take silently, without the axis of the batch.

    Spectrograms (N, T, F) and the like, to which the model itself adds an axis, pass.

    Raises:
        CamlibValueError: inside the block, where the first convolution gets three axes.
    """
    image = _image(inputs)
    convolution = None if image is None else _first_convolution(model)
    if image is None or convolution is None:
        yield
        return
    given, channels = image, convolution.in_channels

    def check(module: nn.Module, args: Any, kwargs: Any) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim() == 3:
            raise unbatched(given, channels)

    with pre_hooked([(convolution, check)]):
        yield
