# C types of codec.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.buffer cimport Buffer

cdef uint64_t M64
cdef int _NULL, _BOOL, _INT32, _INT64, _UINT64, _IPV4, _IPV6, _STRING, _BINARY


@cython.final
cdef class Reader:
    cdef public bytes data
    cdef const unsigned char *p
    cdef public Py_ssize_t pos, end, start, size
    cdef public int type
    cdef public uint64_t number

    @cython.locals(data=bytes)
    cpdef void reset(self, bytes data, Py_ssize_t pos, Py_ssize_t end) noexcept
    cpdef int byte(self) except -1
    @cython.locals(value=uint64_t, _=int)
    cpdef uint64_t u32(self) except? 7777777777777777777
    @cython.locals(value=uint64_t, byte=uint64_t, shift=int)
    cpdef uint64_t varint(self) except? 7777777777777777777
    @cython.locals(size=uint64_t)
    cpdef int string(self) except -1
    @cython.locals(kind=int)
    cpdef int typed(self) except -1


@cython.final
cdef class Writer(Buffer):
    @cython.locals(o='unsigned char *', pos=Py_ssize_t)
    cpdef void varint(self, uint64_t value) noexcept
    cpdef void string(self, bytes value) noexcept
    cpdef void typed_string(self, bytes value) noexcept
    cpdef void u32(self, Py_ssize_t at, uint64_t value) noexcept
