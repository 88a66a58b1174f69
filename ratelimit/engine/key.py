"""The key of a client: the 128 bits of an address, or of a keyed hash of a string.

An IPv4 address becomes an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2), so that a client is
the same whichever IP version HAProxy's socket has. So does an address of ``64:ff9b::/96``, in which
NAT64 puts the IPv4 address of its client (RFC 6052, section 2.1): as IPv6 addresses, all IPv4
clients behind NAT64 would be one /64. A string is identified by its 128-bit SipHash-2-4 (Aumasson
and Bernstein, "SipHash: a fast short-input PRF", 2012): without the secret, an attacker can't find
two strings that share a counter.
"""

from __future__ import annotations

from ratelimit.engine.layout import ADDRESS, M64, MAPPED, TEXT

_V0 = 0x736F6D6570736575
_V1 = 0x646F72616E646F6D
_V2 = 0x6C7967656E657261
_V3 = 0x7465646279746573
_NAT64 = 0x0064FF9B00000000  # the upper half of 64:ff9b::/96


class Key:
    """The key of the current message; one object is reused.

    ``secret`` is 16 bytes. ``kind`` is ADDRESS or TEXT; ``hi`` and ``lo`` are the upper and lower
    64 bits.
    """

    def __init__(self, secret: bytes) -> None:
        self.rekey(secret)
        self.kind = 0
        self.hi = 0
        self.lo = 0
        self.v0 = self.v1 = self.v2 = self.v3 = 0
        self.written = b""
        self.digits = bytearray(20)
        self.parts = bytearray(16)

    def rekey(self, secret: bytes) -> None:
        """Set another secret; all strings become other clients."""
        self.k0 = int.from_bytes(secret[:8], "little")
        self.k1 = int.from_bytes(secret[8:16], "little")

    def ipv4(self, data: bytes, start: int) -> None:
        """Set the 4 bytes of an IPv4 address."""
        p = data
        lo = MAPPED
        for i in range(4):
            lo = lo << 8 | p[start + i]
        self.kind = ADDRESS
        self.hi = 0
        self.lo = lo

    def ipv6(self, data: bytes, start: int) -> None:
        """Set the 16 bytes of an IPv6 address."""
        p = data
        hi = 0
        lo = 0
        for i in range(8):
            hi = hi << 8 | p[start + i]
            lo = lo << 8 | p[start + 8 + i]
        self.take(hi, lo)

    def take(self, hi: int, lo: int) -> None:
        """Set the two halves of an IPv6 address."""
        if hi == _NAT64 and lo >> 32 == 0:
            hi = 0
            lo |= MAPPED << 32
        self.kind = ADDRESS
        self.hi = hi
        self.lo = lo

    def text(self, data: bytes, start: int, size: int) -> None:
        """Set a string; a string that is an address becomes that address."""
        if not (2 <= size <= 45 and self.address(data, start, start + size)):
            self.binary(data, start, size)

    def number(self, value: int) -> None:
        """Set a 64-bit integer in two's complement, as its decimal string.

        The only key that creates an object per check; integer keys are rare.
        """
        negative = value >> 63 != 0
        if negative:
            value = (0 - value) & M64
        at = 20
        while True:
            at -= 1
            self.digits[at] = 48 + value % 10
            value //= 10
            if value == 0:
                break
        if negative:
            at -= 1
            self.digits[at] = 45
        self.written = bytes(self.digits)[at:]
        self.binary(self.written, 0, 20 - at)

    def binary(self, data: bytes, start: int, size: int) -> None:
        """Set ``size`` bytes, by their SipHash."""
        p = data
        self.v0 = self.k0 ^ _V0
        self.v1 = self.k1 ^ _V1 ^ 0xEE
        self.v2 = self.k0 ^ _V2
        self.v3 = self.k1 ^ _V3
        whole = size - size % 8
        i = 0
        while i < whole:
            word = 0
            for j in range(8):
                byte = p[start + i + j]
                word |= byte << 8 * j
            self.absorb(word)
            i += 8
        word = size & 0xFF
        word <<= 56
        for j in range(size - whole):
            byte = p[start + whole + j]
            word |= byte << 8 * j
        self.absorb(word)
        self.v2 ^= 0xEE
        self.rounds(4)
        self.hi = self.v0 ^ self.v1 ^ self.v2 ^ self.v3
        self.v1 ^= 0xDD
        self.rounds(4)
        self.lo = self.v0 ^ self.v1 ^ self.v2 ^ self.v3
        self.kind = TEXT

    def absorb(self, word: int) -> None:
        self.v3 ^= word
        self.rounds(2)
        self.v0 ^= word

    def rounds(self, count: int) -> None:
        v0 = self.v0
        v1 = self.v1
        v2 = self.v2
        v3 = self.v3
        for _ in range(count):
            v0 = (v0 + v1) & M64
            v1 = ((v1 << 13) | (v1 >> 51)) & M64 ^ v0
            v0 = ((v0 << 32) | (v0 >> 32)) & M64
            v2 = (v2 + v3) & M64
            v3 = ((v3 << 16) | (v3 >> 48)) & M64 ^ v2
            v0 = (v0 + v3) & M64
            v3 = ((v3 << 21) | (v3 >> 43)) & M64 ^ v0
            v2 = (v2 + v1) & M64
            v1 = ((v1 << 17) | (v1 >> 47)) & M64 ^ v2
            v2 = ((v2 << 32) | (v2 >> 32)) & M64
        self.v0 = v0
        self.v1 = v1
        self.v2 = v2
        self.v3 = v3

    def address(self, data: bytes, start: int, end: int) -> bool:
        """Set ``data[start:end]`` if it is an address as text (RFC 4291, section 2.2); else return
        false.
        """
        p = data
        filled = 0  # known bytes of the address
        gap = -1  # position of "::" in them
        digits = 0
        group = 0
        pos = start
        for i in range(16):
            self.parts[i] = 0
        if p[pos] == 58:  # ":" may come first only as half of "::"
            if p[pos + 1] != 58:
                return False
            gap = 0
            pos += 2
        group_start = pos
        while pos < end:
            c = p[pos]
            pos += 1
            if c == 46:  # ".": the rest, from the start of this group, is an IPv4 address
                quad = self.dotted(data, group_start, end)
                if quad < 0:
                    return False
                if filled == 0 and gap < 0:
                    self.kind = ADDRESS
                    self.hi = 0
                    self.lo = (MAPPED << 32) | quad
                    return True
                if filled > 12:
                    return False
                for i in range(4):
                    self.parts[filled + i] = quad >> (24 - 8 * i) & 0xFF
                filled += 4
                digits = 0
                break
            if c == 58:
                if digits == 0 or filled > 12 or pos == end:
                    return False
                self.parts[filled] = group >> 8
                self.parts[filled + 1] = group & 0xFF
                filled += 2
                digits = 0
                group = 0
                if p[pos] == 58:
                    if gap >= 0:
                        return False
                    gap = filled
                    pos += 1
                group_start = pos
                continue
            if 48 <= c <= 57:
                group = group << 4 | c - 48
            elif 97 <= c <= 102:
                group = group << 4 | c - 87
            elif 65 <= c <= 70:
                group = group << 4 | c - 55
            else:
                return False
            digits += 1
            if digits > 4:
                return False
        if digits > 0:
            if filled > 14:
                return False
            self.parts[filled] = group >> 8
            self.parts[filled + 1] = group & 0xFF
            filled += 2
        if gap < 0:
            if filled != 16:
                return False
        else:
            if filled == 16:
                return False
            for i in range(1, filled - gap + 1):
                self.parts[16 - i] = self.parts[filled - i]
                self.parts[filled - i] = 0
        hi = 0
        lo = 0
        for i in range(8):
            hi = hi << 8 | self.parts[i]
            lo = lo << 8 | self.parts[8 + i]
        self.take(hi, lo)
        return True

    def dotted(self, data: bytes, start: int, end: int) -> int:
        """Return the 32 bits of ``data[start:end]`` as a dotted quad, or -1."""
        p = data
        quad = 0
        octet = 0
        digits = 0
        dots = 0
        for pos in range(start, end):
            c = p[pos]
            if c == 46:
                if digits == 0 or dots == 3:
                    return -1
                quad = quad << 8 | octet
                octet = 0
                digits = 0
                dots += 1
            elif 48 <= c <= 57:
                # A leading zero means octal to some programs and decimal to others: not an address.
                if digits > 0 and octet == 0:
                    return -1
                octet = octet * 10 + c - 48
                digits += 1
                if octet > 255:
                    return -1
            else:
                return -1
        if digits == 0 or dots != 3:
            return -1
        return quad << 8 | octet
