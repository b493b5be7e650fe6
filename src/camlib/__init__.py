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
        public = vars(import_module("camlib._public"))
        if name in public:
            return public[name]
        raise AttributeError(f"module 'camlib' has no attribute {name!r}{_hint(name, __dir__())}")

    def _hint(name: str, known: list[str]) -> str:
        """Suggest the public name that is spelt most like another library's, or like a slip."""
        difflib = import_module("difflib")
        plain = {one.lower().replace("_", ""): one for one in known}
        wanted = name.lower().replace("_", "").removesuffix("pp") + "plusplus" * name.lower().endswith("pp")
        close = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.7)
        return f"; did you mean {plain[close[0]]!r}?" if close and name[:1] != "_" else ""

    def __dir__() -> list[str]:
        return [name for name in vars(import_module("camlib._public")) if not name.startswith("_")]
