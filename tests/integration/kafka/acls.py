"""ACLs of the broker's StandardAuthorizer: those that docs/kafka.md asks for, given and taken by the admin protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "kafka.md"
SETTINGS: Final = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # Who comes by the plain listener: the broker itself, and the admin of the tests.
    "super.users": "User:ANONYMOUS",
}

_RESOURCES: Final = {"Topic": 2, "Group": 3, "Cluster": 4, "TransactionalId": 5}
_PATTERNS: Final = {"literal": 3, "prefixed": 4}
_OPERATIONS: Final = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
_DENY, _ALLOW = 2, 3
_ROW: Final = re.compile(r"\| (\w+) \| (literal|prefixed) \| `([^`]+)` \| ([\w, ]+) \|")


class Acl(NamedTuple):
    """One operation of one user on what has this name."""

    user: str
    resource: str
    pattern: str
    name: str
    operation: str


def documented(user: str, deployment: str, prefix: str, routes: Sequence[str]) -> list[Acl]:
    """Return the rows of the table in docs/kafka.md, for that deployment."""
    found: list[Acl] = []
    for resource, pattern, name, operations in _ROW.findall(DOCUMENT.read_text(encoding="utf-8")):
        if "ROUTE" in name:
            names = [name.replace("ROUTE", route) for route in routes]
        elif resource == "Topic":
            names = [prefix + name]
        else:
            names = [name.replace("waybill", deployment)]
        found += [Acl(user, resource, pattern, one, what) for one in names for what in operations.split(", ")]
    return found


class Acls:
    """What is allowed and denied on a broker. A call returns when the broker's authorizer knows of it."""

    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        """Work through ``admin``, a super user's."""
        self._admin = admin

    async def allow(self, acls: Iterable[Acl]) -> None:
        """Allow each of ``acls``."""
        for acl in acls:
            await self._create(acl, _ALLOW)

    async def deny(self, acl: Acl) -> None:
        """Deny ``acl``, whatever else allows it."""
        await self._create(acl, _DENY)

    async def take(self, acl: Acl) -> None:
        """Take back what allows ``acl``."""
        await self._delete(acl, _ALLOW)

    async def undeny(self, acl: Acl) -> None:
        """Take back what denies ``acl``."""
        await self._delete(acl, _DENY)

    async def _create(self, acl: Acl, permission: int) -> None:
        response = await self._admin._send_to_controller(CreateAclsRequest(*_fields(acl), permission))
        [(code, text)] = response.creation_responses
        assert errors.for_code(code) is errors.NoError, text
        await self._until(acl, permission, there=True)

    async def _delete(self, acl: Acl, permission: int) -> None:
        response = await self._admin._send_to_controller(DeleteAclsRequest(*_fields(acl), permission))
        [(code, text, matching)] = response.filter_responses
        assert errors.for_code(code) is errors.NoError, text
        assert len(matching) == 1, f"{acl} was not there"
        await self._until(acl, permission, there=False)

    async def _until(self, acl: Acl, permission: int, *, there: bool) -> None:
        """Wait: the controller answers before the broker has applied it."""
        async with asyncio.timeout(180):
            while True:
                response = await self._admin._send_request(DescribeAclsRequest(*_fields(acl), permission))
                if bool(response.resources) == there:
                    return
                await asyncio.sleep(0.05)


def _fields(acl: Acl) -> tuple[int, str, int, str, str, int]:
    resource, pattern = _RESOURCES[acl.resource], _PATTERNS[acl.pattern]
    return resource, acl.name, pattern, f"User:{acl.user}", "*", _OPERATIONS[acl.operation]
