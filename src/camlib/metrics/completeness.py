"""Completeness: does the map add up to what it explains (Sundararajan et al. 2017)?"""

from __future__ import annotations

from torch import Tensor

from camlib.metrics.declaration import metric
from camlib.metrics.fills import Baseline, baseline_images
from camlib.metrics.readings import Explained


@metric(Explained, "lower", "not negative, in units of the score")
def completeness(explained: Explained, *, baseline: Baseline | None = "zero") -> Tensor:
    r"""Difference between the sum of the raw map and the change of the score from a baseline image to the image.

    .. math::
        \left| \sum_p M_p - (s(x) - s(x')) \right|

    with the signed map M as the method returns it, at the layer's resolution, and the score s that was explained: the
    logit unless the target says otherwise. The axiom of Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365.
    Lower is better: 0 for a map that adds up to the change.

    It is meant for methods whose signed maps (``relu=False``, and no ``pool``, whose cells are means) should do so,
    such as integrated gradients. With ``baseline=None`` the map must add up to the score itself, as that of HiResCAM
    does if pooling and a linear layer without a bias follow the explained layer. For other methods the number says
    nothing.

    2 explanations; 1 with ``baseline=None``.

    Args:
        baseline: the image x': "zero", "mean", "blur", a number or a tensor (C, 1, 1), as for
            :func:`camlib.metrics.fills.baseline_images`; None for a score of 0.

    Raises:
        CamlibTypeError: a baseline of another type.
        CamlibValueError: a baseline that cannot be broadcast.
    """
    explanation = explained.explanation
    scores = explanation.scores
    if baseline is not None:
        instead = baseline_images(explained.images, baseline).contiguous()
        scores = scores - explained.explain_again(instead).scores
    return (explanation.maps.flatten(1).sum(1) - scores).abs()
