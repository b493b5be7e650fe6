"""Pictures from files, DICOM included, as upright uint8 arrays at full resolution."""

from __future__ import annotations

import io
import os
import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from camlib.errors import CamlibValueError
from camlib.files import opened, path_of
from camlib.imaging.dicom import read_dicom
from camlib.imaging.limits import check_bytes, check_pixels
from camlib.imaging.rescaling import scaled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DICOM_SUFFIXES = {".dcm", ".dicom", ".dic"}
"""Endings of files that are read as DICOM even without its preamble."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's decoders that are used: pixels only, none that runs a program, such as Ghostscript for PostScript."""


def read_image(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a picture in colour.

    Args:
        path: JPEG, PNG or another format that Pillow reads; or DICOM, which is detected by its content (``DICM`` at
            byte 128) or its ending and needs the extra ``dicom``.

            A DICOM picture looks as in a viewer: rescale slope and intercept (or modality LUT), then the first window
            (or VOI LUT), with MONOCHROME1 inverted. Without a window its values are stretched from the lowest to the
            highest, padding excluded. Pixels are kept as stored, even if they are not square. Neither the result nor
            any error contains data of the header.

            Other pictures of more than 8 bits are stretched from their darkest to their brightest value.

    Returns:
        (H, W, 3), RGB, uint8; turned upright according to its EXIF data, without alpha. If the whole picture was
        resized to the network's input, ``explanation.overlays([picture])`` draws its heatmap on these pixels; otherwise
        the geometry (:class:`camlib.imaging.Geometry`) that made the input restores the heatmap to them.

    Raises:
        CamlibTypeError: ``path`` is not a path.
        CamlibValueError: the file is missing, truncated, not a regular file or not a picture, or DICOM with several
            frames or no pixels; or it has more than 8192 x 8192 pixels, or takes more than 384 MiB.
        CamlibRuntimeError: the file is DICOM, and pydicom or a decoder for its compression is not installed.

    Example:
        >>> import tempfile, camlib, numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (5, 4), 200).save(f"{folder}/picture.png")
        ...     camlib.read_image(f"{folder}/picture.png").shape
        (4, 5, 3)
    """
    return _in_colour(_read(path, "RGB"))


def read_gray(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a picture in gray, otherwise as :func:`camlib.read_image`.

    Args:
        path: as for :func:`camlib.read_image`.

    Returns:
        (H, W), uint8; for a picture in colour, its luma.

    Raises:
        CamlibValueError, CamlibRuntimeError: as for :func:`camlib.read_image`.

    Example:
        >>> import tempfile, camlib
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (5, 4), "red").save(f"{folder}/picture.png")
        ...     camlib.imaging.read_gray(f"{folder}/picture.png").shape
        (4, 5)
    """
    import cv2

    picture = _read(path, "L")
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype("uint8") if picture.ndim == 3 else picture


def decode_image(content: bytes, name: str) -> NDArray[np.uint8]:
    """Read a picture in colour from the content of its file, otherwise as :func:`camlib.read_image`.

    Args:
        content: the bytes of the file.
        name: its name, by whose ending DICOM without a preamble is recognised; also for errors.

    Raises:
        CamlibValueError, CamlibRuntimeError: as for :func:`camlib.read_image`.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (5, 4), 200).save(file, "png")
        >>> decode_image(file.getvalue(), "picture.png").shape
        (4, 5, 3)
    """
    return _in_colour(_decoded(io.BytesIO(content), len(content), Path(name), "RGB"))


def _in_colour(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import numpy as np

    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture


def _read(path: str | PathLike[str], mode: str) -> NDArray[np.uint8]:
    name = path_of(path)
    with opened(path, "a picture") as file:
        return _decoded(file, os.fstat(file.fileno()).st_size, name, mode)


def _decoded(file: BinaryIO, size: int, name: Path, mode: str) -> NDArray[np.uint8]:
    check_bytes(size, name.name)
    start = file.read(132)
    file.seek(0)
    if start[128:] == b"DICM" or name.suffix.lower() in DICOM_SUFFIXES:
        return read_dicom(file, name.name)
    return _read_with_pillow(file, name, mode)


def _read_with_pillow(file: BinaryIO, path: Path, mode: str) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        Image.init()
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),  # our limit is lower
            Image.open(file, formats=[one for one in FORMATS if one in Image.OPEN]) as image,
        ):
            check_pixels(*image.size, name=path.name)
            upright = ImageOps.exif_transpose(image)
            if upright.mode[0] in "IF":
                return _stretched(np.asarray(upright).astype(np.float64))
            return np.asarray(upright.convert(mode))
    except CamlibValueError:
        raise
    except Exception as error:  # decoders raise nearly anything for a damaged file
        reason = f"{error}".split("\n")[0].replace(str(path), path.name) or type(error).__name__
        raise CamlibValueError(f"{path.name} cannot be read as a picture: {reason}; copy the file again") from error


def _stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    return scaled(values, values.min(), values.max())
