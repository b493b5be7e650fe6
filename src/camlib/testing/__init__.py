"""Check a method of your own as camlib checks its own, in the manner of scikit-learn's ``check_estimator``.

:func:`check_method` runs the whole battery; :func:`checks` lists its parts, for pytest::

    @pytest.mark.parametrize("check", camlib.testing.checks(MyMethod), ids=str)
    def test_my_method(check):
        check()
"""

from camlib.testing.runner import Check, check_method, checks

__all__ = ["Check", "check_method", "checks"]
