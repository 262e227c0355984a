"""Ray Serve's way to a replica: the order of ``affinity``, by the loads that Serve knows of."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from specproxy.ray.affinity import places
from specproxy.ray.call import Call


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Asks the replicas for a call in the order of its key; one that has no room says so, and the next is asked."""

    def initialize_state(self, *, bound: float) -> None:
        """``bound``: a replica's requests over the mean, above which it is passed over."""
        self._bound = bound

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas one by one. See RequestRouter."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        call: Call = pending_request.args[0]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(item.replica_id) or 0 for name, item in by_name.items()}
        return [[by_name[name]] for name in places(call, loads, self._bound)]
