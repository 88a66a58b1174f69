# C types of messages.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.wire.reader cimport Reader

cdef int _CONTROL, _ERROR, _TABLE, _VARIABLE, _MAX_DIGITS
cdef uint64_t _MAX_LENGTH


@cython.final
cdef class Messages:
    cdef bytearray _kept
    cdef Py_ssize_t _wanted
    cdef Reader _reader
    cdef readonly bytes data
    cdef public Py_ssize_t pos
    cdef readonly Py_ssize_t start, end
    cdef readonly int group, kind

    cpdef bint waiting(self) noexcept
    cpdef bint feed(self, bytes data) except -1
    @cython.locals(p='const unsigned char *', pos=Py_ssize_t, size=Py_ssize_t, group=int)
    cpdef bint next(self) except -1
    cpdef int keep(self) except -1
    cpdef int drop(self) except -1
    @cython.locals(p='const unsigned char *', i=Py_ssize_t, length=uint64_t)
    cdef bint _measure(self, Py_ssize_t pos, Py_ssize_t size) except -1
