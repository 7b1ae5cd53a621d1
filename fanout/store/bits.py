"""Bitmaps by ordinal in the order in which Redis keeps bits: the first is a byte's highest."""

from __future__ import annotations

from collections.abc import Iterable


def bits_of(ordinals: Iterable[int]) -> bytes:
    """A bitmap with the bits of `ordinals` set."""
    bits = bytearray()
    for ordinal in ordinals:
        set_bit(bits, ordinal)
    return bytes(bits)


def set_bit(bits: bytearray, ordinal: int) -> None:
    """Set a bit; the bitmap grows as needed."""
    place = ordinal >> 3
    if place >= len(bits):
        bits.extend(bytes(place + 1 - len(bits)))
    bits[place] |= 128 >> (ordinal & 7)


def has_bit(bits: bytes | bytearray, ordinal: int) -> bool:
    """Whether a bit is set; those beyond the end are not."""
    place = ordinal >> 3
    return place < len(bits) and bool(bits[place] & (128 >> (ordinal & 7)))


def ordinals_in(bits: bytes | bytearray) -> set[int]:
    """The ordinals whose bits are set."""
    return {
        8 * place + bit
        for place, byte in enumerate(bits)
        if byte
        for bit in range(8)
        if byte & (128 >> bit)
    }


def zeros_below(bits: bytes | bytearray, count: int) -> set[int]:
    """The ordinals below `count` whose bits are not set."""
    found: set[int] = set()
    for place in range((count + 7) >> 3):
        byte = bits[place] if place < len(bits) else 0
        if byte != 255:
            found.update(8 * place + bit for bit in range(8) if not byte & (128 >> bit))
    return {ordinal for ordinal in found if ordinal < count}
