"""What an Arrow file unpacks to, read off its messages without unpacking them.

A compressed buffer begins with its size once unpacked, which the library reserves before it looks
at anything else. Footer and messages are flatbuffers: tables that find their fields by offsets.

Source: the columnar format of Apache Arrow, "IPC file format", format/File.fbs and Message.fbs.
"""

import struct
from collections.abc import Iterator

FOOTER = struct.Struct("<i6s")
"""Last in a file: bytes of the footer before it, and the magic word."""
DICTIONARIES, BATCHES = 2, 3
"""Fields of Footer: lists of blocks."""
BLOCK = struct.Struct("<qi4xq")
"""Where a message begins, bytes before its body, bytes of its body."""
HEADER, DATA, BUFFERS, COMPRESSION = 2, 1, 2, 3
"""Fields of Message, of DictionaryBatch, and two of RecordBatch."""
PREFIX = 8
"""Bytes before the flatbuffer of a message; as many say the size of a buffer once unpacked."""


def unpacked_bytes(content: bytes) -> int:
    """Bytes that the compressed buffers of an Arrow file take once unpacked.

    Returns:
        The sum; 0 where nothing is compressed.

    Raises:
        ValueError: the file is torn.
    """
    try:
        length, _ = FOOTER.unpack_from(content, len(content) - FOOTER.size)
        footer = content[len(content) - FOOTER.size - length : len(content) - FOOTER.size]
        root = _follow(footer, 0)
        size = 0
        for field in (DICTIONARIES, BATCHES):
            for begin, before, _ in _blocks(footer, root, field):
                size += _of_message(content, begin, begin + before, field == DICTIONARIES)
        return size
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("its footer or a message is torn") from error


def _blocks(footer: bytes, root: int, field: int) -> Iterator[tuple[int, int, int]]:
    listed = _field(footer, root, field)
    if listed is not None:
        begin = _follow(footer, listed)
        (count,) = struct.unpack_from("<I", footer, begin)
        yield from (BLOCK.unpack_from(footer, begin + 4 + BLOCK.size * at) for at in range(count))


def _of_message(content: bytes, begin: int, body: int, dictionary: bool) -> int:
    """Of one message, whose body is at `body`."""
    held = content[begin + PREFIX : body]
    batch = _field(held, _follow(held, 0), HEADER)
    if dictionary and batch is not None:
        batch = _field(held, _follow(held, batch), DATA)
    if batch is None:
        return 0
    table = _follow(held, batch)
    listed = _field(held, table, BUFFERS)
    if listed is None or _field(held, table, COMPRESSION) is None:
        return 0
    first = _follow(held, listed)
    (count,) = struct.unpack_from("<I", held, first)
    numbers = struct.unpack_from(f"<{2 * count}q", held, first + 4)
    size = 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if length >= PREFIX:
            size += max(0, struct.unpack_from("<q", content, body + offset)[0])
    return size


def _follow(held: bytes, at: int) -> int:
    """Where the offset at `at` leads."""
    return int(at + struct.unpack_from("<I", held, at)[0])


def _field(held: bytes, table: int, number: int) -> int | None:
    """Where a field of a table stands; None where it has none."""
    fields = table - int(struct.unpack_from("<i", held, table)[0])
    place = 4 + 2 * number
    if place + 2 > struct.unpack_from("<H", held, fields)[0]:
        return None
    (offset,) = struct.unpack_from("<H", held, fields + place)
    return table + int(offset) if offset else None
