# C types of writer.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t


@cython.final
cdef class Writer:
    cdef bytearray buffer
    cdef unsigned char *o
    cdef public Py_ssize_t size, pos

    cpdef Py_ssize_t room(self) noexcept
    cpdef bytes take(self)
    cpdef void byte(self, int value) noexcept
    @cython.locals(
        i=Py_ssize_t, source='const unsigned char *', o='unsigned char *', pos=Py_ssize_t,
    )
    cdef void copy(self, bytes value, Py_ssize_t start, Py_ssize_t size) noexcept
    @cython.locals(i=int, o='unsigned char *', pos=Py_ssize_t)
    cdef void little(self, uint64_t value, int size) noexcept
    @cython.locals(o='unsigned char *', pos=Py_ssize_t)
    cpdef void varint(self, uint64_t value) noexcept
    cpdef void string(self, bytes value) noexcept
    cpdef void u32(self, Py_ssize_t at, uint64_t value) noexcept
