"""Credentials as the contract's messages."""

from __future__ import annotations

from mandate.vault.v1 import credentials_pb2 as pb
from mesh.secret import Secret
from vault_svc.credentials import Credential
from vault_svc.store import SealedCredential


def credential(found: Credential) -> pb.Credential:
    """Pack a credential; remove_time is absent until it was removed."""
    message = pb.Credential(
        id=found.id,
        organization_id=found.organization_id,
        provider=found.provider,
        label=found.label,
        base_url=found.base_url,
        hint=found.hint,
    )
    message.create_time.FromDatetime(found.created_at)
    if found.removed_at is not None:
        message.remove_time.FromDatetime(found.removed_at)
    return message


def lease(found: SealedCredential, secret: Secret, lease_ms: int) -> pb.OpenCredentialResponse:
    """Pack an opened credential; the secret leaves the vault here and nowhere else."""
    return pb.OpenCredentialResponse(
        found=True,
        credential_id=found.id,
        secret=secret.reveal(),
        base_url=found.base_url,
        lease_ms=lease_ms,
    )
