"""Packed profiles taken apart and put together in plain Python, as the head of features/kernel.py describes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

_SHAPE_AT = 7
_FIXED_NUMBERS = 4
_SIGN = 1 << 63


@dataclass(frozen=True)
class Packed:
    """What stands in a packed profile. `numbers` are first, last and newest time, lengths, rows, memories, sources."""

    version: int
    digest: int
    shape: bytes
    numbers: tuple[int, ...]

    @property
    def source_count(self) -> int:
        """How many source partitions it contains events of: the first of the lengths."""
        return self.numbers[_FIXED_NUMBERS - 1]


def read_packed(state: bytes) -> Packed:
    """Raises ValueError when the bytes end too early or too late."""
    shape_end = _SHAPE_AT + int.from_bytes(state[5:_SHAPE_AT], "little")
    count = int.from_bytes(state[shape_end : shape_end + 4], "little")
    position = shape_end + 4 + (count + 1) // 2
    nibbles = [width for pair in state[shape_end + 4 : position] for width in (pair & 15, pair >> 4)]
    numbers = []
    for width in nibbles[:count]:
        numbers.append(_signed(int.from_bytes(state[position : position + width], "little")))
        position += width
    if position != len(state) or sum(nibbles[count:]) != 0:
        raise ValueError(f"wanted {position} bytes, got {len(state)}")
    return Packed(state[0], int.from_bytes(state[1:5], "little"), state[_SHAPE_AT:shape_end], tuple(numbers))


def write_packed(packed: Packed) -> bytes:
    """The bytes that `read_packed` takes apart, every number in as few bytes as it needs."""
    widths = [((number % (2 * _SIGN)).bit_length() + 7) // 8 for number in packed.numbers]
    return with_widths(packed, widths)


def with_widths(packed: Packed, widths: list[int]) -> bytes:
    """The same with the widths given, which nobody need have chosen well: what does not fit is cut."""
    even = [*widths, 0] if len(widths) % 2 else widths
    head = bytes([packed.version]) + packed.digest.to_bytes(4, "little") + len(packed.shape).to_bytes(2, "little")
    pairs = bytes(low | high << 4 for low, high in zip(even[::2], even[1::2], strict=True))
    body = b"".join(
        (number % (2 * _SIGN)).to_bytes(16, "little")[:width]
        for number, width in zip(packed.numbers, widths, strict=True)
    )
    return head + packed.shape + len(packed.numbers).to_bytes(4, "little") + pairs + body


def sources_of(state: bytes) -> dict[int, int]:
    """{source: newest offset} of a packed profile."""
    packed = read_packed(state)
    tail = packed.numbers[len(packed.numbers) - 2 * packed.source_count :]
    return dict(zip(tail[::2], tail[1::2], strict=True))


def without_sources(state: bytes) -> bytes:
    """The profile as if its events had come from nowhere: what two ways of building it must agree on."""
    packed = read_packed(state)
    numbers = list(packed.numbers[: len(packed.numbers) - 2 * packed.source_count])
    numbers[_FIXED_NUMBERS - 1] = 0
    return write_packed(replace(packed, numbers=tuple(numbers)))


def _signed(value: int) -> int:
    return value - 2 * _SIGN if value >= _SIGN else value
