# C types of codec.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.wire.reader cimport Reader

cdef int _NULL, _BOOL, _INT32, _INT64, _UINT64, _IPV4, _IPV6, _STRING, _BINARY


@cython.final
cdef class Typed:
    cdef Reader reader
    cdef public int type
    cdef public uint64_t number

    @cython.locals(reader=Reader, kind=int)
    cpdef int read(self) except -1
