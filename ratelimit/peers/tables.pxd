# C types of tables.py; plain Python does not read this file.
cimport cython
from ratelimit.peers.updates cimport UpdateReader
from ratelimit.wire.reader cimport Reader

cdef int _PROTOCOL


@cython.final
cdef class Incoming:
    cdef readonly object number
    cdef readonly str name, why
    cdef readonly bytes raw
    cdef readonly object definition
    cdef public UpdateReader reader
    cdef public bint changed


@cython.final
cdef class Tables:
    cdef readonly dict names
    cdef readonly bint fresh
    cdef dict _ids
    cdef list _latest
    cdef Reader _reader

    cpdef Incoming switched(self, object number)
    @cython.locals(latest=Incoming, table=Incoming, p='const unsigned char *')
    cpdef Incoming defined(self, bytes data, Py_ssize_t start, Py_ssize_t end)
    @cython.locals(table=Incoming)
    cpdef bint alike(self, object definition) except -1
    @cython.locals(known=Incoming, table=Incoming)
    cdef Incoming _parse(self, bytes raw)


@cython.locals(p='const unsigned char *', q='const unsigned char *', i=Py_ssize_t)
cdef bint same(bytes data, Py_ssize_t start, Py_ssize_t size, bytes other) noexcept
