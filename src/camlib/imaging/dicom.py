"""DICOM pictures as a viewer shows them."""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.imaging.limits import check_bytes, check_pixels
from camlib.imaging.rescaling import scaled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PART = 2**20
"""Bytes that are inflated at a time."""
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers in a JPEG file (0xF7 in JPEG-LS) behind which its size is."""


def read_dicom(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """Return a DICOM picture as in a viewer, (H, W), or (H, W, 3) if it is in colour.

    Args:
        file: the open file.
        name: its name, for errors, which contain nothing else of it.

    Raises:
        CamlibValueError: it is damaged or too large, or has several frames or no pixels.
        CamlibRuntimeError: pydicom or a decoder is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise CamlibRuntimeError(
            f"{name} is DICOM, which needs the package pydicom: install the extra dicom"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings quote values of the header
            _check_inflated(file, name)
            dataset = pydicom.dcmread(file, force=True)
            _check(dataset, name)
            return _shown(dataset)
    except (CamlibValueError, CamlibRuntimeError):
        raise
    except Exception as error:  # its text may quote the header, too
        raise CamlibValueError(
            f"{name} cannot be read as DICOM ({type(error).__name__}): damaged, truncated or unusual; copy it, or "
            "export it again as DICOM or PNG"
        ) from None


def _check(dataset: Any, name: str) -> None:
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder

    if "PixelData" not in dataset:
        raise CamlibValueError(f"{name} has no pixel data or is not DICOM; give a DICOM file with pixel data")
    sides = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
    check_pixels(*sides, name=name)
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
    if syntax.is_encapsulated:
        _check_frame(get_frame(dataset.PixelData, 0, number_of_frames=1), name)


def _check_inflated(file: BinaryIO, name: str) -> None:
    """Check what a deflated file inflates to; the file is left at its start.

    Raises:
        CamlibValueError: it is larger than the limit.
    """
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(file, force=True)
    if _read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflate, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while data := inflate.unconsumed_tail or file.read(PART):
            count += len(inflate.decompress(data, PART))
            check_bytes(count, name)
    file.seek(0)


def _check_frame(frame: bytes, name: str) -> None:
    """Check the size that a compressed picture itself gives, which may be another than that in the header.

    Raises:
        CamlibValueError: it is larger than the limit.
    """
    codestream = frame.find(b"\xff\x4f\xff\x51")  # JPEG 2000, which may be in a JP2 file
    if codestream >= 0:
        right, bottom, left, top = struct.unpack(">4I", frame[codestream + 8 : codestream + 24])
        check_pixels(right - left, bottom - top, name)
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4])
        if marker in START_OF_FRAME:
            height, width = struct.unpack(">2H", frame[at + 5 : at + 9])
            check_pixels(width, height, name)
            return
        at += 2 + length


def _shown(dataset: Any) -> NDArray[np.uint8]:
    """The picture as in a viewer, (H, W), or (H, W, 3) if it is in colour."""
    import numpy as np
    from pydicom.pixels.processing import apply_modality_lut, convert_color_space

    stored = dataset.pixel_array
    kind = dataset.PhotometricInterpretation
    if stored.ndim == 3:
        colours = stored if kind == "RGB" else convert_color_space(stored, kind, "RGB")
        return np.asarray(colours if colours.dtype == np.uint8 else scaled(colours, 0, 2**dataset.BitsStored - 1))
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    shown = _windowed(values, stored, dataset)
    return 255 - shown if kind == "MONOCHROME1" else shown


def _windowed(values: NDArray[Any], stored: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    import numpy as np
    from pydicom.pixels.processing import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return scaled(apply_voi(values.astype(np.int64), dataset), 0, 2**bits - 1)
    if dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        far = 1e3 * (1 + np.abs(values).max() + np.max(np.abs([dataset.WindowCenter, dataset.WindowWidth])))
        shown = apply_windowing(np.append(values, [-far, far]), dataset)
        low, high = shown[-2:]  # the range of what it returns
        return scaled(np.reshape(shown[:-2], values.shape), low, high)
    padding = dataset.get("PixelPaddingValue")
    known = values[stored != padding] if padding is not None else values
    known = known if known.size else values
    return scaled(values, known.min(), known.max())
