"""TFRecord files without TensorFlow: records with checksums, and the part of tf.train.Example that videos use.

A record is its length (8 bytes), the checksum of the length, the data and the checksum of the data, little endian; a
checksum is a CRC-32C, rotated and offset. The data is a protocol buffer Example { Features { map<string, Feature> } },
where a Feature is a list of byte strings, of numbers or of integers.
"""

from collections.abc import Iterator
from pathlib import Path

from ssmvdm.data.crc32c import crc32c

CRC_OFFSET = 0xA282EAD8
BYTES = 2  # the wire type of strings, messages and packed numbers
_FIXED_LENGTHS = {1: 8, 5: 4}  # wire type -> bytes


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file, each verified. ValueError naming the position of what is truncated or damaged."""
    left = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            position = file.tell() - len(header)
            if len(header) < 12 or _masked(header[:8]) != int.from_bytes(header[8:], "little"):
                raise ValueError(f"{path}: the record at byte {position} is damaged")
            length = int.from_bytes(header[:8], "little")
            if length + 4 > left - position - 12:
                raise ValueError(f"{path}: the record at byte {position} is truncated")
            data, checksum = file.read(length), file.read(4)
            if _masked(data) != int.from_bytes(checksum, "little"):
                raise ValueError(f"{path}: the record at byte {position} is damaged")
            yield data


def byte_features(example: bytes) -> dict[str, list[bytes]]:
    """The features of an Example that are lists of byte strings. ValueError for what is not an Example."""
    features = {}
    for number, message in _fields(example):
        for entry_number, entry in _fields(message) if number == 1 else ():
            if entry_number != 1:
                continue
            key_and_value = dict(_fields(entry))
            lists = dict(_fields(key_and_value.get(2, b"")))
            if 1 in lists:
                features[key_and_value.get(1, b"").decode()] = [value for _, value in _fields(lists[1])]
    return features


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, content) of each field that is a string or a message; numbers are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = _varint(message, position)
            continue
        if wire_type == BYTES:
            length, position = _varint(message, position)
        elif wire_type in _FIXED_LENGTHS:
            length = _FIXED_LENGTHS[wire_type]
        else:
            raise ValueError(f"the record is not a tf.train.Example: wire type {wire_type}")
        if length > len(message) - position:
            raise ValueError("the record is not a tf.train.Example: a field is longer than its message")
        if wire_type == BYTES:
            yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("the record is not a tf.train.Example: a number has no end")


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + CRC_OFFSET) & 0xFFFFFFFF
