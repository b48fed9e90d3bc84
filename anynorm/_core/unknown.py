"""Array libraries without a backend: what tells whether one follows the standard, and whose fault a failure is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from anynorm._core.arrays import Namespace, Operand, class_name
from anynorm._core.frames import is_own
from anynorm._core.ops import Ops


def namespace(x: object) -> tuple[str, Any] | None:
    """Return the library's name and its standard namespace; None if `x` is not an array."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        # Not by array_namespace, whose caches torch.compile warns of where it meets anynorm for the first time.
        from array_api_compat import torch as xp

        return "torch", xp
    import array_api_compat  # here, because it takes most of the time of `import anynorm`

    try:
        xp = array_api_compat.array_namespace(x)
    except TypeError:
        return None
    if xp.__name__ == "jax.numpy" and type(x).__module__ == "numpy":
        # An array of float0, JAX's "no gradient", which is NumPy's: its type says nothing of those that follow.
        xp = array_api_compat.array_namespace(cast("Any", x).view("V1"))
    # array-api-compat takes both for plain arrays: it would drop the mask and multiply matrices.
    if xp.__name__ == "array_api_compat.numpy" and {"MaskedArray", "matrix"} & {
        cls.__name__ for cls in type(x).__mro__
    }:
        return None
    name = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    return name, xp


class UntestedOps(Ops):
    """The standard's own calls on a library that nobody has tested, with errors that say whose fault a failure is."""

    def __init__(self, name: str, xp: Namespace) -> None:
        super().__init__(name, xp)
        self._passed: set[Any] = set()  # functions that returned arrays of the library's own

    def on_device(self, x: Operand, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Call a function. A library's own errors, for want of memory and the like, are left as they are."""
        try:
            result = function(*arguments, **options)
            code = getattr(function, "__code__", function)  # of a lambda, which is another function each time
            if code not in self._passed:
                for part in result if isinstance(result, tuple) else (result,):
                    if hasattr(part, "dtype"):
                        _check_own(part, self.name)
                self._passed.add(code)
        except (TypeError, AttributeError, LookupError, NotImplementedError, ImportError) as error:
            if is_own(error):
                raise
            msg = (
                f"anynorm: {self.name} does not follow the array API standard in what a norm asks of {class_name(x)}: "
                f"{error}. Convert them first, e.g. to NumPy's."
            )
            raise TypeError(msg) from error
        return result


def fault_of(name: str, xp: Namespace) -> str | None:
    """Return what an untested library does against the standard, on two numbers, or None.

    Where such a step gave arrays of another library, the next may go wrong without a word.
    """
    try:
        two = xp.ones((1, 2))
        for made in (xp.max(two, axis=1, keepdims=True), xp.where(two > 0, two, two), xp.reshape(two, (2, 1))):
            _check_own(made, name)
    except Exception as error:  # whatever a stranger's library raises
        return str(error)
    return None


def _check_own(array: object, name: str) -> None:
    """Raise a TypeError unless an array is of the library of this name."""
    found = namespace(array)
    if found is None or found[0] != name:
        msg = f"it makes {class_name(array)} of its own arrays"
        raise TypeError(msg)
