"""Networks of torchvision, timm and Hugging Face, and those that the user's own functions return."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.loading.loaded import Loaded, Transforms
from camlib.loading.weights import filled


def of_torchvision(name: str, weights: str) -> Loaded:
    """Return a network of torchvision, with the transforms and categories of its default weights."""
    import torchvision

    _check_name(name, torchvision.models.list_models(), "torchvision", "torchvision.models.list_models()")
    default = torchvision.models.get_model_weights(name).DEFAULT

    def build(**options: Any) -> nn.Module:
        backbone = {"weights_backbone": None} if name in _with_backbone() else {}
        model: nn.Module = torchvision.models.get_model(name, weights=None, **backbone, **options)
        return model

    if weights == "default":
        with _downloading(f"torchvision:{name}"):
            model = torchvision.models.get_model(name, weights=default)
    else:
        model = build() if weights == "none" else filled(build, weights, "num_classes")
    return Loaded(model, default.transforms(), default.meta.get("categories"), f"torchvision:{name}")


def _with_backbone() -> set[str]:
    """Networks whose builders would download a backbone."""
    import torchvision

    modules = (torchvision.models.detection, torchvision.models.segmentation)
    return {name for module in modules for name in torchvision.models.list_models(module)}


def of_timm(name: str, weights: str) -> Loaded:
    """Return a network of timm, with its data config and, for ImageNet, the names of its classes."""
    timm = _library("timm", "timm")
    _check_name(name.partition(".")[0], timm.list_models(), "timm", "timm.list_models()")

    def build(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    if weights == "default":
        with _downloading(f"timm:{name}"):
            model = timm.create_model(name, pretrained=True)
    else:
        model = build() if weights == "none" else filled(build, weights, "num_classes")
    return Loaded(model, transforms_of_timm(model), classes_of_timm(model), f"timm:{name}")


def transforms_of_timm(model: nn.Module) -> Transforms:
    """Return the transforms of evaluation in timm's data config of a network."""
    data = importlib.import_module("timm.data")
    made: Transforms = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    return made


def classes_of_timm(model: nn.Module) -> list[str] | None:
    """Return the names of ImageNet's classes if timm says that the network was trained on them, else None."""
    data = importlib.import_module("timm.data")
    subset = data.infer_imagenet_subset(model)
    if not subset:
        return None
    info = data.ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(info.num_classes())]


def of_hugging_face(path: str, weights: str) -> Loaded:
    """Return an image classifier of Hugging Face, with its processor and its labels."""
    transformers = _library("transformers", "transformers")
    if not os.path.isdir(path) and (os.path.isabs(path) or path.startswith(".") or path.count("/") > 1):
        raise CamlibValueError(f"there is no folder {path}; give one that save_pretrained wrote, or OWNER/NAME")
    classifier = transformers.AutoModelForImageClassification

    def build(**options: Any) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(path, **options)
        model: nn.Module = classifier.from_config(config)
        return model

    with _downloading(f"hf:{path}"):
        if weights == "default":
            model = classifier.from_pretrained(path)
        else:
            model = build() if weights == "none" else filled(build, weights, "num_labels")
    return Loaded(model, transforms_of_hugging_face(path), classes_of_hugging_face(model), f"hf:{path}")


def transforms_of_hugging_face(path: str, *, offline: bool = False) -> Transforms | None:
    """Return the image processor of a folder or of a repository as transforms; None if there is none."""
    transformers = importlib.import_module("transformers")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=offline)
    except Exception:  # the library raises OSError, ValueError and others
        return None
    return Processed(processor)


class Processed:
    """An image processor of Hugging Face as transforms, from a PIL image to a tensor (C, H, W).

    Args:
        processor: the processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, picture: Any) -> Any:
        """Return the input that the processor makes of a picture."""
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0]


def classes_of_hugging_face(model: nn.Module) -> list[str] | None:
    """Return the labels in the config of a network."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    return None if not labels else [str(labels[index]) for index in sorted(labels)]


def of_factory(name: str, weights: str) -> Loaded:
    """Return what ``package.module:factory`` returns: a module, or a tuple of module, transforms and class names."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as for python -m
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the module raises
        raise CamlibValueError(
            f"{name} cannot be imported: {error}; give package.module:function, importable from this folder"
        ) from error
    factory = getattr(imported, attribute, None)
    if not callable(factory):
        raise CamlibValueError(f"module {module} has no {attribute!r} that can be called; give package.module:function")
    extras: Sequence[Any] = ()

    def build(**options: Any) -> nn.Module:
        nonlocal extras
        try:
            made = factory(**options)
        except CamlibError:
            raise
        except Exception as error:
            raise CamlibRuntimeError(
                f"{name} raised {error!r}; call it in Python without arguments, which must return a module"
            ) from error
        model, *extras = made if isinstance(made, tuple) else (made,)
        if not isinstance(model, nn.Module) or len(extras) > 2:
            raise CamlibTypeError(
                f"{name} returned a {type(made).__name__}; it must return a torch.nn.Module, or a tuple of module, "
                "transforms and class names"
            )
        return model

    model = build() if weights in ("default", "none") else filled(build, weights, None)
    transforms, classes = (*extras, None, None)[:2]
    return Loaded(model, transforms, classes, name)


def _check_name(name: str, known: Iterable[str], library: str, listing: str) -> None:
    known = list(known)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(f'{library}:{one}' for one in close)}?" if close else f"{listing} lists them"
    raise CamlibValueError(f"{library} has no network {name!r}; {hint}")


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CamlibRuntimeError(f"this network needs the package {package}: pip install {package}") from error


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Say what to do where weights cannot be fetched."""
    try:
        yield
    except CamlibError:
        raise
    except Exception as error:  # of urllib, requests, httpx or the hub
        why = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise CamlibRuntimeError(
            f"{name} could not be loaded with its weights: {why}. Without a network connection, give a file of weights "
            'with weights=FILE (a state dict or safetensors), or weights="none" for random weights; on the command '
            "line, --weights FILE or --weights none"
        ) from error


LIBRARIES: dict[str, Callable[[str, str], Loaded]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "hf": of_hugging_face,
}
"""By the prefix of a name."""
