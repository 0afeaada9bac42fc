"""This process's mesh certificate as gRPC credentials. Making certificates is not here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509

from mesh.settings import SettingsError


@dataclass(frozen=True, slots=True)
class Certificates:
    """The three files of one service's identity."""

    folder: Path
    service: str

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Return key, certificate and authority."""
        return self.folder / f"{self.service}.key", self.folder / f"{self.service}.pem", self.folder / "ca.pem"

    def server(self) -> grpc.ServerCredentials:
        """Return credentials that demand a client certificate and follow the files when they change."""
        seen = self._stamp()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal seen
            now = self._stamp()
            if now == seen:
                return None  # gRPC keeps what it has
            seen = now
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            fetch,  # pyright: ignore[reportArgumentType]  # the stubs forget that it may return None
            require_client_authentication=True,
        )

    def client(self) -> grpc.ChannelCredentials:
        """Return credentials that present this service's certificate."""
        key, certificate, authority = self._read()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def trust_domain(self) -> str:
        """Return the SPIFFE trust domain of this certificate; SettingsError when it names none."""
        try:
            certificate = x509.load_pem_x509_certificate(self._read()[1])
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            names = x509.SubjectAlternativeName([])
        for name in names.get_values_for_type(x509.UniformResourceIdentifier):
            scheme, _, rest = name.partition("://")
            if scheme == "spiffe":
                return rest.partition("/")[0]
        raise SettingsError("MANDATE_TLS_DIR", f"{self.files[1]} names no SPIFFE identity")

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        key, certificate, authority = self._read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        try:
            key, certificate, authority = (path.read_bytes() for path in self.files)
        except OSError as error:
            problem = f"{error.filename} cannot be read ({error.strerror})"
            raise SettingsError("MANDATE_TLS_DIR", problem) from None
        return key, certificate, authority

    def _stamp(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in self.files)
