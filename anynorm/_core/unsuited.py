"""Arrays that mean more, or other, than the numbers they hold: masked, sparse, or with a unit.

They are known by what they have, so that nothing is imported and a library not yet written is known as well. Each
answer is the rest of a sentence that begins with the argument's name, and what it advises gives right numbers.
"""

from __future__ import annotations

from anynorm._core.arrays import dtype_name


def unsuited(x: object, *, chunks: bool = False) -> str | None:
    """Return why no norm can take an array like x, or None; with `chunks` one whose chunks are like x."""
    has = "has chunks of" if chunks else "is"
    if _has(x, "mask"):
        fill = "it with dask.array.ma.filled(..., numpy.nan)" if chunks else "it with NaN"
        return (
            f"{has} {type_name(x)}, which is masked, and a norm cannot leave elements out. Fill {fill}: sets with a "
            "masked element then come out NaN, the others right. Any other fill counts like data and shifts "
            "the rest of its set."
        )
    if _has(x, "nnz"):
        dense = _by(x, chunks, "toarray()", "todense()") or "by its library's own function"
        return f"{has} {type_name(x)}, whose missing zeros a norm would fill. Convert it first, {dense}."
    if _has(x, "unit") or _has(x, "units"):
        numbers = _by(x, chunks, "magnitude", "value")
        numbers = numbers or f"with {conversion('numpy.asarray', x) if chunks else 'numpy.asarray'}"
        return (
            f"{has} {type_name(x)}, which has a unit, and eps has none. Pass its numbers, {numbers}; "
            "what is normalized has no unit."
        )
    if getattr(type(x), "__array_ufunc__", "absent") is None and hasattr(x, "__array_wrap__"):
        return f"{has} {type_name(x)}, which takes no part in NumPy's arithmetic. Convert it first, with numpy.asarray."
    return None


def may_differ(cls: type) -> bool:
    """Say whether one array of a type may be unsuited and another not, so that each is to be asked."""
    # Slots and properties are the class's own attributes; what has a dict may be given any.
    return cls.__dictoffset__ != 0 or hasattr(cls, "__getattr__") or any(hasattr(cls, name) for name in _MARKS)


_MARKS = ("mask", "nnz", "unit", "units")


def _has(x: object, name: str) -> bool:
    """Say whether an array has an attribute that says something: None is how some say that there is no unit or mask."""
    return getattr(x, name, None) is not None


def type_name(x: object) -> str:
    """Return the name of x's type as its users know it, such as sparse.COO."""
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__qualname__.rpartition('.')[2]}"


def conversion(function: str, x: object) -> str:
    """Return the call that converts the chunks of a Dask array, which are like x."""
    # Dask cannot guess the dtype of what a function makes of such chunks.
    return f'.map_blocks({function}, dtype="{dtype_name(getattr(x, "dtype", "float32"))}")'


def _by(x: object, chunks: bool, *attributes: str) -> str | None:
    """Return how to convert x by the first of these attributes that it has, or None."""
    for attribute in attributes:
        if hasattr(x, attribute.removesuffix("()")):
            return f"with {conversion(f'lambda block: block.{attribute}', x) if chunks else f'.{attribute}'}"
    return None
