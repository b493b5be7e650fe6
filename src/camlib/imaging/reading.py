"""Pictures from files, DICOM included, as upright uint8 arrays at full resolution."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibRuntimeError, CamlibValueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DICOM_SUFFIXES = {".dcm", ".dicom", ".dic"}
"""Endings of files that are read as DICOM even without its preamble."""


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
        CamlibValueError: the file is missing, truncated or not a picture, or DICOM with several frames or no pixels.
        CamlibRuntimeError: the file is DICOM, and pydicom or a decoder for its compression is not installed.

    Example:
        >>> import tempfile, camlib, numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (5, 4), 200).save(f"{folder}/picture.png")
        ...     camlib.read_image(f"{folder}/picture.png").shape
        (4, 5, 3)
    """
    import numpy as np

    picture = _read(Path(path), "RGB")
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture


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

    picture = _read(Path(path), "L")
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype("uint8") if picture.ndim == 3 else picture


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise CamlibValueError(f"{path} cannot be opened: {error.strerror}; give the path of a picture") from error
    if start[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES:
        return _read_dicom(path)
    return _read_with_pillow(path, mode)


def _read_with_pillow(path: Path, mode: str) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode[0] in "IF":
                return _stretched(np.asarray(upright).astype(np.float64))
            return np.asarray(upright.convert(mode))
    except Exception as error:  # decoders raise nearly anything for a damaged file
        reason = f"{error}".split("\n")[0].replace(str(path), path.name) or type(error).__name__
        raise CamlibValueError(f"{path.name} cannot be read as a picture: {reason}; copy the file again") from error


def _read_dicom(path: Path) -> NDArray[np.uint8]:
    try:
        import pydicom
    except ImportError as error:
        raise CamlibRuntimeError(
            f"{path.name} is DICOM, which needs the package pydicom: install the extra dicom"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings quote values of the header
            dataset = pydicom.dcmread(path, force=True)
            _check(dataset, path.name)
            return _shown(dataset)
    except (CamlibValueError, CamlibRuntimeError):
        raise
    except Exception as error:  # its text may quote the header, too
        raise CamlibValueError(
            f"{path.name} cannot be read as DICOM ({type(error).__name__}): damaged, truncated or unusual; copy it, or "
            "export it again as DICOM or PNG"
        ) from None


def _check(dataset: Any, name: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if "PixelData" not in dataset:
        raise CamlibValueError(f"{name} has no pixel data or is not DICOM; give a DICOM file with pixel data")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise CamlibValueError(
            f"{name} has {frames} frames, expected one picture; save the frame to explain as a separate file"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise CamlibRuntimeError(
            f"{name} is compressed as {syntax.name}, for which pydicom has no decoder here; "
            "pip install 'pylibjpeg[all]', or export it uncompressed"
        )


def _shown(dataset: Any) -> NDArray[np.uint8]:
    """The picture as in a viewer, (H, W), or (H, W, 3) if it is in colour."""
    import numpy as np
    from pydicom.pixels.processing import apply_modality_lut, convert_color_space

    stored = dataset.pixel_array
    kind = dataset.PhotometricInterpretation
    if stored.ndim == 3:
        colours = stored if kind == "RGB" else convert_color_space(stored, kind, "RGB")
        return np.asarray(colours if colours.dtype == np.uint8 else _scaled(colours, 0, 2**dataset.BitsStored - 1))
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    shown = _windowed(values, stored, dataset)
    return 255 - shown if kind == "MONOCHROME1" else shown


def _windowed(values: NDArray[Any], stored: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    import numpy as np
    from pydicom.pixels.processing import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _scaled(apply_voi(values.astype(np.int64), dataset), 0, 2**bits - 1)
    if dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        far = 1e3 * (1 + np.abs(values).max() + np.max(np.abs([dataset.WindowCenter, dataset.WindowWidth])))
        *shown, low, high = apply_windowing(np.append(values, [-far, far]), dataset)  # the range of what it returns
        return _scaled(np.reshape(shown, values.shape), low, high)
    padding = dataset.get("PixelPaddingValue")
    known = values[stored != padding] if padding is not None else values
    known = known if known.size else values
    return _scaled(values, known.min(), known.max())


def _stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    return _scaled(values, values.min(), values.max())


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values from the range low to high, scaled to 0 to 255."""
    import numpy as np

    shares = (values.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
    scaled: NDArray[np.uint8] = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return scaled
