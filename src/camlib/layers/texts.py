"""Text beside pictures: the layers that read text, and the networks that embed texts apart from images.

Hugging Face's configurations tell; other networks that read text have none, and are not recognised.
"""

from __future__ import annotations

from torch import nn

from camlib.errors import CamlibValueError


def text_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules whose tokens are a text: a text tower, or a language model that reads image tokens, too.

    They are the modules with the configuration of the text in a network with one for text and one for vision, what
    they contain, and the head that turns tokens into words.

    Example:
        >>> text_modules(nn.Sequential(nn.Conv2d(3, 8, 3)))
        set()
    """
    found: set[nn.Module] = set()
    for around in model.modules():
        config = getattr(around, "config", None)
        text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
        if text is None or vision is None or type(text) in (type(vision), type(config), dict):
            continue
        for module in around.modules():
            if isinstance(getattr(module, "config", None), type(text)):
                found.update(module.modules())
        words = getattr(around, "get_output_embeddings", lambda: None)()
        found.update([words] if isinstance(words, nn.Module) else [])
    return found


def has_two_towers(model: nn.Module) -> bool:
    """Whether a network embeds K texts and N images apart and compares each with each, as CLIP and SigLIP do.

    The texts are then not those of the images: a copy of an image must not come with a copy of a text.

    Example:
        >>> has_two_towers(nn.Conv2d(3, 8, 3))
        False
    """

    def has(*names: str) -> bool:
        return any(hasattr(model, name) for name in names)

    embeds = has("get_text_features") and has("get_image_features", "get_video_features")
    embeds = embeds or (has("encode_text") and has("encode_image"))
    return embeds and has("logit_scale", "temperature") and not has("multimodal_model", "text_decoder")


def text_error(layer: str, shape: tuple[int, ...]) -> CamlibValueError:
    """Return the error for a layer among :func:`text_modules`."""
    return CamlibValueError(
        f"layer {layer!r} returns shape {shape}, the tokens of a text, whose places are not those of the image; choose "
        "a layer of the vision tower, or leave layer= out. For the image tokens inside a text, pass reshape=, a "
        "function that picks them and arranges them to (N, C, h, w)"
    )
