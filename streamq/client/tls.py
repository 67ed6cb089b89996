"""TLS: the context of an address, and what to do about an error of TLS, in words for the error of the connection."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import anyio

from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from streamq.client.address import Address

SPEAKS_TLS: Final = "it speaks TLS: write rediss:// in place of redis://"
NO_TLS: Final = "it does not speak TLS: write redis:// in place of rediss://, or give its TLS port"
_WRITE: Final = "for TLS, "  # how each remedy of `tls_remedy` begins
_REMEDIES: Final = (SPEAKS_TLS, NO_TLS.partition(",")[0], _WRITE)
# What OpenSSL says of a certificate (X509_V_ERR_*): one of another host, or of no authority that is known here.
_OTHER_HOST: Final = (62, 64)
_NOT_YET, _NO_LONGER = 9, 10
_NO_AUTHORITY: Final = (2, 18, 19, 20, 21)
# Alerts of a server that asks for a certificate of the client: there was none, or not one that it accepts.
_NONE_GIVEN: Final = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_NOT_ACCEPTED: Final = (
    "ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED", "ALERT_UNSUPPORTED_CERTIFICATE",
)  # fmt: skip


def tls_context(address: Address) -> ssl.SSLContext:
    """Return the context for an address. Raises ConfigurationError if its certificates cannot be loaded."""
    ca, own, key = address.ssl_ca_certs, address.ssl_certfile, address.ssl_keyfile
    for option, path in (("ssl_ca_certs", ca), ("ssl_certfile", own), ("ssl_keyfile", key)):
        _check_readable(address, option, path)
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(
            f"ssl_ca_certs={ca!r} of {address} has no certificates ({error}): give a file in PEM"
        ) from error
    if own is not None:
        try:
            context.load_cert_chain(own, key)
        except OSError as error:
            if key is None:
                raise ConfigurationError(
                    f"ssl_certfile={own!r} of {address} has no certificate with its private key: "
                    "give ssl_keyfile=FILE, or a file with both, in PEM"
                ) from error
            raise ConfigurationError(
                f"ssl_certfile={own!r}, ssl_keyfile={key!r} of {address} cannot be used ({error}): "
                "give a certificate and its key, in PEM"
            ) from error
    # The order matters: while a context checks host names, CERT_NONE cannot be set.
    context.check_hostname = address.ssl_check_hostname and address.ssl_cert_reqs != "none"
    context.verify_mode = {
        "required": ssl.CERT_REQUIRED,
        "optional": ssl.CERT_OPTIONAL,
        "none": ssl.CERT_NONE,
    }[address.ssl_cert_reqs]
    return context


def _check_readable(address: Address, option: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb"):  # noqa: PTH123 - the text may be no path at all
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{option}={path!r} of {address} cannot be read ({why}): give the path of a file in PEM"
        ) from error


def tls_remedy(error: BaseException, address: Address, *, after_handshake: bool) -> str:
    """Return what to do about an error of TLS, empty if that is not known.

    `after_handshake`: the handshake was done, and nothing has arrived since. A server that wants a certificate of the
    client says so only then, and closes the connection: what arrives first differs.
    """
    match error:
        case ssl.SSLCertVerificationError(verify_code=code):
            return _about_its_certificate(code, address)
        case ssl.SSLError(reason=str(reason)) if any(alert in reason for alert in _NOT_ACCEPTED):
            return _about_our_certificate(address, certain=True)
        case ssl.SSLError(reason=str(reason)) if any(alert in reason for alert in _NONE_GIVEN):
            return _about_our_certificate(address, certain=True)
        case OSError() | anyio.EndOfStream() | anyio.BrokenResourceError() if after_handshake:
            return _about_our_certificate(address, certain=False)
    return ""


def _about_its_certificate(code: int, address: Address) -> str:
    if code in _OTHER_HOST:
        return (
            f"{_WRITE}write a host in the URL that its certificate names, or give it a certificate for {address.host}"
        )
    if code in _NO_AUTHORITY and address.ssl_ca_certs is None:
        return f"{_WRITE}give the certificate of its authority in the URL: ssl_ca_certs=FILE"
    if code in _NO_AUTHORITY:
        own = address.ssl_ca_certs
        return f"{_WRITE}give the certificate of the authority that signed it: ssl_ca_certs={own} has others"
    if code == _NO_LONGER:
        return f"{_WRITE}renew the certificate of the server"
    return f"{_WRITE}compare the clocks of this machine and the server" if code == _NOT_YET else ""


def _about_our_certificate(address: Address, *, certain: bool) -> str:
    doubt = "" if certain else "if the server asks for one, "
    if address.ssl_certfile is None:
        return f"{_WRITE}{doubt}give a certificate of the client in the URL: ssl_certfile=FILE&ssl_keyfile=FILE"
    return (
        f"{_WRITE}{doubt}give a certificate of the client that it accepts: ssl_certfile={address.ssl_certfile} is not"
    )


def names_tls_remedy(text: str) -> bool:
    """Does the text of an error say what to do about TLS?"""
    return any(remedy in text for remedy in _REMEDIES)
