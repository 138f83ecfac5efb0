"""TFRecord files: checksums by their definition, every flipped bit and every cut noticed, and Examples taken apart."""

import numpy as np
import pytest

from ssmvdm.data.crc32c import LANES, SHORT, crc32c
from ssmvdm.data.tfrecord import byte_features, read_records
from tests.data_tests import made


def test_known_checksums():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize(
    "length", [1, 3, SHORT - 1, SHORT, SHORT + 1, LANES - 1, LANES, LANES + 1, 2 * LANES, 3 * LANES + 17]
)
def test_the_checksum_is_the_bit_by_bit_one(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == made.crc_bit_by_bit(data)


def test_leading_zeros_count():
    assert len({crc32c(bytes(length)) for length in range(SHORT, SHORT + 20)}) == 20


def test_records_come_back(tmp_path):
    records = [b"", b"one", np.random.default_rng(0).bytes(5000)]
    (tmp_path / "a.tfrecord").write_bytes(made.tfrecord(records))
    assert list(read_records(tmp_path / "a.tfrecord")) == records


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path, record = tmp_path / "a.tfrecord", b"some bytes"
    whole = made.tfrecord([record, record])
    half = len(whole) // 2
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        position = half if bit >= 8 * half else 0
        with pytest.raises(ValueError, match=f"the record at byte {position} is (damaged|truncated)"):
            list(read_records(path))
    for length in set(range(1, len(whole))) - {half}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is (damaged|truncated)"):
            list(read_records(path))


def test_a_length_beyond_the_file_takes_no_memory(tmp_path):
    whole = made.tfrecord([b"x" * (1 << 16)])
    path = tmp_path / "a.tfrecord"
    path.write_bytes(whole[:200])
    with pytest.raises(ValueError, match="the record at byte 0 is truncated"):
        next(read_records(path))


def test_features():
    images = [b"first", b"", b"x" * 300]
    message = made.example(video=images, actions=[1, 2, 300], name=[b"walk"])
    assert byte_features(message) == {"video": images, "name": [b"walk"]}
    assert byte_features(b"") == {}


def test_fields_of_other_kinds_are_passed_over():
    number = made.varint(5 << 3) + b"\x96\x01"
    fixed = made.varint(6 << 3 | 5) + bytes(4) + made.varint(7 << 3 | 1) + bytes(8)
    assert byte_features(number + fixed + made.example(video=[b"frame"])) == {"video": [b"frame"]}


def test_what_is_no_example_is_refused():
    """Every cut of a message, and a thousand random ones: a value or a ValueError, in bounded time."""
    message = made.example(video=[b"frame" * 40])
    for length in range(1, len(message)):
        with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
            byte_features(message[:length])
    rng = np.random.default_rng(0)
    for _ in range(1000):
        try:
            byte_features(rng.bytes(60))
        except ValueError:
            continue
