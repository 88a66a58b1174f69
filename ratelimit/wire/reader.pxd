# C types of reader.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t

cdef uint64_t _MASK


@cython.final
cdef class Reader:
    cdef public bytes data
    cdef const unsigned char *p
    cdef public Py_ssize_t pos, end, start, size

    @cython.locals(data=bytes)
    cpdef void reset(self, bytes data, Py_ssize_t pos, Py_ssize_t end) noexcept
    cpdef int byte(self) except -1
    @cython.locals(value=uint64_t, _=int)
    cpdef uint64_t u32(self) except? 7777777777777777777
    @cython.locals(value=uint64_t, byte=uint64_t, shift=int)
    cpdef uint64_t varint(self) except? 7777777777777777777
    @cython.locals(size=uint64_t)
    cpdef int string(self) except -1
