# C types of sources.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.query cimport Query
from ratelimit.engine.rule cimport Rule

cdef int _IPV6, _REQUESTS


@cython.final
cdef class Origin:
    cdef readonly str name
    cdef readonly uint64_t index
    cdef public uint64_t pid, number
    cdef public bint connected, counting, synced, whole, cleared
    cdef public uint64_t asked, cleared_at, settled


@cython.final
cdef class Feed:
    cdef readonly Rule rule
    cdef Query query
    cdef readonly int counter
    cdef readonly uint64_t open
    cdef bint subtract, at_rate


@cython.final
cdef class Source:
    cdef readonly Origin origin
    cdef readonly object definition
    cdef readonly str name
    cdef uint64_t ident, number, expire
    cdef readonly list feeds
    cdef list siblings
    cdef int key_type
    cdef int[::1] places, rates
    cdef uint64_t[::1] periods
    cdef bint opens, clocks, fetches
    cdef readonly bint wrong

    cpdef feed(self, list feeds)
