"""Decodes HdrHistogram V2 histograms, as `ringway latency --json` reports them and every HdrHistogram tool writes them.

The encoding: github.com/HdrHistogram/HdrHistogram, AbstractHistogram's encodeIntoByteBuffer and
encodeIntoCompressedByteBuffer, V2.
"""

from __future__ import annotations

import base64
import struct
import zlib

_COOKIE_PLAIN, _COOKIE_COMPRESSED = 0x1C849303, 0x1C849304
_WORD_SIZE_MARK = 0x10  # set by writers in the place of V0's word size
_HEADER = struct.Struct(">iiiiqqd")  # cookie, payload bytes, index offset, digits, lowest, highest, ratio


class Histogram:
    """Counts per value; `buckets` is an ascending list of (highest value equivalent to the bucket's, count > 0)."""

    def __init__(self, buckets: list[tuple[int, int]]):
        self.buckets = buckets
        self.count = sum(count for _, count in buckets)

    def curve(self, points: int = 240) -> list[tuple[float, int]]:
        """(1 / (1 - quantile), value) for a percentile plot: at most about `points` of them, the tail whole."""
        curve: list[tuple[float, int]] = []
        seen, step = 0, 10 ** (max(1, len(str(self.count))) / points)
        for value, count in self.buckets:
            # The bucket's values span the quantiles (seen, seen + count]; its top is where it ends.
            seen += count
            left = self.count - seen
            inverse = self.count / left if left else 2.0 * self.count
            if not curve or left == 0 or inverse >= curve[-1][0] * step:
                curve.append((inverse, value))
        return curve


def decode(text: str) -> Histogram:
    """One histogram as it stands in a histogram log: base64, compressed or not. Raises ValueError for anything else."""
    try:
        return Histogram(_decode(base64.b64decode(text, validate=True)))
    except (IndexError, struct.error, zlib.error) as error:
        raise ValueError(f"not an HdrHistogram V2 encoding: {error}") from error


def _decode(data: bytes) -> list[tuple[int, int]]:
    """-> ascending (highest equivalent value, count)."""
    cookie, length = struct.unpack_from(">ii", data)
    if cookie & ~_WORD_SIZE_MARK == _COOKIE_COMPRESSED:
        data = zlib.decompress(data[8 : 8 + length])
    cookie, length, offset, digits, lowest, _highest, _ratio = _HEADER.unpack_from(data)
    if cookie & ~_WORD_SIZE_MARK != _COOKIE_PLAIN:
        raise ValueError(f"unknown cookie {cookie:#x}")
    if offset != 0:
        raise ValueError("shifted histograms are not supported")
    counts = _counts(data[_HEADER.size : _HEADER.size + length])
    # HdrHistogram's geometry: sub-buckets cover 2 * 10^digits, each further bucket doubles their width.
    unit_magnitude = max(lowest, 1).bit_length() - 1
    half_magnitude = (2 * 10**digits - 1).bit_length() - 1
    half = 1 << half_magnitude

    def highest_equivalent(index: int) -> int:
        bucket = (index >> half_magnitude) - 1
        sub_bucket = (index & (half - 1)) + half
        if bucket < 0:
            bucket, sub_bucket = 0, sub_bucket - half
        shift = bucket + unit_magnitude
        return ((sub_bucket + 1) << shift) - 1

    return [(highest_equivalent(index), count) for index, count in counts]


def _counts(payload: bytes) -> list[tuple[int, int]]:
    """ZigZag LEB128 words: a count, or minus the length of a run of zeros -> (index, count) of the others."""
    counts, index, at = [], 0, 0
    while at < len(payload):
        word = shift = 0
        while True:
            byte = payload[at]
            at += 1
            if shift == 56:  # the ninth byte holds eight bits
                word |= byte << shift
                break
            word |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        value = (word >> 1) ^ -(word & 1)
        if value < 0:
            index -= value
        else:
            if value:
                counts.append((index, value))
            index += 1
    return counts
