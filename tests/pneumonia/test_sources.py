"""Every layout is understood, and no patient is on both sides of a split."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia import InputError, sources
from pneumonia.data import Pictures
from pneumonia.sources import by_image, by_patient, from_folder, from_kaggle, from_medmnist, from_phantoms
from tests.radiographs import write_classes, write_kaggle


def pictures_of(patients, labels):
    count = len(patients)
    return Pictures(
        torch.zeros(count, 2, 2, dtype=torch.uint8),
        torch.tensor(labels),
        [f"{label} {patient}" for patient, label in zip(patients, labels, strict=True)],
        [f"image {index}" for index in range(count)],
    )


def everything(splits):
    return [name for part in (splits.training, splits.validation, splits.test) for name in part.names]


@pytest.mark.parametrize("nesting", ["", "chest_xray", "chest_xray/chest_xray"])
@pytest.mark.parametrize("val", [True, False])
def test_kaggle_layout_with_and_without_val_and_nested(tmp_path, nesting, val):
    write_kaggle(tmp_path / nesting, val=val)
    splits = from_folder(tmp_path, 16, by_patient, 0)
    assert len(splits.test) == 14
    assert all("/test/" in name for name in splits.test.names)
    assert len(splits.training) + len(splits.validation) == (60 if val else 56)
    assert len(set(everything(splits))) == len(everything(splits))
    assert set(splits.validation.labels.tolist()) == {0, 1}


def test_archive_that_unpacks_twice_with_macos_files_is_read_once(tmp_path):
    write_kaggle(tmp_path / "chest_xray")
    shutil.copytree(tmp_path / "chest_xray", tmp_path / "chest_xray/chest_xray")
    write_kaggle(tmp_path / "chest_xray/__MACOSX")
    splits = from_folder(tmp_path, 16, by_patient, 0)
    assert len(everything(splits)) == 74
    assert not any("__MACOSX" in name or "chest_xray/chest_xray" in name for name in everything(splits))


@pytest.mark.parametrize("nesting", ["", "my images"])
def test_one_folder_is_split_into_three(tmp_path, nesting):
    write_classes(tmp_path / nesting, 40, 60)
    splits = from_folder(tmp_path, 16, by_patient, 0)
    sizes = [len(part) for part in (splits.training, splits.validation, splits.test)]
    assert sum(sizes) == len(set(everything(splits))) == 100
    assert sizes == pytest.approx([70, 15, 15], abs=3)
    for part in (splits.training, splits.validation, splits.test):
        assert part.labels.double().mean() == pytest.approx(0.6, abs=0.15)


@pytest.mark.parametrize("divide", [by_patient, by_image])
def test_the_seed_decides_the_split(tmp_path, divide):
    write_classes(tmp_path, 20, 20)
    first, again, other = (from_folder(tmp_path, 16, divide, seed) for seed in (0, 0, 1))
    assert everything(first) == everything(again)
    assert first.test.names != other.test.names


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=30, max_size=60),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.1, 0.15, 0.2]),
)
def test_a_patients_images_stay_together(counts, seed, share):
    patients = [patient for patient, count in enumerate(counts) for _ in range(count)]
    labels = [patient % 2 for patient in patients]
    kept, taken = by_patient(pictures_of(patients, labels), share, seed)
    assert not set(kept.patients) & set(taken.patients)
    assert sorted(kept.names + taken.names) == sorted(f"image {index}" for index in range(len(patients)))
    assert len(taken) / len(patients) == pytest.approx(share, abs=0.1)


def test_random_split_keeps_the_class_balance_and_not_the_patients():
    pictures = pictures_of([index // 10 for index in range(200)], [int(index >= 50) for index in range(200)])
    kept, taken = by_image(pictures, 0.2, 0)
    assert [int((taken.labels == label).sum()) for label in (0, 1)] == [10, 30]
    assert set(kept.patients) & set(taken.patients)


@pytest.mark.parametrize(("divide", "straddling"), [(by_patient, False), (by_image, True)])
def test_overlap_of_patients_is_reported(tmp_path, divide, straddling):
    write_classes(tmp_path, 40, 40, per_patient=4)
    splits = from_folder(tmp_path, 16, divide, 0)
    (note,) = [note for note in splits.notes if note.startswith("patients by file name")]
    reported = [int(number) for number in re.findall(r"\d+", note)]
    known, chosen, kept = (set(part.patients) for part in (splits.training, splits.validation, splits.test))
    assert reported == [len(known), len(chosen), len(kept), len(known & chosen), len((known | chosen) & kept)]
    assert bool(reported[3] or reported[4]) == straddling


def test_unreadable_images_are_listed(tmp_path):
    files = write_classes(tmp_path, 30, 30)
    files[2].write_bytes(b"x")
    (skipped,) = from_folder(tmp_path, 16, by_patient, 0).skipped
    assert str(files[2]) in skipped


def test_folders_in_no_known_layout_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        from_folder(tmp_path / "missing", 16, by_patient, 0)
    with pytest.raises(InputError, match="no images in a known layout.*found nothing"):
        from_folder(tmp_path, 16, by_patient, 0)
    (tmp_path / "cats").mkdir()
    with pytest.raises(InputError, match="found cats"):
        from_folder(tmp_path, 16, by_patient, 0)


def test_one_folder_of_the_layout_can_be_given_by_itself(tmp_path):
    write_kaggle(tmp_path / "chest_xray")
    splits = from_folder(tmp_path / "chest_xray/train", 16, by_patient, 0)
    assert len(everything(splits)) == 56


def test_empty_val_is_ignored(tmp_path):
    write_kaggle(tmp_path, val=False)
    (tmp_path / "val/NORMAL").mkdir(parents=True)
    (tmp_path / "val/PNEUMONIA").mkdir()
    assert len(everything(from_folder(tmp_path, 16, by_patient, 0))) == 70


@pytest.mark.parametrize("divide", [by_patient, by_image])
def test_too_few_images_are_refused(tmp_path, divide):
    write_classes(tmp_path, 2, 2)
    with pytest.raises(InputError, match="too few (patients|images) to split"):
        from_folder(tmp_path, 16, divide, 0)


def test_phantoms_split_four_to_one_to_one_and_keep_their_masks():
    splits = from_phantoms(8, 32, 0)
    assert [len(part) for part in (splits.training, splits.validation, splits.test)] == [8, 2, 2]
    assert splits.test.masks is not None
    assert bool(splits.test.masks.any())


class TestKaggle:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))

    def entry(self, version):
        from kagglehub.cache import Cache
        from kagglehub.handle import parse_dataset_handle

        handle = parse_dataset_handle(f"{sources.KAGGLE_DATASET}/versions/{version}")
        return handle, Cache()

    def test_cached_copy_is_read_without_network(self, tmp_path):
        from pathlib import Path

        for version, complete in ((1, True), (2, True), (10, False)):
            handle, cache = self.entry(version)
            write_kaggle(Path(cache.get_path(handle)) / "chest_xray", val=version == 2)
            if complete:
                cache.mark_as_complete(handle)
        splits = from_kaggle(16, by_patient, 0)
        assert len(everything(splits)) == 74
        assert all("versions/2/" in name for name in everything(splits))

    def test_no_network_is_one_clear_line(self, monkeypatch):
        import kagglehub

        def offline(handle):
            raise ConnectionError("Failed to resolve\nmany\nlines")

        monkeypatch.setattr(kagglehub, "dataset_download", offline)
        with pytest.raises(InputError, match="not cached and cannot be downloaded.*ConnectionError.*--data FOLDER"):
            from_kaggle(16, by_patient, 0)

    def test_download_is_read(self, tmp_path, monkeypatch):
        import kagglehub

        asked = []
        folder = write_kaggle(tmp_path / "downloaded")
        monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: asked.append(handle) or str(folder))
        assert len(everything(from_kaggle(16, by_patient, 0))) == 74
        assert asked == ["paultimothymooney/chest-xray-pneumonia"]

    def test_missing_package_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "kagglehub", None)
        with pytest.raises(InputError, match="install the extra kaggle"):
            from_kaggle(16, by_patient, 0)


class TestMedMNIST:
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
        monkeypatch.setitem(sys.modules, "medmnist", None)

    def arrays(self):
        random = np.random.default_rng(0)
        return {
            f"{part}_{kind}": random.integers(0, 256, (count, 224, 224), np.uint8)
            if kind == "images"
            else (np.arange(count) % 2).astype(np.uint8)[:, None]
            for part, count in (("train", 8), ("val", 4), ("test", 6))
            for kind in ("images", "labels")
        }

    def test_the_file_is_read_with_its_own_splits(self, tmp_path):
        arrays = self.arrays()
        np.savez(tmp_path / "pneumoniamnist_224.npz", **arrays)
        splits = from_medmnist(112)
        assert [len(part) for part in (splits.training, splits.validation, splits.test)] == [8, 4, 6]
        assert splits.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert splits.test.labels.dtype == torch.int64
        halved = arrays["test_images"].reshape(6, 112, 2, 112, 2).mean((2, 4))
        assert np.abs(splits.test.pixels.numpy() - halved).max() <= 0.5

    def test_missing_file_and_package_name_the_extra(self):
        with pytest.raises(InputError, match="there is no .*; put it there, or install the extra medmnist"):
            from_medmnist(112)

    def test_no_network_is_one_clear_line(self, tmp_path, monkeypatch):
        class Offline:
            def PneumoniaMNIST(self, **options):  # noqa: N802  # medmnist's name
                assert (options["size"], options["root"]) == (224, str(tmp_path))
                raise RuntimeError("Something went wrong\nwith the download")

        monkeypatch.setitem(sys.modules, "medmnist", Offline())
        with pytest.raises(InputError, match="cannot be downloaded: RuntimeError"):
            from_medmnist(112)

    @pytest.mark.parametrize(
        "damage", ["truncated", "other", "pickle", "colour", "third class", "one class", "lengths", "float"]
    )
    def test_damaged_file_is_refused(self, tmp_path, damage):
        path = tmp_path / "pneumoniamnist_224.npz"
        if damage == "truncated":
            np.savez(path, **self.arrays())
            path.write_bytes(path.read_bytes()[:5000])
        elif damage in ("colour", "third class", "one class", "lengths", "float"):
            arrays = self.arrays()
            if damage in ("colour", "float"):
                images = arrays["val_images"]
                arrays["val_images"] = np.stack([images] * 3, -1) if damage == "colour" else images / 255
            else:
                labels = {"third class": [[0], [1], [2], [0]], "one class": [[0]] * 4, "lengths": [[0], [1]]}
                arrays["val_labels"] = np.array(labels[damage], np.uint8)
            np.savez(path, **arrays)
        elif damage == "other":
            np.savez(path, x=np.zeros(3))
        else:
            np.savez(path, **{name: np.array([{}], object) for name in self.arrays()})
        with pytest.raises(InputError, match="is not PneumoniaMNIST as medmnist saves it"):
            from_medmnist(112)
