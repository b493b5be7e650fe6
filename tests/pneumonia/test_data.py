"""Images are found, read and assigned to patients; those that cannot be read are skipped and listed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pneumonia import InputError
from pneumonia.data import list_images, load, patient_of
from tests.radiographs import SHAPE, write_classes


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("person1_bacteria_1", "person1_virus_9", True),
        ("person1_bacteria_1", "person10_bacteria_1", False),
        ("IM-0115-0001", "IM-0115-0002", True),
        ("IM-0115-0001-0001", "IM-0115-0001-0002", True),
        ("IM-0115-0001", "IM-0116-0001", False),
        ("IM-0115-0001", "NORMAL2-IM-0115-0001", False),
        ("NORMAL2-IM-0115-0001", "NORMAL2-IM-0115-0003", True),
        ("scan a", "scan b", False),
    ],
)
def test_patients_are_recognised_by_file_name(first, second, same):
    assert (patient_of(Path(f"{first}.jpeg"), 0) == patient_of(Path(f"{second}.png"), 0)) == same


def test_equal_numbers_in_the_two_classes_are_different_patients():
    assert patient_of(Path("person1_a.png"), 0) != patient_of(Path("person1_a.png"), 1)


def test_images_of_every_ending_are_found_and_other_files_are_not(tmp_path):
    write_classes(tmp_path, 1, 1)
    picture = Image.new("L", (8, 8))
    wanted = ["NORMAL/a.PNG", "NORMAL/b.jpg", "NORMAL/deeper/c.JPEG", "PNEUMONIA/d.png"]
    for name in [*wanted, "NORMAL/__MACOSX/e.png", "NORMAL/._f.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "NORMAL/.DS_Store").write_bytes(b"x")
    (tmp_path / "NORMAL/notes.txt").write_text("x")
    found = {path.relative_to(tmp_path).as_posix(): label for path, label in list_images(tmp_path)}
    assert found == {
        **{name: int(name.startswith("PNEUMONIA")) for name in wanted},
        "NORMAL/IM-0000-0000.jpeg": 0,
        "PNEUMONIA/person0_bacteria_0.jpeg": 1,
    }


def test_class_folders_may_be_lower_case(tmp_path):
    write_classes(tmp_path / "x", 2, 2)
    (tmp_path / "x/NORMAL").rename(tmp_path / "x/normal")
    (tmp_path / "x/PNEUMONIA").rename(tmp_path / "x/Pneumonia")
    assert len(list_images(tmp_path / "x")) == 4


def test_whole_pictures_are_resized_and_keep_their_order(tmp_path):
    files = write_classes(tmp_path, 3, 2)
    pictures = load(list_images(tmp_path), 16, "x")
    assert pictures.pixels.shape == (5, 16, 16)
    assert pictures.pixels.dtype == torch.uint8
    assert pictures.labels.tolist() == [0, 0, 0, 1, 1]
    assert [Path(name).name for name in pictures.names] == [path.name for path in files]
    spot = pictures.pixels[3].float()
    rows, columns = 17 / SHAPE[0] * 16, 16 / SHAPE[1] * 16  # the middle of the bright spot
    assert spot[int(rows), int(columns)] > 200
    assert spot[int(rows), -int(columns)] < 140


def test_unreadable_images_are_skipped_and_listed(tmp_path):
    files = write_classes(tmp_path, 20, 20)
    files[3].write_bytes(files[3].read_bytes()[:300])
    files[25].write_text("not an image")
    files[30].write_bytes(b"")
    pictures = load(list_images(tmp_path), 16, "x")
    assert len(pictures) == 37
    assert not {str(files[i]) for i in (3, 25, 30)} & set(pictures.names)
    assert {note.split(": ")[0] for note in pictures.unreadable} == {str(files[i]) for i in (3, 25, 30)}
    assert all("\n" not in note and len(note.split(": ", 1)[1]) > 5 for note in pictures.unreadable)


def test_too_many_unreadable_images_are_refused(tmp_path):
    files = write_classes(tmp_path, 10, 10)
    for path in files[:3]:
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="3 of 20 images in somewhere cannot be read"):
        load(list_images(tmp_path), 16, "somewhere")


def test_one_class_missing_or_empty_is_refused(tmp_path):
    for path in write_classes(tmp_path, 3, 3):
        if "PNEUMONIA" in str(path):
            path.unlink()
    with pytest.raises(InputError, match="holds no JPEG, PNG or DICOM images; put the PNEUMONIA images there"):
        list_images(tmp_path)
    (tmp_path / "PNEUMONIA").rmdir()
    with pytest.raises(InputError, match="no folder PNEUMONIA; both classes"):
        list_images(tmp_path)


def test_pictures_can_be_taken_by_index(tmp_path):
    write_classes(tmp_path, 3, 3)
    pictures = load(list_images(tmp_path), 16, "x")
    some = pictures.take([4, 0])
    assert some.labels.tolist() == [1, 0]
    assert some.names == [pictures.names[4], pictures.names[0]]
    assert some.patients == [pictures.patients[4], pictures.patients[0]]
    assert torch.equal(some.pixels, pictures.pixels[[4, 0]])
