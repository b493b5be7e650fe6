"""All methods side by side
========================

Every method that this network allows, on a cat and an espresso, with what each costs: forward passes and seconds. It
shows how methods differ. Two pictures rank nothing.
"""

# %%
# The network is EfficientNet-Lite0 with its ImageNet weights; :doc:`plot_photographs` builds it step by step. Here it
# comes from a file in the same folder: :download:`efficientnet_lite0.py <../gallery/efficientnet_lite0.py>`.

import time

import torchvision
from efficientnet_lite0 import efficientnet_lite0, photographs

import camlib

model = efficientnet_lite0()
pictures, images = photographs("chelsea", "coffee")

# %%
# The methods
# -----------
#
# All of ``camlib.METHODS`` except those that read attention: this network has none. Methods that run the network on
# perturbed images would take minutes with the settings of their papers; here they get smaller ones, and their maps are
# coarser. Expected gradients compare with other photographs, here only two. FullGrad is exact for networks of ReLUs;
# this one has ReLU6, which is constant above 6, so a small remainder has to be accepted.

_, others = photographs("rocket", "astronaut")
small = {
    "score_cam": {"channels": 64},
    "ss_cam": {"channels": 16, "samples": 4},
    "is_cam": {"channels": 16, "samples": 4},
    "rise": {"samples": 200},
    "occlusion": {"window": 48, "stride": 22},
    "full_grad": {"tolerance": 1e-3},
    "integrated_gradients": {"steps": 16},
    "expected_gradients": {"baselines": others, "samples": 16},
}
names = [name for name, method in camlib.METHODS.items() if method.reads != "attention"]
methods = [camlib.create(name, model, **small.get(name, {})) for name in names]

# %%
# One call explains with them all. Methods that read a layer share one forward pass and one gradient. The cat first;
# ``comparison.plot(pictures)`` would draw both photographs in one figure.

comparison = camlib.compare(model, images, methods)
classes = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]

camlib.comparison.Comparison({name: found[0] for name, found in comparison.items()}).plot(pictures[:1], classes)

# %%
# And the espresso:

camlib.comparison.Comparison({name: found[1] for name, found in comparison.items()}).plot(pictures[1:], classes)

# %%
# Most of these maps are nearly the same. Behind the last features this network has pooling and one linear layer, and
# there Grad-CAM, XGrad-CAM, HiResCAM, CAM and ShapleyCAM are the same by their equations. With so few masks, RISE and
# Occlusion are patchy, above all on the cat. On the espresso even RandomCAM, whose weights are random, looks plausible:
# a plausible heatmap proves little.
#
# What each costs
# ---------------
#
# Each method alone, on the cat; a hook counts how often an image runs through the network. The last column is the rank
# correlation of the heatmap with Grad-CAM's. Times are those of the machine that built this page, which may have been
# busy.

passes = []
hook = model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
reference = comparison["grad_cam"].heatmaps()[:1]
print("method                     passes  seconds  like Grad-CAM")
for method in methods:
    passes.clear()
    start = time.perf_counter()
    heatmap = method(images[:1]).heatmaps()
    seconds = time.perf_counter() - start
    alike = camlib.metrics.spearman(heatmap, reference).item()
    print(f"{method.name:26} {sum(passes):6} {seconds:8.2f} {alike:14.2f}")
hook.remove()

# %%
# Neither a high correlation with Grad-CAM nor a short time means quality. Two pictures show how methods differ;
# :doc:`plot_metrics` shows how to find out which methods to trust.
