"""Values of any range as a picture of 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Scale values from the range low to high to 0 to 255.

    Example:
        >>> import numpy as np
        >>> scaled(np.array([1.0, 1.5, 4.0]), 1, 2).tolist()
        [0, 128, 255]
    """
    import numpy as np

    shares = values.astype(np.float64)
    shares -= low
    shares /= max(float(high) - float(low), 1e-12)
    shares.clip(0, 1, out=shares)
    shares *= 255
    return np.rint(shares, out=shares).astype(np.uint8)
