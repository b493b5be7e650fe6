"""Networks by name, with the transforms and the class names that belong to them."""

from camlib.loading.classes import class_index as class_index
from camlib.loading.described import described as described
from camlib.loading.loaded import Loaded as Loaded
from camlib.loading.names import load as load
