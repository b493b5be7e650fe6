"""Pictures from files look as in a viewer; no data of a DICOM header is revealed."""

from __future__ import annotations

import sys
import traceback

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage, generate_uid

import camlib

SECRET = "Sentinel^Patient"
RAMP = np.arange(0, 4096, 16, dtype=np.int64).reshape(8, 32)


def dataset(stored=RAMP, *, bits=12, signed=False, **tags):
    """A DICOM picture with the stored values (H, W) or (H, W, 3)."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid(entropy_srcs=["camlib"])
    made.PatientName = made.PatientID = SECRET
    made.Rows, made.Columns = stored.shape[:2]
    made.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    made.BitsStored, made.BitsAllocated = bits, 16 if bits > 8 else 8
    made.HighBit, made.PixelRepresentation = bits - 1, int(signed)
    if stored.ndim == 3:
        made.PlanarConfiguration = 0
    kind = f"{'i' if signed else 'u'}{made.BitsAllocated // 8}"
    made.PixelData = stored.astype(f"<{kind}").tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def shown(tmp_path, made, name="picture.dcm"):
    made.save_as(tmp_path / name, enforce_file_format=True)
    return camlib.imaging.read_gray(tmp_path / name)


def window(x, center, width):
    """DICOM PS3.3 C.11.2.1.2.1, to 0 .. 255."""
    if x <= center - 0.5 - (width - 1) / 2:
        return 0.0
    if x > center - 0.5 + (width - 1) / 2:
        return 255.0
    return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255


def test_the_window_follows_the_standard(tmp_path):
    found = shown(tmp_path, dataset(WindowCenter=1800, WindowWidth=1000))
    expected = [[window(float(x), 1800, 1000) for x in row] for row in RAMP]
    assert np.abs(found - np.array(expected)).max() <= 0.5 + 1e-6


def test_rescale_comes_before_the_window(tmp_path):
    made = dataset(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=900, WindowWidth=3000)
    expected = [[window(2.0 * x - 1024, 900, 3000) for x in row] for row in RAMP]
    assert np.abs(shown(tmp_path, made) - np.array(expected)).max() <= 0.5 + 1e-6


def test_linear_exact_and_sigmoid_windows_follow_the_standard(tmp_path):
    exact = shown(tmp_path, dataset(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"))
    expected = np.clip((RAMP - 2000) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(exact - expected).max() <= 0.5 + 1e-6
    sigmoid = shown(tmp_path, dataset(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID"))
    expected = 255 / (1 + np.exp(-4 * (RAMP - 2000) / 1000))
    assert np.abs(sigmoid - expected).max() <= 0.6


def test_the_first_of_several_windows_is_used(tmp_path):
    several = shown(tmp_path, dataset(WindowCenter=[1800, 100], WindowWidth=[1000, 50]))
    assert np.array_equal(several, shown(tmp_path, dataset(WindowCenter=1800, WindowWidth=1000)))


def test_a_voi_lut_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.LUTData = [255 - value for value in range(256)]
    made = dataset(np.arange(256).reshape(8, 32), bits=8)
    made.VOILUTSequence = [table]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    assert np.array_equal(shown(tmp_path, made), 255 - np.arange(256).reshape(8, 32))


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (16, True), (12, True)])
def test_without_a_window_values_are_stretched_from_lowest_to_highest(tmp_path, bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = np.linspace(low, high, 256).round().astype(np.int64).reshape(8, 32)
    expected = (stored - low) / (high - low) * 255
    assert np.abs(shown(tmp_path, dataset(stored, bits=bits, signed=signed)) - expected).max() <= 0.5 + 1e-6


def test_padding_is_excluded_from_the_stretch(tmp_path):
    stored = RAMP.clip(1000, 2000)
    stored[:2] = 0
    found = shown(tmp_path, dataset(stored, PixelPaddingValue=0))
    assert found[2:].min() == 0
    assert found[2:].max() == 255
    assert (found[:2] == 0).all()


def test_constant_picture_is_black(tmp_path):
    assert not shown(tmp_path, dataset(np.full((4, 4), 700))).any()


@settings(max_examples=25, deadline=None)
@given(center=st.integers(100, 4000), width=st.integers(2, 4000))
def test_monochrome1_is_the_negative_and_windows_are_monotone(tmp_path_factory, center, width):
    folder = tmp_path_factory.mktemp("dicom")
    tags = {"WindowCenter": center, "WindowWidth": width}
    two = shown(folder, dataset(**tags)).astype(int)
    one = shown(folder, dataset(PhotometricInterpretation="MONOCHROME1", **tags)).astype(int)
    assert np.array_equal(one, 255 - two)
    assert (np.diff(two.ravel()) >= 0).all()


def test_colours_are_kept_and_gray_is_their_luma(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    dataset(stored, bits=8).save_as(tmp_path / "colour", enforce_file_format=True)
    assert np.array_equal(camlib.read_image(tmp_path / "colour"), stored)
    luma = stored @ [0.299, 0.587, 0.114]
    assert np.abs(camlib.imaging.read_gray(tmp_path / "colour") - luma).max() <= 1


def test_dicom_is_detected_by_its_content_not_its_name(tmp_path):
    shown(tmp_path, dataset())
    (tmp_path / "picture.dcm").rename(tmp_path / "IM000001")
    assert camlib.imaging.read_gray(tmp_path / "IM000001").shape == RAMP.shape
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "fake.png")
    (tmp_path / "fake.png").rename(tmp_path / "fake")
    assert camlib.imaging.read_gray(tmp_path / "fake").shape == RAMP.shape


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "examples_rgb_color.dcm"])
def test_files_that_pydicom_ships_are_read(name):
    path = get_testdata_file(name, download=False)
    assert path
    picture = camlib.read_image(path)
    there = pydicom.dcmread(path)
    assert picture.shape == (there.Rows, there.Columns, 3)
    assert picture.std() > 5


def multi_frame():
    made = dataset()
    made.NumberOfFrames = 2
    made.PixelData = made.PixelData * 2
    return made


def without_pixels():
    made = dataset()
    del made.PixelData
    return made


def truncated():
    made = dataset()
    made.PixelData = made.PixelData[:100]
    return made


def undecodable():
    made = dataset()
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    made.PixelData = pydicom.encaps.encapsulate([b"\0\1\2\3"])
    made["PixelData"].VR = "OB"
    return made


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (multi_frame, "has 2 frames, expected one"),
        (without_pixels, "has no pixel data"),
        (truncated, "cannot be read as DICOM"),
        (undecodable, "JPEG 2000|cannot be read as DICOM"),
    ],
)
def test_unreadable_dicom_is_refused_without_quoting_the_header(tmp_path, make, complaint):
    make().save_as(tmp_path / "odd.dcm", enforce_file_format=True)
    with pytest.raises(camlib.CamlibError, match=complaint) as caught:
        camlib.read_image(tmp_path / "odd.dcm")
    said = "".join(traceback.format_exception(caught.value))
    assert "odd.dcm" in said
    assert "Sentinel" not in said


def test_invalid_values_in_the_header_raise_no_warnings_that_quote_them(tmp_path, recwarn):
    made = dataset()
    made.save_as(tmp_path / "odd.dcm", enforce_file_format=True)
    data = (tmp_path / "odd.dcm").read_bytes().replace(SECRET.encode(), b"Sentinel" + b"\xff" * 8)
    (tmp_path / "odd.dcm").write_bytes(data)
    assert camlib.imaging.read_gray(tmp_path / "odd.dcm").shape == RAMP.shape
    assert not len(recwarn)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    dataset().save_as(tmp_path / "picture.dcm", enforce_file_format=True)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(camlib.CamlibRuntimeError, match="install the extra dicom"):
        camlib.read_image(tmp_path / "picture.dcm")


def test_the_overlay_of_a_resized_picture_has_the_pictures_pixels(tmp_path):
    import torch

    from tests.networks import small_cnn

    picture = shown(tmp_path, dataset())
    squeezed = camlib.resize(torch.from_numpy(picture)[None].float() / 255, (16, 16))
    explanation = camlib.GradCAM(small_cnn(), "3")(squeezed.expand(3, -1, -1)[None], 1)
    assert explanation.overlays([picture])[0].shape == (*RAMP.shape, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
def test_pictures_of_every_mode_are_read(tmp_path, mode):
    ending = "tiff" if mode == "CMYK" else "png"
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10) * 4).convert("RGB").convert(mode)
    image.save(tmp_path / f"picture.{ending}")
    assert np.array_equal(camlib.read_image(tmp_path / f"picture.{ending}"), np.asarray(image.convert("RGB")))
    assert np.array_equal(camlib.imaging.read_gray(tmp_path / f"picture.{ending}"), np.asarray(image.convert("L")))


def test_sixteen_bits_are_stretched(tmp_path):
    values = np.linspace(1000, 51000, 60).astype(np.uint16).reshape(6, 10)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = (values.astype(float) - 1000) / 50000 * 255
    assert np.abs(camlib.imaging.read_gray(tmp_path / "deep.png") - expected).max() <= 0.5 + 1e-6
    assert camlib.read_image(tmp_path / "deep.png").shape == (6, 10, 3)


def test_constant_picture_of_sixteen_bits_is_black(tmp_path):
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "deep.png")
    assert not camlib.imaging.read_gray(tmp_path / "deep.png").any()


def test_pictures_are_turned_upright(tmp_path):
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(camlib.imaging.read_gray(tmp_path / "turned.png"), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_not_a_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(camlib.CamlibValueError, match=r"odd\.png cannot be read as a picture"):
        camlib.read_image(tmp_path / "odd.png")


def test_truncated_picture_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "cut.jpeg")
    (tmp_path / "cut.jpeg").write_bytes((tmp_path / "cut.jpeg").read_bytes()[:600])
    with pytest.raises(camlib.CamlibValueError, match="truncated"):
        camlib.imaging.read_gray(tmp_path / "cut.jpeg")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(camlib.CamlibValueError, match="cannot be opened: No such file"):
        camlib.read_image(tmp_path / "nothing.png")
