"""RefineCAM (Domeniconi et al., https://arxiv.org/abs/2605.14641): Grad-CAM++ of several layers, multiplied."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from camlib.discovery.finding import find_stages_in
from camlib.errors import CamlibValueError, boolean
from camlib.explanation import Explanation
from camlib.imaging.extent import resized_to_input
from camlib.inputs import Inputs
from camlib.methods import fusion
from camlib.methods.grad_cam_plus_plus import GradCAMPlusPlus
from camlib.passes.forward_pass import ForwardPass


class RefineCAM(GradCAMPlusPlus):
    r"""RefineCAM: the deep layers say what matters, the shallow layers say where exactly.

    The product over layers l of their Grad-CAM++ maps, each after a ReLU, resized to the finest grid and normalised to
    [0, 1]: :math:`\prod_l \operatorname{minmax}(\operatorname{ReLU}(M_l))`; the equation of a single map is
    :func:`camlib.functional.grad_cam_plus_plus`. Without ``layer`` it reads the last two stages that
    :func:`camlib.find_stages` finds.

    The product rule is that of Domeniconi et al., "How to Evaluate and Refine your CAM",
    https://arxiv.org/abs/2605.14641. The authors' code and grad-cam multiply maps after resizing them to the input, as
    ``upsample=True`` does, and the authors read four stages.

    One forward pass and one tail gradient from the first of the layers (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`; a list of at least two. The product for a single name is its
            Grad-CAM++ map.
        fuse: must be "product", which defines RefineCAM.
        upsample: whether to resize each layer's map to the input before the product; the maps (N, ...) then have the
            input's resolution.
        **options: as for :class:`camlib.methods.Method`, except ``relu``, which must stay True.

    Raises:
        CamlibTypeError: ``upsample`` is not a bool.
        CamlibValueError: ``fuse`` is not "product", ``relu=False``, or a list of one layer; or when called with
            ``upsample``, if the inputs hold no images, whose size is known.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.RefineCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64))
        Explanation(refine_cam at 'layer3 + layer4': maps (2, 4, 4) torch.float32 for inputs of 64 x 64, target [...])
    """

    name: ClassVar[str] = "refine_cam"
    finds_one_layer: ClassVar[bool] = False

    def __init__(
        self, model: Any, layer: Any = None, *, fuse: str = "product", upsample: bool = False, **options: Any
    ) -> None:
        if not isinstance(fuse, str) or fuse != "product":
            raise CamlibValueError(
                f"RefineCAM multiplies its layers' maps, got fuse={fuse!r}; for other fusions use "
                "camlib.GradCAMPlusPlus with the list of layers and fuse="
            )
        if isinstance(layer, (list, tuple)) and len(layer) == 1:
            raise CamlibValueError(
                f"RefineCAM multiplies the maps of several layers, got layer={layer!r}; give two or more, or None for "
                "the last two stages, or use camlib.GradCAMPlusPlus for one layer"
            )
        super().__init__(model, layer, fuse=fuse, **options)
        self.upsample = boolean("upsample", upsample)

    def find_layers(self, inputs: Inputs) -> list[str]:
        """Return the last two stages."""
        return find_stages_in(self.network, inputs)[-2:]

    def explanation(self, forward_pass: ForwardPass) -> Explanation:
        """Return the explanation, whose map is the product at the input's resolution if ``upsample`` is set."""
        found = super().explanation(forward_pass)
        if not self.upsample:
            return found
        size = found.input_size
        if size is None:
            raise CamlibValueError("upsample=True resizes maps to the images, and the inputs hold none; leave it out")
        resized = []
        for layer, maps in found.layers.items():
            covered = forward_pass.covered(layer)
            extent, origin = (covered.extent, covered.origin) if covered else (None, None)
            resized.append(resized_to_input(maps, size, extent, size, origin))
        fused = fusion.fuse(resized, self.fuse, dims=len(size))
        return dataclasses.replace(found, maps=fused, extent=None, origin=None)
