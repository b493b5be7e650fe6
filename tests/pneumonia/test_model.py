"""Starting weights come from the reported source, and no code is unpickled."""

from __future__ import annotations

import os
import pickle
import urllib.error
import urllib.request

import pytest
import torch
import torchvision

from pneumonia import InputError
from pneumonia.model import build, freeze_all_but_head, read_state, train_mode


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No network, and an empty cache of weights."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None)


def test_auto_without_weights_says_loudly_that_it_starts_from_scratch(capsys):
    _, source = build("auto")
    assert source == "none"
    assert "training FROM SCRATCH" in capsys.readouterr().out


def test_imagenet_without_weights_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="not cached and cannot be downloaded.*--weights FILE.*--weights none"):
        build("imagenet")


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_cached_imagenet_weights_are_loaded(cache, donor, weights):
    torch.save(donor.state_dict(), cache / "resnet18-f37072fd.pth")
    model, source = build(weights)
    assert source == "imagenet"
    assert torch.equal(model.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)
    assert model.fc.out_features == 2


@pytest.mark.parametrize("content", ["damaged", "another"])
def test_bad_cache_is_named(cache, content):
    path = cache / "resnet18-f37072fd.pth"
    if content == "damaged":
        path.write_bytes(b"abc")
    else:
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    with pytest.raises(InputError, match="or is damaged|the cached file of ImageNet weights is not a checkpoint"):
        build("auto")


def test_no_weights_are_random_and_seeded():
    torch.manual_seed(3)
    first, source = build("none")
    torch.manual_seed(3)
    again, _ = build("none")
    assert source == "none"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("wrapped", [False, True])
def test_local_state_dict_is_loaded_except_for_the_head(tmp_path, donor, wrapped):
    state = donor.state_dict()
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "w.pt")
    model, source = build(str(tmp_path / "w.pt"))
    assert source == str(tmp_path / "w.pt")
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own if not name.startswith("fc."))


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="is not a checkpoint of a ResNet-18: 120 weights are missing, 52 unknown"):
        build(str(tmp_path / "w.pt"))
    wider = torchvision.models.resnet18(weights=None, width_per_group=64).state_dict()
    wider["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(wider, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"1 have another shape, such as conv1\.weight"):
        build(str(tmp_path / "w.pt"))


def test_state_dict_with_other_values_is_refused(tmp_path, donor):
    torch.save({**donor.state_dict(), "conv1.weight": 3, 7: "x"}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="1 unknown, 1 have another shape"):
        build(str(tmp_path / "w.pt"))


class Malice:
    def __reduce__(self):
        return os.mkdir, (os.environ["CAMLIB_TEST_MALICE"],)


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMLIB_TEST_MALICE", str(tmp_path / "ran"))
    torch.save({"model": Malice()}, tmp_path / "w.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malice()))
    for name in ("w.pt", "raw.pt"):
        with pytest.raises(InputError, match="not a checkpoint of tensors"):
            read_state(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"not a checkpoint", b"a,b\n1,2\n", b"PK\x03\x04damaged"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match="not a checkpoint of tensors that torch.save wrote, or is damaged"):
        read_state(tmp_path / "w.pt")


def test_truncated_missing_and_other_files_are_refused(tmp_path, donor):
    torch.save(donor.state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:100_000])
    with pytest.raises(InputError, match="or is damaged"):
        read_state(tmp_path / "w.pt")
    with pytest.raises(InputError, match="there is no checkpoint"):
        read_state(tmp_path / "none.pt")
    torch.save(torch.zeros(3), tmp_path / "t.pt")
    with pytest.raises(InputError, match="holds a Tensor, not a state dict"):
        read_state(tmp_path / "t.pt")


def test_frozen_layers_keep_their_batch_norm_frozen():
    model, _ = build("none")
    freeze_all_but_head(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    before = {name: value.clone() for name, value in model.named_buffers()}
    train_mode(model)
    model(torch.randn(4, 3, 32, 32))
    assert model.fc.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_trained_layers_update_their_batch_norm():
    model, _ = build("none")
    before = model.bn1.running_mean.clone()
    train_mode(model)
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(model.bn1.running_mean, before)
