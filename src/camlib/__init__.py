"""camlib: where a neural network looked. Grad-CAM and its family for PyTorch.

cam = camlib.GradCAM(model)
explanation = cam(images)
explanation.plot(pictures)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from camlib._public import *  # noqa: F403
else:
    from importlib import import_module, util

    # ``import camlib`` alone loads nothing; the first public name that is used loads the others, too.

    def __getattr__(name: str) -> object:
        if util.find_spec(f"camlib.{name}"):
            return import_module(f"camlib.{name}")
        if name == "__all__":
            return __dir__()
        try:
            return vars(import_module("camlib._public"))[name]
        except KeyError:
            raise AttributeError(f"module 'camlib' has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return [name for name in vars(import_module("camlib._public")) if not name.startswith("_")]
