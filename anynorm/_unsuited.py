"""Arrays that mean more, or other, than the numbers they hold: masked, sparse, or with a unit.

They are known by what they have, so that nothing is imported and a library not yet written is known as well. Each
answer is the rest of a sentence that begins with the argument's name, and what it advises gives right numbers.
"""

from __future__ import annotations

from anynorm._array import dtype_name


def unsuited(x: object, *, chunks: bool = False) -> str | None:
    """Return why no norm can take an array like x, or None; with `chunks` one whose chunks are like x."""
    has = "has chunks of" if chunks else "is"
    if hasattr(x, "mask"):
        fill = "it with dask.array.ma.filled(..., numpy.nan)" if chunks else "it with NaN"
        return (
            f"{has} {kind(x)}, which is masked, and a norm cannot leave elements out. Fill {fill}: sets with a masked "
            "element then come out NaN, the others right. Any other fill counts like data and shifts the rest of its "
            "set."
        )
    if hasattr(x, "nnz"):
        return (
            f"{has} {kind(x)}, whose missing zeros a norm would fill. Convert it first, {_with(_dense(x), x, chunks)}."
        )
    if hasattr(x, "unit") or hasattr(x, "units"):
        number = ".magnitude" if hasattr(x, "magnitude") else ".value"
        return (
            f"{has} {kind(x)}, which has a unit, and eps has none. Pass its numbers, {_with(number, x, chunks)}; "
            "what is normalized has no unit."
        )
    if getattr(type(x), "__array_ufunc__", "absent") is None and hasattr(x, "__array_wrap__"):
        return f"{has} {kind(x)}, which takes no part in NumPy's arithmetic. Convert it first, with numpy.asarray."
    return None


def kind(x: object) -> str:
    """Return the name of x's type as its users know it, such as sparse.COO."""
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__qualname__.rpartition('.')[2]}"


def advised(function: str, x: object) -> str:
    """Return the call that converts the chunks of a Dask array, which are like x."""
    # Dask cannot guess the dtype of what a function makes of such chunks.
    return f'.map_blocks({function}, dtype="{dtype_name(getattr(x, "dtype", "float32"))}")'


def _with(attribute: str, x: object, chunks: bool) -> str:
    return f"with {advised('lambda block: block' + attribute, x) if chunks else attribute}"


def _dense(x: object) -> str:
    return ".toarray()" if hasattr(x, "toarray") else ".todense()"
