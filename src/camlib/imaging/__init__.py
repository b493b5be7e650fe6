"""Functions of arrays: normalise, resize, colour, overlay and outline heatmaps, and map them back to the picture."""

from camlib.imaging.colors import DEFAULT_COLORMAP, DEFAULT_SIGNED_COLORMAP, colorize, colorize_signed
from camlib.imaging.geometry import CenterCrop, Geometry, Letterbox, Resize, Window, resize_center_crop
from camlib.imaging.normalization import is_constant, normalize
from camlib.imaging.overlays import overlay, overlay_signed
from camlib.imaging.reading import read_gray, read_image
from camlib.imaging.regions import HotRegion, boxes, contours, draw_boxes, draw_contours
from camlib.imaging.resizing import resize
from camlib.imaging.rgb import as_pictures, as_rgb

__all__ = [
    "DEFAULT_COLORMAP",
    "DEFAULT_SIGNED_COLORMAP",
    "CenterCrop",
    "Geometry",
    "HotRegion",
    "Letterbox",
    "Resize",
    "Window",
    "as_pictures",
    "as_rgb",
    "boxes",
    "colorize",
    "colorize_signed",
    "contours",
    "draw_boxes",
    "draw_contours",
    "is_constant",
    "normalize",
    "overlay",
    "overlay_signed",
    "read_gray",
    "read_image",
    "resize",
    "resize_center_crop",
]
