"""What the tests of other libraries expect of methods and metrics that camlib has, too."""

from __future__ import annotations

import pytest

from tests.peers import CASES, Case

CHECKED = [case for case in CASES if case.check is not None]


@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_camlib_does_what_the_test_expects_or_what_it_says_instead(case: Case) -> None:
    assert case.check is not None
    case.check()


def test_no_test_is_counted_twice() -> None:
    assert len({(case.peer, case.test) for case in CASES}) == len(CASES)
