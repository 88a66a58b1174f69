"""A certificate for a test's own TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(path: Path) -> None:
    """Write a certificate that signs itself to ``path``, and its key beside it, for HAProxy."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=test"),
            *("-keyout", f"{path}.key", "-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
