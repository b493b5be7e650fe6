"""Every method, one line each, in the order of the tables. This file imports classes and does nothing else."""

# ruff: noqa: I001
from camlib.methods.grad_cam import GradCAM as GradCAM
from camlib.methods.grad_cam_plus_plus import GradCAMPlusPlus as GradCAMPlusPlus
from camlib.methods.smooth_grad_cam_plus_plus import SmoothGradCAMPlusPlus as SmoothGradCAMPlusPlus
from camlib.methods.x_grad_cam import XGradCAM as XGradCAM
from camlib.methods.hires_cam import HiResCAM as HiResCAM
from camlib.methods.hires_cam import GradCAMElementWise as GradCAMElementWise
from camlib.methods.layer_cam import LayerCAM as LayerCAM
from camlib.methods.eigen_cam import EigenGradCAM as EigenGradCAM
from camlib.methods.shapley_cam import ShapleyCAM as ShapleyCAM
from camlib.methods.finer_cam import FinerCAM as FinerCAM
from camlib.methods.refine_cam import RefineCAM as RefineCAM
from camlib.methods.full_grad import FullGrad as FullGrad
from camlib.methods.guided import GuidedBackprop as GuidedBackprop
from camlib.methods.guided import GuidedGradCAM as GuidedGradCAM
from camlib.methods.le_grad import LeGrad as LeGrad
from camlib.methods.libra_grad import LibraGrad as LibraGrad
from camlib.methods.cam import CAM as CAM
from camlib.methods.eigen_cam import EigenCAM as EigenCAM
from camlib.methods.kpca_cam import KPCACAM as KPCACAM
from camlib.methods.fem import FEM as FEM
from camlib.methods.eigen_cam import SegEigenCAM as SegEigenCAM
from camlib.methods.score_cam import ScoreCAM as ScoreCAM
from camlib.methods.score_cam import SSCAM as SSCAM
from camlib.methods.score_cam import ISCAM as ISCAM
from camlib.methods.ablation_cam import AblationCAM as AblationCAM
from camlib.methods.rise import RISE as RISE
from camlib.methods.occlusion import Occlusion as Occlusion
from camlib.methods.baselines import RandomCAM as RandomCAM
from camlib.methods.baselines import CenterGaussian as CenterGaussian
from camlib.methods.baselines import Sobel as Sobel
