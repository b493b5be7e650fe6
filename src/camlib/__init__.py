"""camlib: where a neural network looked. Grad-CAM and its family for PyTorch.

cam = camlib.GradCAM(model)
explanation = cam(images)
explanation.plot(pictures)
"""

import lazy_loader

__version__ = "0.1.0"

# Each name is loaded when it is first used: what a program does not use, it does not wait for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
