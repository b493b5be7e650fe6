"""The errors camlib raises: each is a CamlibError and the builtin that fits."""


class CamlibError(Exception):
    """Base of every error that camlib raises on purpose."""


class CamlibValueError(CamlibError, ValueError):
    """An argument has the right type but a value that cannot work."""


class CamlibTypeError(CamlibError, TypeError):
    """An argument is of a type that cannot work."""


class CamlibRuntimeError(CamlibError, RuntimeError):
    """The model, or the machine, did something that no argument check could foresee."""


class CamlibWarning(UserWarning):
    """Something works, but not quite as the caller may believe."""
