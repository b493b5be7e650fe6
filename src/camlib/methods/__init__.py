"""The methods: each is a pure function of tensors and a thin class that holds the model.

This module has the base classes for custom methods. The methods themselves are in ``camlib``, their functions in
:mod:`camlib.functional`.
"""

from camlib.methods.base import ActivationMethod as ActivationMethod
from camlib.methods.base import GradientMethod as GradientMethod
from camlib.methods.base import LayerMethod as LayerMethod
from camlib.methods.base import Method as Method
