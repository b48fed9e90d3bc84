"""How many threads share a set, and where they hold it: the table that chooses kernels.

The choice depends on the length of a set, the dtype and the model of the device, never on the number of sets. So the
bits of a set do not depend on the batch around it. A vector has 16 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

REGISTERS, MEMORY = 1, 2  # where a set is held; MEMORY is shared memory

# Threads that take a chunk of a set, where no thread group can hold the set.
CHUNK_THREADS = 256

# A block takes 8 or 16 vectors of a row of columns: 128 bytes are the least that is read at full speed.
LANES, COLUMN_THREADS = 8, 256

# Vectors that a block holds: 64 KiB; the blocks of the largest cluster hold twice as many.
MOST_VECTORS = 4096


class Device(NamedTuple):
    """The properties of a device that the choice depends on."""

    arch: int  # compute capability: 90 is 9.0
    processors: int  # multiprocessors
    shared: int  # bytes of shared memory that a block may have

    @property
    def clusters(self) -> tuple[int, ...]:
        """The numbers of blocks that can write to each other's shared memory, ascending."""
        return (1, 2, 4, 8) if self.arch >= 90 else (1,)


class ThreadGroup(NamedTuple):
    """The macros of kernels/thread_group.cu and kernels/lines.cu."""

    lanes: int  # threads of a subgroup
    subgroups: int  # of a thread group, in a block
    groups: int  # thread groups of a block
    ctas: int  # blocks of a cluster
    items: int  # vectors of a thread
    hold: int  # REGISTERS or MEMORY
    chunked: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.lanes * self.subgroups * self.groups

    def shared_bytes(self, tensors: int) -> int:
        """Return the bytes of shared memory in which a block holds so many tensors."""
        return 16 * tensors * self.items * self.threads if self.hold == MEMORY else 0


class ColumnTile(NamedTuple):
    """Neighbouring columns that a block or a cluster takes: the macros of kernels/columns.cu."""

    lanes: int
    columns: int
    ctas: int
    items: int
    hold: int

    def shared_bytes(self, tensors: int) -> int:
        """Return the bytes of shared memory in which a block holds so many tensors."""
        return 16 * tensors * self.items * COLUMN_THREADS if self.hold == MEMORY else 0


def forward_group(lines: int, vectors: int, device: Device) -> ThreadGroup:
    """Return the thread group that normalizes a set of so many lines of so many vectors."""
    lanes = _lanes(vectors)
    pieces = lines * -(-vectors // lanes)
    if pieces <= 8:
        return ThreadGroup(lanes, 1, (256 if pieces == 1 else 128) // lanes, 1, pieces, REGISTERS)
    if pieces * lanes <= 2048:
        return _in_registers(lanes, pieces, 8, 256)
    return _in_shared_memory(lanes, pieces, 1, device) or chunk_group(vectors, 8)


def backward_group(lines: int, vectors: int, device: Device) -> ThreadGroup:
    """Return the thread group that computes the gradients of a set, and holds x and dy of it."""
    lanes = _lanes(vectors)
    pieces = lines * -(-vectors // lanes)
    if pieces <= 4:
        return ThreadGroup(lanes, 1, 128 // lanes, 1, pieces, REGISTERS)
    if pieces * lanes <= 1024:
        return _in_registers(lanes, pieces, 4, 256)
    return _in_shared_memory(lanes, pieces, 2, device) or chunk_group(vectors, 4)


def chunk_group(vectors: int, items: int) -> ThreadGroup:
    """Return the block that takes a chunk of a set of lines of so many vectors, `items` vectors per thread."""
    lanes = _lanes(vectors)
    return ThreadGroup(lanes, CHUNK_THREADS // lanes, 1, 1, items, MEMORY, chunked=True)


def parameter_group(vectors: int, device: Device) -> ThreadGroup | None:
    """Return the thread group for gradients of sets of one line along which the weight varies; None for long lines."""
    if vectors <= 32:
        lanes = max(8, _lanes(vectors))
        return ThreadGroup(lanes, 1, 256 // lanes, 1, 1, MEMORY)
    if vectors <= 64:
        return ThreadGroup(32, 2, 2, 1, 1, MEMORY)
    if vectors <= 128:
        return ThreadGroup(32, 4, 1, 1, 1, MEMORY)
    items = 1 if vectors <= 256 else 2 if vectors <= 512 else 4
    ctas = _power(-(-vectors // 1024))
    if ctas > device.clusters[-1]:
        return None
    return ThreadGroup(32, 8, 1, ctas, items, MEMORY)


def column_tile(rows: int, set_columns: int, per_vector: int, tensors: int, device: Device) -> ColumnTile | None:
    """Return the tile of whole sets, of `rows` rows and `set_columns` columns each; None if no cluster can hold one."""

    def used(lanes: int) -> int:
        return lanes * per_vector // set_columns * set_columns

    # Of two that leave as few lanes idle, take the one whose tiles begin at whole vectors.
    lanes = max((LANES, 2 * LANES), key=lambda lanes: (used(lanes) / lanes, used(lanes) % per_vector == 0))
    pieces = -(-rows // (COLUMN_THREADS // lanes))
    if not used(lanes):
        return None
    if pieces * tensors <= 2:
        return ColumnTile(lanes, used(lanes), 1, pieces, REGISTERS)
    # The source itself declares up to 27 KiB.
    most = (device.shared - (27 << 10)) // (16 * tensors * COLUMN_THREADS)
    for ctas in device.clusters:
        items = -(-pieces // ctas)
        # A thread adds up to 16 values one after the other: more roundings would not be within the bound.
        if items <= (8 // tensors if ctas < device.clusters[-1] else 16) and items <= most:
            return ColumnTile(lanes, used(lanes), ctas, items, MEMORY)
    return None


def _in_shared_memory(lanes: int, pieces: int, tensors: int, device: Device) -> ThreadGroup | None:
    """Return a thread group that holds a set in shared memory; None if none can."""
    threads = 512
    # The source itself declares up to 4 KiB.
    most = (device.shared - 4096) // (16 * tensors)
    for ctas in device.clusters:
        subgroups = threads // lanes
        items = -(-pieces // (subgroups * ctas))
        limit = (MOST_VECTORS if ctas < device.clusters[-1] else 2 * MOST_VECTORS) // tensors
        if items * threads <= min(limit, most):
            return ThreadGroup(lanes, subgroups, 1, ctas, items, MEMORY)
    return None


def _in_registers(lanes: int, pieces: int, items: int, threads: int) -> ThreadGroup:
    """Return a block that holds a set in registers, about `items` vectors per thread."""
    subgroups = min(max(_power(-(-pieces // items)), 32 // lanes), threads // lanes)
    return ThreadGroup(lanes, subgroups, 1, 1, -(-pieces // subgroups), REGISTERS)


def _lanes(vectors: int) -> int:
    return min(32, _power(vectors))


def _power(number: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << (number - 1).bit_length()
