"""What identity reads from the environment, beside what every process reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.secret import Secret
from mesh.settings import Runtime, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Settings of identity alone; the argon2id figures are OWASP's (Password Storage Cheat Sheet)."""

    database_url: Secret = setting(
        "MANDATE_IDENTITY_DATABASE_URL", ..., "PostgreSQL as identity's own role; given by `mandate up`."
    )
    sealing_key_file: Path | None = setting(
        "MANDATE_IDENTITY_SEALING_KEY_FILE",
        None,
        "File of 32 bytes in base64 that seal identity's signing keys; $MANDATE_HOME/keys/identity.key when empty.",
    )
    session_hours: int = setting(
        "MANDATE_IDENTITY_SESSION_HOURS", 12, "How long a login lasts.", minimum=1, maximum=24 * 30
    )
    argon2_memory_kib: int = setting(
        "MANDATE_IDENTITY_ARGON2_MEMORY_KIB",
        19_456,
        "Memory that hashing one password takes.",
        minimum=7_168,
        maximum=1_048_576,
    )
    argon2_passes: int = setting("MANDATE_IDENTITY_ARGON2_PASSES", 2, "Passes over that memory.", minimum=1, maximum=20)
    argon2_lanes: int = setting("MANDATE_IDENTITY_ARGON2_LANES", 1, "Lanes of one hash.", minimum=1, maximum=8)
    log_in_failures_max: int = setting(
        "MANDATE_IDENTITY_LOG_IN_FAILURES_MAX",
        10,
        "Failed logins (and refused sign-ups) of one email in a window before it has to wait.",
        minimum=1,
        maximum=1_000,
    )
    log_in_window_seconds: int = setting(
        "MANDATE_IDENTITY_LOG_IN_WINDOW_SECONDS", 300, "Length of that window.", minimum=1, maximum=86_400
    )

    def sealing_key_path(self, runtime: Runtime) -> Path:
        """Return the file of the sealing key."""
        return self.sealing_key_file or runtime.home / "keys" / "identity.key"
