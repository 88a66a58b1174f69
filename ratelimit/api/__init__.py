"""The HTTP API for operators: read and change the blocklist, read the state of a node and its
fleet.

``routes`` lists every path with its models from ``models``; the server and the OpenAPI description
are built from this list. ``access`` checks the caller, ``handlers``, ``blocks`` and ``servers``
answer through ``node.operations``, ``server`` owns the listening socket, and ``connections`` limits
the connections.
"""
