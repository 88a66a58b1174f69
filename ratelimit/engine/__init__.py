"""The request path: bytes of NOTIFY frames in, bytes of ACK frames out.

``key`` finds out who asks, ``table`` remembers how often, ``rule`` says how much is too much, and
``answer`` runs all three over the frames of one read. All of it compiles (see the .pxd files beside
the modules) and all of it runs as plain Python; time is always an argument.
"""
