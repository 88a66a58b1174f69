"""HAProxy's peers protocol, 2.1 (peers.txt): each change of a stick table, told as it happens."""
