"""Pictures of all types as RGB uint8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.normalization import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def as_rgb(picture: Any) -> NDArray[np.uint8]:
    """Return one picture as RGB, (H, W, 3), uint8.

    Args:
        picture: a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4, its alpha dropped); a tensor (H, W),
            (1, H, W) or (3, H, W). Arrays and tensors are uint8, or floating point in [0, 1].

    Raises:
        CamlibTypeError: another type of picture or of numbers.
        CamlibValueError: another shape, or values outside [0, 1].

    Example:
        >>> import torch
        >>> as_rgb(torch.zeros(3, 4, 5)).shape
        (4, 5, 3)
    """
    import numpy as np

    if isinstance(picture, Tensor):
        if picture.is_meta:
            raise CamlibValueError("a picture on the meta device has no values")
        tensor = picture.detach().cpu()
        if tensor.dim() == 3 and tensor.shape[0] not in (1, 3):
            raise CamlibValueError(
                f"a tensor picture is channels-first, (3, H, W) or (1, H, W), got {tuple(tensor.shape)}; for "
                "channels last, pass an array: picture.numpy()"
            )
        array = _numpy(tensor)
    elif isinstance(picture, np.ndarray):
        array = picture
    elif hasattr(picture, "convert") and hasattr(picture, "mode"):
        array = _from_pil(picture)
    else:
        raise CamlibTypeError(
            f"a picture must be a PIL image, an array (H, W, 3) or a tensor (3, H, W), got {type(picture).__name__}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise CamlibValueError(
            f"an array picture has shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {tuple(array.shape)}"
        )
    array = _as_uint8(array[..., :3])
    return np.ascontiguousarray(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array)


def as_pictures(images: Any) -> list[NDArray[np.uint8]]:
    """Return a batch, or a sequence of pictures, or one picture, as a list of RGB pictures.

    Args:
        images: a list or tuple of pictures, which may differ in size; an array (N, H, W, C); a tensor (N, C, H, W);
            or one picture.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`as_rgb`.
    """
    batch = getattr(images, "ndim", None) == 4 or (isinstance(images, Sequence) and not isinstance(images, str))
    return [as_rgb(picture) for picture in images] if batch else [as_rgb(images)]


def _numpy(tensor: Tensor) -> NDArray[Any]:
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: NDArray[Any] = (tensor.movedim(0, -1) if tensor.dim() == 3 else tensor).numpy()
    return array


def _from_pil(picture: Any) -> NDArray[Any]:
    import numpy as np

    if picture.mode in ("I", "I;16", "I;16B", "F"):
        raise CamlibTypeError(
            f"a PIL image of mode {picture.mode} has no standard range; scale it to [0, 1] or to uint8 first"
        )
    return np.asarray(picture.convert("RGB"))


def _as_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    import numpy as np

    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise CamlibTypeError(f"a picture holds uint8, or floating point in [0, 1], got dtype {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise CamlibValueError(
            f"a floating-point picture lies in [0, 1], got [{shown(low)}, {shown(high)}]; if it was normalised for the "
            "network, undo mean and standard deviation first; if it is 0 to 255, divide by 255"
        )
    scaled: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return scaled
