"""The server's certificate, read into an `ssl.SSLContext`."""

import ssl

from farthing.config.server import Tls
from farthing.types.errors import LoadFailed


def tls_context(tls: Tls, protocol: str = "http/1.1") -> ssl.SSLContext:
    """TLS 1.2 and up, with the certificate given, for one protocol of ALPN.

    Raises `LoadFailed` naming the file that cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    for path in (tls.certificate, tls.key, tls.client_ca):
        if path is not None and not path.is_file():
            raise LoadFailed(
                f"{path}: no such file", hint="give PEM files to --tls-cert, --tls-key and --tls-client-ca"
            )
    # ssl.SSLError is an OSError, and so is a file that may not be read.
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_refuse_password)
    except OSError as error:
        raise LoadFailed(
            f"{tls.certificate}, {tls.key}: {error}", hint="both must be PEM, and belong together"
        ) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            raise LoadFailed(f"{tls.client_ca}: {error}", hint="it must hold CA certificates, PEM") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_password() -> str:
    """Without this, OpenSSL would ask for it on the terminal and wait."""
    raise LoadFailed("the TLS key is encrypted", hint="openssl pkey -in KEY -out PLAIN removes the password")
