"""TLS: certificates that serve, clients that must show one, and files that cannot be used."""

import contextlib
import datetime
import socket
import ssl
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.serving import infer_json, request, serving, small_repository

from farthing.config.server import HttpLimits, Tls
from farthing.server.tls import tls_context
from farthing.types.errors import LoadFailed


@dataclass
class Pair:
    certificate: Path
    key: Path


class Authority:
    """Issues certificates for these tests."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / f"{name}.pem"
        self._write(self.certificate, self._sign(self._name, self._key, is_authority=True))

    def issue(self, name: str, password: bytes = b"") -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._write(pair.certificate, self._sign(subject, key, is_authority=False))
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password)
        pair.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return pair

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


def client(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def test_requests_go_through_tls(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server")
    tls = Tls(certificate=pair.certificate, key=pair.key)
    with serving(small_repository(tmp_path), tls=tls, client_tls=client(authority)) as live:
        assert live.infer("echo", [[1, 2]]).json["outputs"][0]["data"] == [1.0, 2.0]
        with live.connect() as wire:
            assert isinstance(wire.socket, ssl.SSLSocket)
            assert wire.socket.version() in ("TLSv1.2", "TLSv1.3")
            body = infer_json([[1.5, 2.5]] * 1000)
            wire.send(request("POST", "/v2/models/echo/infer", body) * 5)
            assert [wire.read_reply().status for _ in range(5)] == [200] * 5
            wire.send(request("POST", "/v2/models/echo/infer", body, Connection="close"))
            assert wire.read_reply().status == 200
            assert wire.is_ended()


def test_old_tls_and_strangers_certificates_are_not_enough(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server")
    tls = Tls(certificate=pair.certificate, key=pair.key, client_ca=authority.certificate)
    known = client(authority, authority.issue("client"))
    with serving(small_repository(tmp_path / "models"), tls=tls, client_tls=known) as live:
        assert live.get("/v2/health/live").status == 200
        strangers = Authority(tmp_path / "others", "others").issue("stranger")
        old = client(authority, authority.issue("old"))
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        for context in (client(authority), client(authority, strangers), old):
            live.tls = context
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                live.connect().ask("GET", "/v2/health/live")
        live.tls = known
        assert live.get("/v2/health/live").status == 200


def test_what_is_not_tls_and_what_says_nothing_does_not_stay(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server")
    tls = Tls(certificate=pair.certificate, key=pair.key)
    limits = HttpLimits(head_timeout_s=0.2)
    with serving(tmp_path, tls=tls, limits=limits, client_tls=client(authority)) as live:
        for said in (b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", b""):
            with socket.create_connection(live.address, 10) as sock:
                sock.sendall(said)
                with contextlib.suppress(ConnectionError):
                    while sock.recv(1000):
                        pass  # an alert, perhaps
        assert live.get("/v2/health/live").status == 200


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    locked = authority.issue("locked", password=b"secret")
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\0garbage")
    for tls, reason in (
        (Tls(certificate=tmp_path / "none.pem", key=one.key), "none.pem: no such file"),
        (Tls(certificate=one.certificate, key=tmp_path / "none.key"), "none.key: no such file"),
        (Tls(certificate=one.certificate, key=one.key, client_ca=tmp_path / "ca.pem"), "ca.pem: no such file"),
        (Tls(certificate=one.certificate, key=two.key), "one.pem.*two.key.*(?i:mismatch)"),
        (Tls(certificate=garbage, key=one.key), "garbage.pem"),
        (Tls(certificate=one.certificate, key=garbage), "garbage.pem"),
        (Tls(certificate=one.certificate, key=one.key, client_ca=garbage), "garbage.pem"),
        (Tls(certificate=locked.certificate, key=locked.key), "the TLS key is encrypted"),
    ):
        with pytest.raises(LoadFailed, match=reason):
            tls_context(tls)
