"""A test of another library, as a statement about camlib: its inputs and expected values, and code of camlib's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "by design", "cannot"]


@dataclass(frozen=True)
class Case:
    """A test of another library.

    Args:
        peer: the library, and the commit whose tests were read.
        test: the file of the test, and its name.
        verdict: "pass" if camlib does what the test expects; "by design" if it does something else, which ``check``
            states; "cannot" if it has no such feature.
        check: raises if camlib does not do it; None if it cannot.
        why: the reason, where camlib does not do what the test expects.
    """

    peer: str
    test: str
    verdict: Verdict
    check: Callable[[], object] | None = None
    why: str = ""

    def __post_init__(self) -> None:
        assert (self.check is None) == (self.verdict == "cannot"), self
        assert bool(self.why) == (self.verdict != "pass"), self

    def __str__(self) -> str:
        return f"{self.peer.split()[0]}-{self.test}"
