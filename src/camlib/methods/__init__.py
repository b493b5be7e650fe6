"""The methods, each a pure function of tensors and a thin class that binds it to a model."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from camlib.errors import CamlibValueError
from camlib.methods.ablation_cam import AblationCAM, ablation_cam
from camlib.methods.base import ActivationMethod, GradientMethod, LayerMethod, Method, PassMethod, PictureMethod
from camlib.methods.baselines import CenterGaussian, RandomCAM, Sobel, center_gaussian, random_cam, sobel
from camlib.methods.cam import CAM, cam
from camlib.methods.eigen_cam import EigenCAM, EigenGradCAM, SegEigenCAM, eigen_cam, eigen_grad_cam, seg_eigen_cam
from camlib.methods.fem import FEM, fem
from camlib.methods.finer_cam import FinerCAM
from camlib.methods.full_grad import FullGrad, FullGradients, full_grad, full_gradients
from camlib.methods.grad_cam import GradCAM, grad_cam
from camlib.methods.grad_cam_plus_plus import GradCAMPlusPlus, grad_cam_plus_plus
from camlib.methods.guided import GuidedBackprop, GuidedGradCAM, guided_backprop, guided_grad_cam, guided_gradients
from camlib.methods.hires_cam import GradCAMElementWise, HiResCAM, grad_cam_element_wise, hires_cam
from camlib.methods.kpca_cam import KPCACAM, kpca_cam
from camlib.methods.layer_cam import LayerCAM, layer_cam
from camlib.methods.le_grad import LeGrad, le_grad
from camlib.methods.occlusion import Occlusion, occlusion
from camlib.methods.perturbation import PerturbationMethod
from camlib.methods.refine_cam import RefineCAM
from camlib.methods.rise import RISE, rise
from camlib.methods.score_cam import ISCAM, SSCAM, ScoreCAM, score_cam
from camlib.methods.shapley_cam import ShapleyCAM, shapley_cam
from camlib.methods.smooth_grad_cam_plus_plus import SmoothGradCAMPlusPlus, smooth_grad_cam_plus_plus
from camlib.methods.x_grad_cam import XGradCAM, x_grad_cam

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (
        GradCAM,
        GradCAMPlusPlus,
        SmoothGradCAMPlusPlus,
        XGradCAM,
        HiResCAM,
        GradCAMElementWise,
        LayerCAM,
        EigenGradCAM,
        ShapleyCAM,
        FinerCAM,
        RefineCAM,
        FullGrad,
        GuidedBackprop,
        GuidedGradCAM,
        LeGrad,
        CAM,
        EigenCAM,
        KPCACAM,
        FEM,
        SegEigenCAM,
        ScoreCAM,
        SSCAM,
        ISCAM,
        AblationCAM,
        RISE,
        Occlusion,
        RandomCAM,
        CenterGaussian,
        Sobel,
    )
}
"""Every method by name."""


def create(name: str, model: nn.Module, layer: Any = None, **options: Any) -> Method:
    """Build a method by its name.

    Args:
        name: a key of :data:`camlib.METHODS`.
        model: as for the method's class.
        layer: as for the method's class.
        **options: the method's own options.

    Raises:
        CamlibValueError: no method has that name; close ones are suggested.

    Example:
        >>> import camlib, torchvision
        >>> camlib.create("grad_cam", torchvision.models.resnet18(), layer="layer4")
        GradCAM(ResNet, layer='layer4')
    """
    if name not in METHODS:
        close = difflib.get_close_matches(str(name), METHODS, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CamlibValueError(f"there is no method {name!r}; {hint}METHODS has {', '.join(sorted(METHODS))}")
    return METHODS[name](model, layer, **options)


__all__ = [
    "CAM",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "METHODS",
    "RISE",
    "SSCAM",
    "AblationCAM",
    "ActivationMethod",
    "CenterGaussian",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "FullGradients",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GradientMethod",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LayerMethod",
    "LeGrad",
    "Method",
    "Occlusion",
    "PassMethod",
    "PerturbationMethod",
    "PictureMethod",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "Sobel",
    "XGradCAM",
    "ablation_cam",
    "cam",
    "center_gaussian",
    "create",
    "eigen_cam",
    "eigen_grad_cam",
    "fem",
    "full_grad",
    "full_gradients",
    "grad_cam",
    "grad_cam_element_wise",
    "grad_cam_plus_plus",
    "guided_backprop",
    "guided_grad_cam",
    "guided_gradients",
    "hires_cam",
    "kpca_cam",
    "layer_cam",
    "le_grad",
    "occlusion",
    "random_cam",
    "rise",
    "score_cam",
    "seg_eigen_cam",
    "shapley_cam",
    "smooth_grad_cam_plus_plus",
    "sobel",
    "x_grad_cam",
]
