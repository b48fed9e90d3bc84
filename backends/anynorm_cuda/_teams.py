"""How many threads share a set, and where they hold it: the table that kernels are chosen by.

It follows from the length of a set, the dtype and the model of the device alone, never from how many sets there are: so
neither do the bits of a set. Vectors are of 16 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

REGISTERS, MEMORY = 1, 2

# Threads that take a chunk of a set of which no team can hold all.
CHUNK = 256

# Of columns a block takes so many vectors of a row, or twice as many: 128 bytes, the least that is read at full speed.
LANES, COLUMN_THREADS = 8, 256

# Vectors that a block holds: 64 KiB, and twice as many where sets take all blocks that can make a cluster.
LARGEST = 4096


class Device(NamedTuple):
    """What the table asks of a device."""

    arch: int  # compute capability: 90 is 9.0
    processors: int
    shared: int  # bytes of memory that the threads of a block may share

    @property
    def clusters(self) -> tuple[int, ...]:
        """How many blocks can write to each other's shared memory, ascending."""
        return (1, 2, 4, 8) if self.arch >= 90 else (1,)


class Team(NamedTuple):
    """The macros of kernels/team.cu and kernels/lines.cu."""

    lanes: int
    units: int
    sets: int
    ctas: int
    items: int
    hold: int
    chunked: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.lanes * self.units * self.sets

    def room(self, tensors: int) -> int:
        """Return the bytes of shared memory that a block holds so many tensors in."""
        return 16 * tensors * self.items * self.threads if self.hold == MEMORY else 0


class Strip(NamedTuple):
    """Who holds columns of a table that are side by side, all rows of them: the macros of kernels/columns.cu."""

    lanes: int
    columns: int
    ctas: int
    items: int
    hold: int

    def room(self, tensors: int) -> int:
        """Return the bytes of shared memory that a block holds so many tensors in."""
        return 16 * tensors * self.items * COLUMN_THREADS if self.hold == MEMORY else 0


def forward_team(lines: int, vectors: int, device: Device) -> Team:
    """Return who normalizes a set of so many lines of so many vectors."""
    lanes = _lanes(vectors)
    pieces = lines * -(-vectors // lanes)
    if pieces <= 8:
        return Team(lanes, 1, (256 if pieces == 1 else 128) // lanes, 1, pieces, REGISTERS)
    if pieces * lanes <= 2048:
        return _block(lanes, pieces, 8, 256)
    return _held(lanes, pieces, 1, device) or chunk_team(vectors, 8)


def gradient_team(lines: int, vectors: int, device: Device) -> Team:
    """Return who computes the gradients of a set, of which x and dy are held."""
    lanes = _lanes(vectors)
    pieces = lines * -(-vectors // lanes)
    if pieces <= 4:
        return Team(lanes, 1, 128 // lanes, 1, pieces, REGISTERS)
    if pieces * lanes <= 1024:
        return _block(lanes, pieces, 4, 256)
    return _held(lanes, pieces, 2, device) or chunk_team(vectors, 4)


def chunk_team(vectors: int, items: int) -> Team:
    """Return who takes a chunk of a set, of lines of so many vectors: a block, so many vectors a thread."""
    lanes = _lanes(vectors)
    return Team(lanes, CHUNK // lanes, 1, 1, items, MEMORY, chunked=True)


def parameter_team(vectors: int, device: Device) -> Team | None:
    """Return who computes the gradients of sets of one line along which the weight lies; None if it is too long."""
    if vectors <= 32:
        lanes = max(8, _lanes(vectors))
        return Team(lanes, 1, 256 // lanes, 1, 1, MEMORY)
    if vectors <= 64:
        return Team(32, 2, 2, 1, 1, MEMORY)
    if vectors <= 128:
        return Team(32, 4, 1, 1, 1, MEMORY)
    items = 1 if vectors <= 256 else 2 if vectors <= 512 else 4
    ctas = _power(-(-vectors // 1024))
    if ctas > device.clusters[-1]:
        return None
    return Team(32, 8, 1, ctas, items, MEMORY)


def column_strip(rows: int, of_set: int, per_vector: int, tensors: int, device: Device) -> Strip | None:
    """Return who holds tables of so many rows, whose sets are so many columns each; None if nobody can."""

    def used(lanes: int) -> int:
        return lanes * per_vector // of_set * of_set

    # Of two that leave as few lanes idle, that whose strips begin at whole vectors.
    lanes = max((LANES, 2 * LANES), key=lambda lanes: (used(lanes) / lanes, used(lanes) % per_vector == 0))
    pieces = -(-rows // (COLUMN_THREADS // lanes))
    if not used(lanes):
        return None
    if pieces * tensors <= 2:
        return Strip(lanes, used(lanes), 1, pieces, REGISTERS)
    # The source declares up to 27 KiB beside.
    most = (device.shared - (27 << 10)) // (16 * tensors * COLUMN_THREADS)
    for ctas in device.clusters:
        items = -(-pieces // ctas)
        # A thread adds up to 16 numbers one after the other: of more the roundings would not be within the bound.
        if items <= (8 // tensors if ctas < device.clusters[-1] else 16) and items <= most:
            return Strip(lanes, used(lanes), ctas, items, MEMORY)
    return None


def _held(lanes: int, pieces: int, tensors: int, device: Device) -> Team | None:
    """Return a team that holds a set in shared memory; None if no team can."""
    threads = 512
    # The source declares up to 4 KiB beside.
    most = (device.shared - 4096) // (16 * tensors)
    for ctas in device.clusters:
        units = threads // lanes
        items = -(-pieces // (units * ctas))
        limit = (LARGEST if ctas < device.clusters[-1] else 2 * LARGEST) // tensors
        if items * threads <= min(limit, most):
            return Team(lanes, units, 1, ctas, items, MEMORY)
    return None


def _block(lanes: int, pieces: int, items: int, threads: int) -> Team:
    """Return a block that holds a set in registers, so many vectors a thread."""
    units = min(max(_power(-(-pieces // items)), 32 // lanes), threads // lanes)
    return Team(lanes, units, 1, 1, -(-pieces // units), REGISTERS)


def _lanes(vectors: int) -> int:
    return min(32, _power(vectors))


def _power(number: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << (number - 1).bit_length()
