"""The HTTP API for operators: view and change the blocklist, see what the fleet does.

``routes`` has every path once, with the models of ``models`` for what is asked and answered; the
server and its OpenAPI description are made from the same table. ``access`` says who may do what,
``blocks``, ``haproxy`` and ``handlers`` do it through ``control``, ``server`` owns the socket and
``connections`` what comes in by it.
"""
