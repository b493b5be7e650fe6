"""The network and the photographs of these pages."""

from docs.gallery.efficientnet_lite0 import efficientnet_lite0, photographs

model = efficientnet_lite0()
pictures, images = photographs("chelsea", "coffee", "rocket")
CAT, ESPRESSO, MISSILE = 285, 967, 657  # classes of ImageNet
