# C types of rule.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t

cdef uint64_t RING, SECOND
cdef int WEIGHT_BITS


@cython.final
cdef class Rule:
    cdef readonly object limit
    cdef bytes name, told
    cdef Py_ssize_t name_size
    cdef readonly int index
    cdef public int place
    cdef uint64_t nodes, share, near
    cdef public uint64_t rate
    cdef uint64_t sub_window, ipv4_mask, hi_mask, lo_mask
    cdef bint ladder, strict, shadow, headers
    cdef readonly bint fused
    cdef uint64_t seconds, refill, told_rate
    cdef uint64_t now, tick, elapsed, bucket, oldest, weight
    cdef public uint64_t asked, allowed, throttled, blocked, denied
    cdef public uint64_t seen, refused, seen_before, refused_before

    cpdef change(self, object limit)
    cpdef blow(self, bint fused)
    cpdef void minute(self) noexcept
    cpdef void at(self, uint64_t now) noexcept
