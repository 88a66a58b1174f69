# C types of sender.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.wire.writer cimport Writer

cdef int _TABLE, _UPDATE, _DEFINITION, _ACK, _TIMED, _STRING, _PROTOCOL, _FULL
cdef uint64_t _M32
cdef int _HELLO, _OUTPUT, _MAX_ACK, _RESERVE, _HEADER, _WIDEST


@cython.final
cdef class Outgoing:
    cdef readonly object definition
    cdef int key_type, width, entry
    cdef Py_ssize_t key_size
    cdef bytes raw
    cdef public uint64_t sent, acknowledged


@cython.final
cdef class Sender:
    cdef Writer writer, scratch
    cdef readonly dict tables
    cdef Outgoing current

    cpdef int open(self) except -1
    cpdef bytes take(self)
    cpdef Py_ssize_t room(self) noexcept
    cpdef int raw(self, bytes data) except -1
    cpdef int say(self, int kind, int message) except -1
    @cython.locals(table=Outgoing)
    cpdef bint define(self, object definition) except -1
    @cython.locals(table=Outgoing, scratch=Writer, size=Py_ssize_t, needed=Py_ssize_t, i=int)
    cpdef bint update(
        self, object definition, bytes key, object values, object expire_ms, bytes text
    ) except -1
    @cython.locals(scratch=Writer)
    cpdef int acknowledge(self, uint64_t number, uint64_t update) except -1
    @cython.locals(table=Outgoing, behind=uint64_t)
    cpdef int acknowledged(self, object number, uint64_t update) except -1
    @cython.locals(table=Outgoing)
    cpdef int forgive(self) except -1
    cpdef bint offer(self, int kind, int message) except -1
    @cython.locals(entry=Writer)
    cdef int _entry(self, uint64_t number, bytes text) except -1
    cdef int _switch(self, Outgoing table) except -1
    @cython.locals(writer=Writer)
    cdef int _message(self, int kind, bytes content) except -1
    cdef int _need(self, Py_ssize_t size) except -1
