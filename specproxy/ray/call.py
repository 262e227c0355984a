"""What ingress and replicas say to each other: plain data, which Ray carries."""

from __future__ import annotations

from msgspec import Struct

Headers = tuple[tuple[str, str], ...]


class Call(Struct, frozen=True):
    """A request on its way to a replica. ``path``: with its query; ``key``: what it is placed by; ``avoid``:
    replicas that had it before."""

    method: str
    path: str
    headers: Headers
    body: bytes
    key: str
    avoid: tuple[str, ...] = ()


class Taken(Struct, frozen=True):
    """The first thing that a replica says: it works on the call. ``replica``: its name."""

    replica: str


class Head(Struct, frozen=True):
    """The answer begins. Its body follows as bytes."""

    status: int
    headers: Headers

    def get(self, name: str) -> str:
        """The value of a header, by its name in lower case; empty where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def streams(self) -> bool:
        """Whether the body is server-sent events."""
        return self.status == 200 and self.get("content-type").startswith("text/event-stream")


class Broken(Struct, frozen=True):
    """The last thing that a replica says of a stream that its server broke off; the error event went before."""


Part = Taken | Head | bytes | Broken
