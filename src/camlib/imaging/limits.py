"""The size of pictures that are read, checked before memory is taken for them."""

from __future__ import annotations

from camlib.errors import CamlibValueError

MAX_PIXELS = 2**26
"""The most pixels of a picture, 8192 x 8192. Reading takes up to 50 bytes of memory for a pixel, that is 3 GiB."""
MAX_BYTES = 6 * MAX_PIXELS
"""The most bytes of a picture's file, also when inflated: three channels of 16 bits."""


def check_pixels(width: int, height: int, name: str) -> None:
    """Check the size of a picture, by its header.

    Raises:
        CamlibValueError: it is larger than :data:`MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise CamlibValueError(
            f"{name} has {width} x {height} pixels, and pictures of at most {MAX_PIXELS} are read; save it smaller"
        )


def check_bytes(count: int, name: str) -> None:
    """Check the size of a file, or of what is inflated from it.

    Raises:
        CamlibValueError: it is larger than :data:`MAX_BYTES`.
    """
    if count > MAX_BYTES:
        raise CamlibValueError(
            f"{name} takes {count} bytes or more, and pictures of at most {MAX_BYTES} are read; save it smaller"
        )
