"""Noise: drawn by a generator of one's own, the same for every image of a batch, scaled to each one's range."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import camlib
from camlib.inputs import Inputs, noise
from camlib.inputs.noise import check_noise, normal, own_generator


def with_noise(raw: Any, sigma: float, generator: torch.Generator) -> Any:
    inputs = Inputs(raw)
    return noise.Noise(inputs, sigma, generator, 1).added(inputs, torch.zeros(inputs.count, dtype=torch.long)).raw


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_restated_with_the_same_generator():
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)
    drawn = torch.randn(1, 3, 4, 5, generator=seeded(), dtype=torch.float64)[0]
    noisy = with_noise(images, 0.3, seeded())
    for image, one in zip(images, noisy, strict=True):
        spread = max(image.flatten().tolist()) - min(image.flatten().tolist())
        torch.testing.assert_close(one, image + 0.3 * spread * drawn)


@pytest.mark.parametrize("shape", [(3, 2, 9), (3, 1, 4, 5), (3, 1, 2, 4, 5)])
def test_a_batch_gets_what_its_images_get(shape):
    images = torch.rand(shape)
    together = with_noise(images, 0.1, seeded())
    assert torch.equal(together, torch.cat([with_noise(image[None], 0.1, seeded()) for image in images]))
    assert not torch.equal(together, images)


def test_pictures_in_a_list_get_what_they_get_alone_and_in_a_batch():
    images = torch.rand(3, 3, 4, 5)
    together = with_noise(list(images), 0.1, seeded())
    assert isinstance(together, list)
    assert torch.equal(torch.stack(together), with_noise(images, 0.1, seeded()))
    assert all(
        torch.equal(one, with_noise([image], 0.1, seeded())[0]) for one, image in zip(together, images, strict=True)
    )


def test_batches_in_a_list_get_a_noise_each():
    images = torch.rand(2, 3, 4, 5)
    first, second = with_noise([images, images], 0.1, seeded())
    assert torch.equal(first, with_noise(images, 0.1, seeded()))
    assert not torch.allclose(first, second)


def test_the_next_copy_draws_on():
    generator, images = seeded(), torch.rand(2, 3, 4, 5)
    assert not torch.equal(with_noise(images, 0.1, generator), with_noise(images, 0.1, generator))


def test_tensors_that_are_not_pictures_do_not_change():
    inputs = {
        "picture": torch.rand(2, 3, 4, 5),
        "mask": torch.ones(2, 1, 4, 5, dtype=torch.bool),
        "words": torch.rand(2, 7, 6),
        "ages": torch.rand(2),
        "name": "left",
    }
    noisy = with_noise(inputs, 0.1, seeded())
    assert not torch.equal(noisy["picture"], inputs["picture"])
    assert all(noisy[key] is inputs[key] for key in ("mask", "words", "ages", "name"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_has_the_type_of_the_images_and_is_the_same_up_to_rounding(dtype):
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    noisy = with_noise(images.to(dtype), 0.1, seeded())
    assert noisy.dtype == dtype
    torch.testing.assert_close(
        noisy.double(), with_noise(images, 0.1, seeded()), rtol=0, atol=8 * torch.finfo(dtype).eps
    )


def test_a_constant_image_has_no_range_and_gets_no_noise():
    images = torch.stack([torch.zeros(3, 4, 5), torch.rand(3, 4, 5)])
    noisy = with_noise(images, 0.1, seeded())
    assert torch.equal(noisy[0], images[0])
    assert not torch.equal(noisy[1], images[1])


def test_global_random_numbers_and_inputs_are_left_alone():
    images, state = torch.rand(2, 3, 4, 5), torch.random.get_rng_state()
    given = images.clone()
    with_noise(images, 0.1, own_generator(None))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images, given)


def test_without_a_generator_there_is_one_that_repeats_itself():
    given = seeded()
    assert own_generator(given) is given
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(normal((5,), own_generator(None), like), normal((5,), own_generator(None), like))
    assert not torch.equal(normal((5,), own_generator(None), like), normal((5,), seeded(), like))


def test_what_cannot_be_made_noisy_is_refused():
    with pytest.raises(camlib.CamlibTypeError, match="the images are torch.uint8; convert them"):
        with_noise(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), 0.1, seeded())
    with pytest.raises(camlib.CamlibTypeError, match="the inputs, a Tensor, hold neither images"):
        with_noise(torch.rand(2, 7), 0.1, seeded())
    with pytest.raises(camlib.CamlibTypeError, match="generator must be a torch.Generator, got int: 7"):
        own_generator(7)


def test_samples_are_counted_in_ints():
    with pytest.raises(camlib.CamlibValueError, match="samples must be an int of at least 1, got 0"):
        check_noise(0, 0.1)
    with pytest.raises(camlib.CamlibTypeError, match="samples must be an int of at least 1, got 2.0"):
        check_noise(2.0, 0.1)


def test_sigma_is_a_positive_number():
    with pytest.raises(camlib.CamlibValueError, match="sigma must be a positive number, got 0"):
        check_noise(8, 0)
    with pytest.raises(camlib.CamlibTypeError, match="sigma must be a positive number, got '0.1'"):
        check_noise(8, "0.1")
    check_noise(1, 1)


def test_the_width_of_a_gaussian_is_a_positive_number():
    with pytest.raises(camlib.CamlibValueError, match="sigma must be a positive number, got -0.1"):
        camlib.CenterGaussian(torch.nn.Identity(), sigma=-0.1)
    with pytest.raises(camlib.CamlibTypeError, match="sigma must be a positive number, got 'a'"):
        camlib.CenterGaussian(torch.nn.Identity(), sigma="a")
    assert camlib.CenterGaussian(torch.nn.Identity(), sigma=1).sigma == 1
