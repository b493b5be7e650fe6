"""RefineCAM (Domeniconi et al., https://arxiv.org/abs/2605.14641): Grad-CAM++ of several layers, multiplied."""

from __future__ import annotations

from typing import Any, ClassVar

from camlib.discovery.finding import find_stages_in
from camlib.errors import CamlibValueError
from camlib.inputs import Inputs
from camlib.methods.grad_cam_plus_plus import GradCAMPlusPlus


class RefineCAM(GradCAMPlusPlus):
    r"""RefineCAM: the deep layers say what matters, the shallow layers say where exactly.

    The product over layers l of their Grad-CAM++ maps, each after a ReLU, resized to the finest grid and normalised to
    [0, 1]: :math:`\prod_l \operatorname{minmax}(\operatorname{ReLU}(M_l))`; the equation of a single map is
    :func:`camlib.functional.grad_cam_plus_plus`. Without ``layer`` it reads the last two stages that
    :func:`camlib.find_stages` finds.

    The product rule is that of Domeniconi et al., "How to Evaluate and Refine your CAM",
    https://arxiv.org/abs/2605.14641. The authors' code and grad-cam multiply maps after resizing them to the input, and
    the authors read four stages.

    One forward pass and one tail gradient from the first of the layers (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`; usually a list.
        fuse: must be "product", which defines RefineCAM.
        **options: as for :class:`camlib.methods.Method`, except ``relu``, which must stay True.

    Raises:
        CamlibValueError: ``fuse`` is not "product", or ``relu=False``.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.RefineCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64))
        Explanation(refine_cam at 'layer3 + layer4': maps (2, 4, 4) torch.float32 for inputs of 64 x 64, target [...])
    """

    name: ClassVar[str] = "refine_cam"
    finds_one_layer: ClassVar[bool] = False

    def __init__(self, model: Any, layer: Any = None, *, fuse: str = "product", **options: Any) -> None:
        if not isinstance(fuse, str) or fuse != "product":
            raise CamlibValueError(
                f"RefineCAM multiplies its layers' maps, got fuse={fuse!r}; for other fusions use "
                "camlib.GradCAMPlusPlus with the list of layers and fuse="
            )
        super().__init__(model, layer, fuse=fuse, **options)

    def find_layers(self, inputs: Inputs) -> list[str]:
        """Return the last two stages."""
        return find_stages_in(self.network, inputs)[-2:]
