"""The network that the containers of the tests are on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tests.images.engine import run
from tests.images.switch import BRIDGE, Switch


def test_the_name_server_keeps_its_address_when_ports_are_added(tmp_path: Path) -> None:
    with contextlib.closing(Switch(tmp_path)) as switch:
        for _ in range(8):  # whose own addresses are random
            switch.port()
        (bridge,) = json.loads(run("ip", "-n", switch.name, "-json", "link", "show", "bridge"))
    assert bridge["address"] == BRIDGE
