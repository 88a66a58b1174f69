"""TLS to a server: how its certificate is verified, and what an error means."""

from __future__ import annotations

import ssl

# What RFC 5280 asks of certificates beyond what was verified before Python 3.13, as OpenSSL numbers
# it: X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA to X509_V_ERR_EXTENSIONS_REQUIRE_VERSION_3.
_STRICT = range(80, 94)
_STRICT_HINT = (
    "Python 3.13 and later insist on it; make the CA again with the extensions "
    "basicConstraints=critical,CA:TRUE and keyUsage=critical,keyCertSign,cRLSign"
)


class _Context(ssl.SSLContext):
    """Verifies certificates by a name of its own, whichever address is connected to."""

    name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = self.name or server_hostname
        return super().wrap_bio(incoming, outgoing, server_side, name, session)


def client_context(cacert: str | None = None, name: str = "") -> ssl.SSLContext:
    """Return what verifies a server: by this CA alone, if one is named, and by this name.

    Without a name, the certificate has to have the address that is connected to. Raises OSError.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags = ssl.create_default_context().verify_flags
    context.name = name
    if cacert:
        context.load_verify_locations(cacert)
    else:
        context.load_default_certs()
    return context


def tls_problem(error: BaseException, hint: str = "") -> str:
    """Return what is wrong with the TLS that an error comes from; empty if it comes from none.

    ``hint`` says what to do about a certificate that is refused.
    """
    cause: BaseException | None = error
    # aiohttp's errors about certificates say that they are SSLErrors, and have nothing of them.
    while cause is not None and not (isinstance(cause, ssl.SSLError) and hasattr(cause, "reason")):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return ""
    if not isinstance(cause, ssl.SSLCertVerificationError):
        reason = (cause.reason or str(cause)).replace("_", " ").lower()
        return f"{reason}; see to the certificates, and that the port speaks TLS"
    hint = _STRICT_HINT if cause.verify_code in _STRICT else hint
    problem = f"the server's certificate is refused: {cause.verify_message}"
    return f"{problem}; {hint}" if hint else problem
