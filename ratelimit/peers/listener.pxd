# C types of listener.py; plain Python does not read this file.
from ratelimit.peers.updates cimport UpdateReader


cdef class Listener:
    cpdef object admits(self, object session)
    cpdef object on_open(self, object session)
    cpdef object on_table(self, object session, object definition)
    cpdef object on_update(self, object session, object definition, UpdateReader update)
    cpdef object on_read(self, object session)
    cpdef object on_sync_wanted(self, object session)
    cpdef object on_synced(self, object session, bint whole)
    cpdef object on_refused(self, object session, str name, str why)
