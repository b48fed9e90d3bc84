"""What a kernel needs of a multiprocessor, read from its cubin, an ELF file. Runs no tool, and knows no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from struct import iter_unpack, unpack_from
from typing import NamedTuple

# Of the records in the section .nv.info: how one with a length begins, and the two that say these numbers of a kernel.
SIZED = 4
STACK, REGISTERS = 0x12, 0x2F

NOBITS = 8  # a section of which the file has no bytes
RESERVED = 1024  # bytes of shared memory that are the system's own, from sm_90 on counted in a kernel's section


class Resources(NamedTuple):
    """What one thread of a kernel needs, and one block."""

    registers: int
    frame: int  # bytes of a thread's stack, that of called functions included: spilled registers or local arrays
    shared: int  # bytes of shared memory that the source declares


class _Section(NamedTuple):
    name: str
    kind: int
    content: bytes
    size: int


def resources(cubin: bytes) -> dict[str, Resources]:
    """Return what each kernel in a cubin needs."""
    if cubin[:5] != b"\x7fELF\x02":
        msg = f"no cubin: it begins with {cubin[:16]!r}"
        raise ValueError(msg)
    sections = {section.name: section for section in _sections(cubin)}
    symbols = list(_symbols(sections[".symtab"].content, sections[".strtab"].content))
    facts: dict[tuple[str, int], int] = {}
    for attribute, content in _records(sections[".nv.info"].content):
        if attribute in (STACK, REGISTERS):
            symbol, number = unpack_from("<2I", content)
            facts[symbols[symbol], attribute] = number
    system = RESERVED if ".nv.shared.reserved.0" in sections else 0
    found = {}
    for name in (name.removeprefix(".nv.info.") for name in sections if name.startswith(".nv.info.")):
        declared = sections.get(f".nv.shared.{name}")
        found[name] = Resources(
            facts[name, REGISTERS],
            facts[name, STACK],
            0 if declared is None else declared.size - system,
        )
    return found


def _sections(cubin: bytes) -> Iterator[_Section]:
    (begins,) = unpack_from("<Q", cubin, 40)
    size, count, of_names = unpack_from("<3H", cubin, 58)
    headers = [unpack_from("<2I4Q", cubin, begins + size * index) for index in range(count)]
    names = headers[of_names][4]
    for name, kind, _, _, offset, length in headers:
        content = b"" if kind == NOBITS else cubin[offset : offset + length]
        yield _Section(_string(cubin, names + name), kind, content, length)


def _symbols(table: bytes, names: bytes) -> Iterator[str]:
    return (_string(names, name) for name, *_ in iter_unpack("<I2BH2Q", table))


def _records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the records of .nv.info: a form, an attribute, then two bytes that are a value, or the length of one."""
    offset = 0
    while offset < len(content):
        form, attribute, length = unpack_from("<2BH", content, offset)
        offset += 4
        if form == SIZED:
            yield attribute, content[offset : offset + length]
            offset += length


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()
