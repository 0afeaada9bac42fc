"""PeopleService: sign-up, login and what the mesh is told about who is logged in.

Not recorded by request id: the digest of a request that holds a password would be a fast hash of it. A repeated
sign-up finds its email taken, a repeated login opens another session.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf.empty_pb2 import Empty

from identity_svc import bearers, directory, passwords, wire
from identity_svc.attempts import Attempts
from identity_svc.hashing import Hasher
from identity_svc.names import email_of, name_of
from identity_svc.signing import SigningKeys
from identity_svc.store import people as store
from mandate.identity.v1 import people_pb2 as pb
from mandate.identity.v1 import people_pb2_grpc as rpc
from mesh import caller, tokens
from mesh.chain import Context
from mesh.clock import Clock
from mesh.db import Connection, Database
from mesh.errors import AlreadyExists, Unauthenticated
from mesh.secret import Secret


class PeopleServicer(rpc.PeopleServiceServicer):
    """Implements mandate.identity.v1.PeopleService."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        hasher: Hasher,
        attempts: Attempts,
        keys: SigningKeys,
        session_life: timedelta,
    ) -> None:
        self._db = db
        self._clock = clock
        self._hasher = hasher
        self._attempts = attempts
        self._keys = keys
        self._session_life = session_life

    async def SignUp(self, request: pb.SignUpRequest, context: Context) -> pb.Session:
        email, name = email_of(request.email), name_of(request.name)
        password = passwords.chosen(request.password)
        await self._attempts.count("sign_up", email)
        kept = await self._hasher.hash(password)
        now = self._clock.now()
        async with self._db.transaction() as tx:
            person = await store.add(tx, email, name, kept, now)
            if person is None:
                raise AlreadyExists("EMAIL_TAKEN", "somebody signed up with this email", field="email")
            session, bearer = await self._open_session(tx, person.id, now)
        return wire.session(session, wire.person(person, {}), bearer)

    async def LogIn(self, request: pb.LogInRequest, context: Context) -> pb.Session:
        email, password = email_of(request.email), passwords.presented(request.password)
        await self._attempts.count("log_in", email)
        person = await self._verified(email, password)
        await self._attempts.forgive("log_in", email)
        async with self._db.transaction() as tx:
            session, bearer = await self._open_session(tx, person.id, self._clock.now())
        grants = await store.grants(self._db, person.id)
        return wire.session(session, wire.person(person, grants), bearer)

    async def LogOut(self, request: pb.LogOutRequest, context: Context) -> Empty:
        async with self._db.transaction() as tx:
            await store.close_session(tx, bearers.digest(Secret(request.access_token)), self._clock.now())
        return Empty()

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Context) -> pb.AuthenticateResponse:
        now = self._clock.now()
        standing = await store.standing(self._db, bearers.digest(Secret(request.access_token)), now)
        if standing is None:
            raise Unauthenticated("SESSION_ENDED", "the session ended, or the access token was never given out")
        token = self._keys.signer().sign(standing.person_id, standing.session_id, standing.grants, now)
        expires_at = min(now + tokens.LIFETIME, standing.expires_at)
        return pb.AuthenticateResponse(
            mesh_token=token.reveal(), person_id=standing.person_id, expire_time=wire.stamp(expires_at)
        )

    async def GetMe(self, request: pb.GetMeRequest, context: Context) -> pb.Person:
        person_id = caller.current_person().id
        person = await store.person(self._db, person_id)
        if person is None:
            raise Unauthenticated("NOT_LOGGED_IN", "nobody is logged in")
        return wire.person(person, await store.grants(self._db, person_id))

    async def _verified(self, email: str, password: Secret) -> directory.Person:
        """Return who a password proves; a wrong email and a wrong password take the same work and say the same."""
        found = await store.credential_of(self._db, email)
        matches = await self._hasher.verify(found.password_hash if found else None, password)
        if found is None or not matches:
            raise Unauthenticated("LOG_IN_REFUSED", "the email or the password is wrong")
        if self._hasher.is_outdated(found.password_hash):
            fresh = await self._hasher.hash(password)
            await store.rehash(self._db, found.person.id, found.password_hash, fresh)
        return found.person

    async def _open_session(self, tx: Connection, person_id: str, now: datetime) -> tuple[directory.Session, Secret]:
        bearer = bearers.mint(bearers.Prefix.SESSION)
        digest = bearers.digest(bearer)
        return await store.open_session(tx, person_id, digest, now, now + self._session_life), bearer
