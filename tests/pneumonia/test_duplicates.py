"""Copies are found by content, stay on one side of a split, and are reported."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from pneumonia.data import list_images, load
from pneumonia.duplicates import copies, notes_of, with_joined_patients, without_copies_of
from pneumonia.sources import by_image, by_patient, from_folder
from tests.radiographs import write_classes, write_kaggle


def read(folder):
    return load(list_images(folder), 16, "drawn")


def test_copies_are_found_by_content_under_any_name_and_format(tmp_path):
    first, second, *_ = write_classes(tmp_path, 4, 4)
    with Image.open(first) as image:
        image.convert("RGB").save(tmp_path / "NORMAL/another name.png")
    pictures = read(tmp_path)
    (found,) = copies(pictures)
    assert {pictures.names[index] for index in found} == {str(first), str(tmp_path / "NORMAL/another name.png")}
    (note,) = notes_of(pictures, "drawn")
    assert note.startswith("pictures that occur more than once in drawn: 1 (")
    assert first.name in note
    assert second.name not in note


def test_different_pictures_are_not_copies(tmp_path):
    write_classes(tmp_path, 6, 6)
    pictures = read(tmp_path)
    assert copies(pictures) == []
    assert notes_of(pictures, "drawn") == ["no picture occurs twice in drawn"]


def test_copies_with_both_labels_are_reported(tmp_path):
    first, *_ = write_classes(tmp_path, 4, 4)
    shutil.copy(first, tmp_path / "PNEUMONIA/person99_virus_1.jpeg")
    assert "pictures with both labels: 1" in notes_of(read(tmp_path), "drawn")[1]


def test_patients_linked_by_a_chain_of_shared_pictures_are_one(tmp_path):
    first, second, third, *_ = write_classes(tmp_path, 4, 4)
    shutil.copy(first, tmp_path / "NORMAL/IM-0100-0001.jpeg")
    shutil.copy(second, tmp_path / "NORMAL/IM-0100-0002.jpeg")
    pictures = with_joined_patients(read(tmp_path))
    of = dict(zip((name.rsplit("/")[-1] for name in pictures.names), pictures.patients, strict=True))
    assert of[first.name] == of[second.name] == of["IM-0100-0001.jpeg"] == of["IM-0100-0002.jpeg"]
    assert of[third.name] != of[first.name]
    assert len(set(of.values())) == 7


def test_copies_stay_on_one_side_of_the_split_by_patient(tmp_path):
    for path in write_classes(tmp_path, 20, 20)[::2]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    training, validation = by_patient(with_joined_patients(read(tmp_path)), 0.25, 0)
    assert not set(training.digests) & set(validation.digests)


@pytest.mark.parametrize("divide", [by_patient, by_image])
def test_pictures_of_the_test_set_are_left_out_of_training(tmp_path, divide):
    write_kaggle(tmp_path)
    for path in sorted((tmp_path / "test/NORMAL").iterdir())[:3]:
        shutil.copy(path, tmp_path / "train/NORMAL" / f"again-{path.name}")
    splits = from_folder(tmp_path, 16, divide, 0)
    known = set(splits.training.digests) | set(splits.validation.digests)
    assert not known & set(splits.test.digests)
    assert "left out of training: 3 images that are also in test" in splits.notes
    assert len(splits.training) + len(splits.validation) == 24 + 32 + 4


def test_pictures_without_digests_are_all_kept(tmp_path):
    from dataclasses import replace

    write_classes(tmp_path, 4, 4)
    pictures = replace(read(tmp_path), digests=[])
    assert len(without_copies_of(pictures, pictures)) == 8
