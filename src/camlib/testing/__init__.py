"""Checks for your own methods, the same that every method of camlib passes; compare scikit-learn's ``check_estimator``.

:func:`check_method` runs all checks; :func:`checks` lists them, for pytest::

    @pytest.mark.parametrize("check", camlib.testing.checks(MyMethod), ids=str)
    def test_my_method(check):
        check()
"""

from camlib.testing.runner import Check, check_method, checks

__all__ = ["Check", "check_method", "checks"]
