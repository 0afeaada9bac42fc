"""The home's own certificate authority and one mTLS identity per service; who may call what is the contracts' word."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.clock import Clock
from mesh.home import write_private
from mesh.services import SERVICES

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.home import Home

NAMES = (*(service.name for service in SERVICES), "operator")
AUTHORITY_LIFE = dt.timedelta(days=3650)
LEAF_LIFE = dt.timedelta(days=90)
RENEW_BEFORE = dt.timedelta(days=30)
SKEW = dt.timedelta(minutes=5)  # a peer's clock may be behind ours


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """The SPIFFE trust domain of one home and the folder of its certificates."""

    name: str
    folder: Path

    def spiffe_id(self, service: str) -> str:
        """Return the identity that the certificate of `service` carries."""
        return f"spiffe://{self.name}/{service}"


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure(home: Home, clock: Clock) -> TrustDomain:
    """Make what is missing, renew what ends within 30 days, leave the rest untouched."""
    now = clock.now()
    domain = TrustDomain(f"mandate-{home.instance}", home.tls)
    authority = _authority(home, domain, now)
    for name in NAMES:
        if not _good(home.tls, name, authority, now):
            _issue(domain, name, authority, now)
    return domain


def _authority(home: Home, domain: TrustDomain, now: dt.datetime) -> _Authority:
    certificate_file, key_file = home.tls / "ca.pem", home.keys / "ca.key"
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = load_key(key_file)
    except (FileNotFoundError, ValueError):
        pass
    else:
        if _is_pair(certificate, key) and certificate.not_valid_after_utc - now > LEAF_LIFE:
            return _Authority(certificate, key)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Mandate local CA {home.instance}")])
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
    uri = x509.UniformResourceIdentifier(f"spiffe://{domain.name}")
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(key_file, _pem(key))
    write_private(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return _Authority(certificate, key)


def _good(folder: Path, name: str, authority: _Authority, now: dt.datetime) -> bool:
    """Say whether the pair on disk is whole, of this authority and not about to end (a crash may have torn it)."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        key = load_key(folder / f"{name}.key")
        certificate.verify_directly_issued_by(authority.certificate)
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
        return False
    return _is_pair(certificate, key) and certificate.not_valid_after_utc - now > RENEW_BEFORE


def _issue(domain: TrustDomain, name: str, authority: _Authority, now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alternative = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(domain.spiffe_id(name)),
            x509.DNSName(f"{name}.mandate.internal"),
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
    )
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(both, critical=False)
        .add_extension(alternative, critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    write_private(domain.folder / f"{name}.key", _pem(key))
    write_private(domain.folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key; raise ValueError when the file holds none of ours."""
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not an elliptic-curve key")  # noqa: TRY004  # an unusable file, as one that can't be parsed
    return key


def _is_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    return certificate.public_key() == key.public_key()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
