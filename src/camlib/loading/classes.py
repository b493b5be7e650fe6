"""Classes by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from camlib.errors import CamlibValueError


def class_index(name: str, classes: Sequence[str] | None) -> int:
    """Return the index of a class by its name, whose case does not matter.

    Args:
        name: as in ``classes``.
        classes: names by index; None if they are not known.

    Raises:
        CamlibValueError: names are not known, no class has this name, or several have.

    Example:
        >>> class_index("Tabby", ["dog", "tabby"])
        1
        >>> class_index("crane", ["crane", "dog", "crane"])
        Traceback (most recent call last):
        camlib.errors.CamlibValueError: 2 classes are called 'crane': 0, 2; give the index of one of them
    """
    if classes is None:
        raise CamlibValueError(
            f"the names of the classes are not known, so there is no class {name!r}; give its index, or the names with "
            "classes="
        )
    wanted = name.strip().casefold()
    names = [str(one).strip().casefold() for one in classes]
    found = [index for index, one in enumerate(names) if one == wanted]
    # the names of ImageNet in timm and Hugging Face list synonyms: "tabby, tabby cat"
    found = found or [index for index, one in enumerate(names) if wanted in [part.strip() for part in one.split(",")]]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(map(str, found))
        raise CamlibValueError(f"{len(found)} classes are called {name!r}: {listed}; give the index of one of them")
    close = difflib.get_close_matches(wanted, names, n=3)
    hint = f"did you mean {' or '.join(repr(str(classes[names.index(one)])) for one in close)}?" if close else ""
    raise CamlibValueError(f"none of the {len(names)} classes is called {name!r}; {hint or 'give its index'}")
