"""Verification of a server's certificate; ``store/redis/test_login.py`` has real servers."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ratelimit.tls import client_context, tls_problem


def refused(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "it is self-signed"
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    return error


def test_a_server_is_verified() -> None:
    context = client_context()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


def test_a_ca_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client_context(str(tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("code", "hint"), [(18, "; set its CA"), (92, "; Python 3.13 and later require it")]
)
def test_a_refused_certificate_is_explained_wherever_the_error_is(code: int, hint: str) -> None:
    outer = OSError("can't connect")
    outer.__cause__ = refused(code)
    problem = tls_problem(outer, "set its CA")
    assert problem.startswith("the server's certificate is refused: it is self-signed" + hint)


def test_another_error_of_tls_and_none() -> None:
    error = ssl.SSLError(1, "x")
    error.reason = "WRONG_VERSION_NUMBER"
    assert tls_problem(error, "hint").startswith("wrong version number; check")
    assert tls_problem(OSError("refused")) == ""
