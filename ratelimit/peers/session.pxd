# C types of session.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from ratelimit.peers.listener cimport Listener
from ratelimit.peers.messages cimport Messages
from ratelimit.peers.sender cimport Sender
from ratelimit.peers.tables cimport Incoming, Tables
from ratelimit.peers.updates cimport Shared, UpdateReader
from ratelimit.wire.reader cimport Reader

cdef int _CONTROL, _ERROR, _TABLE
cdef int _UPDATE, _INCREMENTAL, _DEFINITION, _SWITCH, _ACK, _TIMED, _INCREMENTAL_TIMED


@cython.final
cdef class Session:
    cdef Listener _listener
    cdef str _local
    cdef int64_t _now, _heard, _spoke, _answered, _acknowledged
    cdef Messages _messages
    cdef bint _dials, _confirmed
    cdef Sender _sender
    cdef Reader _reader
    cdef Shared _shared
    cdef Tables _tables
    cdef Incoming _table
    cdef list _changed
    cdef readonly str name
    cdef readonly object pid, error
    cdef readonly bint opened, synced, closed
    cdef readonly uint64_t updates

    @cython.locals(messages=Messages, count=uint64_t)
    cpdef bytes receive_data(self, bytes data, int64_t now)
    cpdef bytes take(self)
    cpdef Py_ssize_t room(self) noexcept
    cpdef close(self, int status)
    cdef int _greet(self) except -1
    @cython.locals(messages=Messages, kind=int, reader=Reader, number=uint64_t)
    cdef int _process(self) except -1
    @cython.locals(messages=Messages, table=Incoming, reader=UpdateReader)
    cdef int _update(self, int kind) except -1
    cdef int _control(self, int kind, int message) except -1
    @cython.locals(messages=Messages, tables=Tables, table=Incoming)
    cdef int _define(self) except -1
    @cython.locals(table=Incoming, reader=UpdateReader)
    cdef int _release(self) except -1
    @cython.locals(table=Incoming, reader=UpdateReader)
    cdef int _acknowledge(self) except -1
