# C types of connection.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.wire.reader cimport Reader
from ratelimit.spop.respond cimport Responder

cdef Py_ssize_t _LENGTH


@cython.final
cdef class Connection:
    cdef Responder _responder
    cdef bytearray _pending
    cdef Py_ssize_t _wanted, _max_frame_size
    cdef readonly object hello, error
    cdef readonly bint closed

    cpdef reserve(self, bytes data)
    @cython.locals(pos=Py_ssize_t, answers=bytes)
    cpdef bytes receive_data(self, bytes data, uint64_t now)
    @cython.locals(answers=list, end=Py_ssize_t)
    cdef bytes _receive(self, bytes data, Py_ssize_t pos)
    @cython.locals(left=Py_ssize_t, length=Py_ssize_t)
    cdef bint _has_frame(self, bytes data, Py_ssize_t pos) except -1
    @cython.locals(reader=Reader)
    cdef bytes _control(self, bytes data, Py_ssize_t start, Py_ssize_t end)
    cpdef bytes close(self, int status, str message)
    cdef bytes _fail(self, object error)
