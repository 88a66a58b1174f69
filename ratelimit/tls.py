"""TLS connections, of either side: verification of certificates, and explanation of errors."""

from __future__ import annotations

import ssl

# Checks of RFC 5280 that Python 3.13 enables, as OpenSSL's error numbers:
# X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA to X509_V_ERR_EXTENSIONS_REQUIRE_VERSION_3.
_STRICT = range(80, 94)
_STRICT_HINT = (
    "Python 3.13 and later require it; create the CA with the extensions "
    "basicConstraints=critical,CA:TRUE and keyUsage=critical,keyCertSign,cRLSign"
)


class _Context(ssl.SSLContext):
    """Verifies certificates against ``name`` instead of the address of the connection."""

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
    """Return a context that verifies a server by this CA, if given, and by this name.

    Without a name, the certificate must have the address of the connection. Raises OSError.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags = ssl.create_default_context().verify_flags
    context.name = name
    if cacert:
        context.load_verify_locations(cacert)
    else:
        context.load_default_certs()
    return context


def mutual_context(certificate: str, cacert: str, dials: bool = False) -> ssl.SSLContext:
    """Return a context in which both sides need a certificate of this CA, whatever its name.

    ``certificate`` is a file with the certificate of this side and its key; ``dials`` is whether
    this side is the client. Raises OSError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if dials else ssl.PROTOCOL_TLS_SERVER)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cacert)
    context.load_cert_chain(certificate)
    return context


def tls_problem(error: BaseException, hint: str = "") -> str:
    """Return the TLS problem behind an error; empty if there is none.

    ``hint`` is added for a refused certificate.
    """
    cause: BaseException | None = error
    # aiohttp's certificate errors derive from SSLError without its attributes.
    while cause is not None and not (isinstance(cause, ssl.SSLError) and hasattr(cause, "reason")):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return ""
    if not isinstance(cause, ssl.SSLCertVerificationError):
        reason = (cause.reason or str(cause)).replace("_", " ").lower()
        return f"{reason}; check the certificates, and that the port uses TLS"
    hint = _STRICT_HINT if cause.verify_code in _STRICT else hint
    problem = f"the server's certificate is refused: {cause.verify_message}"
    return f"{problem}; {hint}" if hint else problem
