"""The HTTP API for operators: view and change the blocklist, see what the fleet does.

``routes`` has every path once, with the models of ``models`` for what is asked and answered; the
server and its OpenAPI description are made from the same table. ``access`` says who may do what,
``blocks``, ``servers`` and ``handlers`` do it through ``node.operations``, ``server`` owns the
socket and ``connections`` what comes in by it.
"""
