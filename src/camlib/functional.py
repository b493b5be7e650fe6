"""The equations of the methods, as pure functions of tensors: no model, no hooks, no state.

Each takes what a method's passes have read (activations, gradients, scores of perturbed copies) and returns its map.
The classes of ``camlib`` run the passes and call these functions. Two functions take a model, and return what
:func:`full_grad` and :func:`guided_backprop` start from: :func:`full_gradients` and :func:`guided_gradients`.
"""

from camlib.methods.ablation_cam import ablation_cam as ablation_cam
from camlib.methods.attention_rollout import attention_rollout as attention_rollout
from camlib.methods.baselines import center_gaussian as center_gaussian
from camlib.methods.baselines import random_cam as random_cam
from camlib.methods.baselines import sobel as sobel
from camlib.methods.cam import cam as cam
from camlib.methods.eigen_cam import eigen_cam as eigen_cam
from camlib.methods.eigen_cam import eigen_grad_cam as eigen_grad_cam
from camlib.methods.eigen_cam import seg_eigen_cam as seg_eigen_cam
from camlib.methods.expected_gradients import expected_gradients as expected_gradients
from camlib.methods.fem import fem as fem
from camlib.methods.full_grad import FullGradients as FullGradients
from camlib.methods.full_grad import full_grad as full_grad
from camlib.methods.full_grad import full_gradients as full_gradients
from camlib.methods.generic_attention import generic_attention as generic_attention
from camlib.methods.grad_cam import grad_cam as grad_cam
from camlib.methods.grad_cam_plus_plus import grad_cam_plus_plus as grad_cam_plus_plus
from camlib.methods.grad_eclip import grad_eclip as grad_eclip
from camlib.methods.guided import guided_backprop as guided_backprop
from camlib.methods.guided import guided_grad_cam as guided_grad_cam
from camlib.methods.guided import guided_gradients as guided_gradients
from camlib.methods.hires_cam import grad_cam_element_wise as grad_cam_element_wise
from camlib.methods.hires_cam import hires_cam as hires_cam
from camlib.methods.input_x_gradient import input_x_gradient as input_x_gradient
from camlib.methods.integrated_gradients import integrated_gradients as integrated_gradients
from camlib.methods.kpca_cam import kpca_cam as kpca_cam
from camlib.methods.layer_cam import layer_cam as layer_cam
from camlib.methods.le_grad import le_grad as le_grad
from camlib.methods.libra_grad import libra_grad as libra_grad
from camlib.methods.occlusion import occlusion as occlusion
from camlib.methods.recipro_cam import recipro_cam as recipro_cam
from camlib.methods.rise import rise as rise
from camlib.methods.score_cam import score_cam as score_cam
from camlib.methods.shapley_cam import shapley_cam as shapley_cam
from camlib.methods.smooth_grad_cam_plus_plus import smooth_grad_cam_plus_plus as smooth_grad_cam_plus_plus
from camlib.methods.x_grad_cam import x_grad_cam as x_grad_cam
