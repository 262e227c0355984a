"""The admin API's calls, asked as the command line does."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from specproxy.bundle import AuditBundle, AuditResult, Finding
from specproxy.errors import AdminRefused
from specproxy.policy.request_file import as_envelope
from specproxy.server.admin.operator import etag_of
from specproxy.server.gating.audits import Audited, Kept
from specproxy.vocabulary import Numerics, SamplingParams
from tests.admin.conftest import EDITED, NEW, OLD, POLICY, Admin

BOTH = EDITED.replace("name: default", "name: default\n    speculate: {drafters: [ngram], k: 3}")
"""The edit, and one of the other route beside it."""

BUNDLE = AuditBundle(
    "m1",
    "fp",
    Numerics("fp", "cpu", "float32", "2", "bitwise", [1], 64, 1, 1, "fused"),
    [1, 2],
    [3, 4],
    "stop",
    SamplingParams(),
    7,
    0,
    "code",
    OLD,
    stop_token=4,
)
WRONG = AuditResult("m1", 0, "code", OLD, ("ngram",), "hard", findings=(Finding(3, "token", 4),))


async def etag(admin: Admin, revision: str = NEW) -> str:
    """Of a revision of route ``code`` now."""
    async with admin.client() as client:
        return next(info.etag for info in await client.revisions("code") if info.revision == revision)


async def test_status_says_what_serves_and_what_is_on_its_way(admin: Admin) -> None:
    """Active revision, candidate with samples, speed, figures with margins, and what it still lacks."""
    async with admin.client() as client:
        status = await client.status()
    code, default = status["routes"]
    assert (code["route"], code["revision"], code["requests"]) == ("code", OLD, 3)
    assert default["candidate"] is None
    candidate = code["candidate"]
    assert (candidate["revision"], candidate["phase"], candidate["lacking"]) == (NEW, "canary", [])
    assert {count["what"]: count["have"] for count in candidate["samples"]}["shadow pairs"] == 400
    assert candidate["speed"]["low"] > 0.03
    margins = {figure["finding"]["metric"]: figure["margin"] for figure in candidate["figures"]}
    assert {"ttft_p95", "structured", "tools", "stability", "cost"} <= {name for name, m in margins.items() if m}
    assert status["log"] == admin.operator.verify()


async def test_revisions_carry_the_etag_that_orders_need(admin: Admin) -> None:
    """Oldest first, each with its phase and the ETag of its state."""
    async with admin.client() as client:
        found = await client.revisions("code")
    assert [(info.revision, info.phase) for info in found] == [(OLD, "active"), (NEW, "canary")]
    assert found[1].etag == etag_of(admin.operator.state()) == f'"{NEW[:12]}.4"'


async def test_the_log_is_read_page_by_page(admin: Admin) -> None:
    """``after`` and ``limit`` bound it; ``last`` says how far it goes."""
    async with admin.client() as client:
        whole = await client.log()
        assert [entry["seq"] for entry in whole["entries"]] == [*range(1, whole["last"] + 1)]
        assert (await client.log(whole["last"]))["entries"] == []
    status, page = await admin.ask("GET", "/log?after=2&limit=3")
    assert (status, [entry["seq"] for entry in page["entries"]]) == (200, [3, 4, 5])


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "limit=0", "limit=1001", "after=99999999999999999999", "after="]
)
async def test_a_page_that_makes_no_sense_is_refused(admin: Admin, query: str) -> None:
    """Naming the parameter."""
    status, body = await admin.ask("GET", f"/log?{query}")
    assert (status, body["error"]["param"]) == (400, query.partition("=")[0])


async def test_files_are_validated_and_nothing_is_kept(admin: Admin) -> None:
    """A valid set names the routes that would be candidates; a broken one every problem with its line."""
    before = admin.operator.verify()
    async with admin.client() as client:
        good = await client.validate({"code.yaml": POLICY.replace("k: 4", "k: 2")})
        bad = await client.validate({"code.yaml": "version: 1\nroutes:\n  - name: [\n"})
        unloaded = await client.validate({"code.yaml": POLICY.replace("ngram", "eagle")})
    assert (good["valid"], [route["route"] for route in good["routes"]]) == (True, ["code"])
    assert not bad["valid"]
    assert "code.yaml:4" in bad["problems"][0]
    assert not unloaded["valid"]
    assert "eagle" in unloaded["problems"][0]
    assert admin.operator.verify() == before


async def test_a_request_is_explained(admin: Admin) -> None:
    """A body or an envelope; which route, and what would have to differ."""
    async with admin.client() as client:
        found = await client.explain({"messages": [{"role": "user", "content": "x"}], "metadata": {"kind": "code"}})
        assert (found["route"], found["decision"]["drafters"]) == ("code", ["ngram"])
        with pytest.raises(AdminRefused, match="400"):
            await client.explain({"body": 3})


async def test_a_plan_shows_whose_traffic_moves(admin: Admin) -> None:
    """Over the last requests; files that are no valid set are a clear error."""
    for body in ({"messages": [], "metadata": {"kind": "code"}}, {"messages": []}):
        admin.operator.gate.decide(as_envelope(body, "request").facts())
    async with admin.client() as client:
        found = await client.plan({"code.yaml": POLICY.replace("kind: code", "kind: prose")})
        assert [(flow.before, flow.after, flow.requests) for flow in found.flows] == [("code", "default", 1)]
        with pytest.raises(AdminRefused, match=r"code.yaml:1.*YAML") as refused:
            await client.plan({"code.yaml": "routes: {{"})
    assert refused.value.status == 400


async def test_a_candidate_that_has_proven_itself_is_promoted(admin: Admin) -> None:
    """The old revision is superseded in the same write, and the log has actor and reason."""
    async with admin.client() as client:
        done = await client.order("promote", "code", NEW, reason="all proven", etag=await etag(admin))
        assert done["phase"] == "active"
        assert [info.phase for info in await client.revisions("code")] == ["superseded", "active"]
        entry = (await client.log())["entries"][-1]
    assert (entry["reason"], entry["after"], entry["actor"][:4]) == ("all proven", "active", "env-")
    assert entry["findings"]


async def test_a_rollback_lets_the_former_revision_serve_again(admin: Admin) -> None:
    """Promote, then roll back: the old one is active, the new one rolled back."""
    async with admin.client() as client:
        promoted = await client.order("promote", "code", NEW, reason="go", etag=await etag(admin))
        await client.order("rollback", "code", NEW, reason="users complain", etag=promoted["etag"])
        assert [info.phase for info in await client.revisions("code")] == ["active", "rolled_back"]


async def test_pause_resume_and_resubmit(admin: Admin) -> None:
    """Each is an order with a reason; the answer's ETag is good for the next."""
    async with admin.client() as client:
        paused = await client.order("pause", "code", NEW, reason="holiday", etag=await etag(admin))
        assert paused["phase"] == "paused"
        resumed = await client.order("resume", "code", NEW, reason="back", etag=paused["etag"])
        assert resumed["phase"] == "canary"
        gone = await client.order("rollback", "code", NEW, reason="no", etag=resumed["etag"])
    body = {"revision": NEW, "reason": "fixed the drafter"}
    status, again = await admin.ask("POST", "/routes/code/resubmit", body, If_Match=gone["etag"])
    assert (status, again["phase"]) == (200, "draft")


async def test_a_promotion_without_proof_needs_force(admin: Admin) -> None:
    """It is refused with what is missing; with force it is done and the log says so."""
    await admin.operator.edit(BOTH)
    bare = admin.operator.states("default")[-1]
    assert bare.phase == "shadow"
    body = {"revision": bare.revision, "reason": "I know"}
    status, refused = await admin.ask("POST", "/routes/default/promote", body, If_Match=etag_of(bare))
    assert (status, refused["error"]["code"]) == (409, "illegal_move")
    assert "not proven yet" in refused["error"]["message"]
    status, _ = await admin.ask("POST", "/routes/default/promote", body | {"force": True}, If_Match=etag_of(bare))
    assert status == 200
    assert admin.operator.entries()[-1].reason == "I know (forced)"


async def test_kill_and_lift(admin: Admin) -> None:
    """On a route and on all; lifting what is not off is refused."""
    async with admin.client() as client:
        assert (await client.kill("code", reason="odd answers"))["killed"]
        await client.kill(None, reason="all of them")
        status = await client.status()
        assert status["killed"]["reason"] == "all of them"
        assert [switch["reason"] for switch in status["routes"][0]["switches"]] == ["odd answers"]
        assert not (await client.lift("code", reason="found it"))["killed"]
        await client.lift(None, reason="found it")
        assert (await client.status())["killed"] is None
        with pytest.raises(AdminRefused, match="409"):
            await client.lift(None, reason="again")
        with pytest.raises(AdminRefused, match="404"):
            await client.kill("nowhere", reason="typo")


async def test_a_bundle_is_handed_out_while_it_is_in_memory(admin: Admin) -> None:
    """As ``specproxy audit`` reads it; one that is not there is a 404."""
    admin.operator.gate.audits.ring["m1"] = Kept(
        1.0, Audited(BUNDLE, "req_1", "active", ("ngram",), served=True), WRONG
    )
    async with admin.client() as client:
        (listed,) = (await client.status())["mismatches"]
    assert (listed["id"], listed["route"], listed["drafters"], listed["position"]) == ("m1", "code", ["ngram"], 3)
    status, body = await admin.ask("GET", "/bundles/m1")
    assert (status, body["output"], body["seed"]) == (200, [3, 4], 7)
    assert (await admin.ask("GET", "/bundles/m2"))[0] == 404


async def test_a_stale_etag_changes_nothing(admin: Admin) -> None:
    """Somebody paused it meanwhile: 412, with what it is by now."""
    old = await etag(admin)
    async with admin.client() as client:
        await client.order("pause", "code", NEW, reason="me first", etag=old)
        with pytest.raises(AdminRefused, match="412") as refused:
            await client.order("promote", "code", NEW, reason="too late", etag=old)
    assert refused.value.code == "stale_version"
    assert admin.operator.state().phase == "paused"


async def test_concurrent_promotions_are_one_after_the_other(admin: Admin) -> None:
    """Ten at once with the same ETag: one is carried out, nine are stale, and no two overlap."""
    inside, most = 0, 0

    async def pause() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1

    admin.operator.pause = pause
    tag = await etag(admin)
    body = {"revision": NEW, "reason": "race"}
    answers = await asyncio.gather(*[admin.ask("POST", "/routes/code/promote", body, If_Match=tag) for _ in range(10)])
    assert sorted(status for status, _ in answers) == [200] + [412] * 9
    assert most == 1
    assert [state.phase for state in admin.operator.states()] == ["superseded", "active"]


async def test_an_order_is_carried_out_though_its_client_goes_away(admin: Admin) -> None:
    """Half an order does not exist."""
    began, go = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        began.set()
        await go.wait()

    admin.operator.pause = pause
    body = {"revision": NEW, "reason": "and gone"}
    asking = asyncio.create_task(admin.ask("POST", "/routes/code/pause", body, If_Match=await etag(admin)))
    await began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0.05)
    go.set()
    for _ in range(100):
        if admin.operator.state().phase == "paused":
            break
        await asyncio.sleep(0.01)
    assert admin.operator.state().phase == "paused"


ORDER = {"revision": NEW, "reason": "r"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "says"),
    [
        ("POST", "/routes/code/promote", ORDER, {}, 428, "If-Match"),
        ("POST", "/routes/code/promote", ORDER, {"If_Match": "*"}, 428, "If-Match"),
        ("POST", "/routes/code/promote", ORDER, {"If_Match": '"x.1"'}, 412, "read it again"),
        ("POST", "/routes/code/promote", {"revision": NEW}, {"If_Match": '"x"'}, 400, "reason"),
        ("POST", "/routes/code/promote", ORDER | {"reason": " \n"}, {"If_Match": '"x"'}, 400, "reason"),
        ("POST", "/routes/code/promote", ORDER | {"reason": "x" * 1001}, {"If_Match": '"x"'}, 400, "reason"),
        ("POST", "/routes/code/promote", ORDER | {"revision": "bbb"}, {"If_Match": '"x"'}, 400, "revision"),
        ("POST", "/routes/code/promote", ORDER | {"revision": NEW + "\n"}, {"If_Match": '"x"'}, 400, "revision"),
        ("POST", "/routes/code/promote", ORDER | {"revision": "f" * 64}, {"If_Match": '"x"'}, 404, "ffffffffffff"),
        ("POST", "/routes/code/promote", ORDER | {"extra": 1}, {"If_Match": '"x"'}, 400, "extra"),
        ("POST", "/routes/code/pause", ORDER | {"force": True}, {"If_Match": '"x"'}, 400, "force"),
        ("POST", "/routes/nowhere/promote", ORDER, {"If_Match": '"x"'}, 404, "nowhere"),
        ("POST", "/routes/code/destroy", ORDER, {"If_Match": '"x"'}, 404, "destroy"),
        ("GET", "/routes/nowhere/revisions", None, {}, 404, "nowhere"),
        ("GET", "/routes/code/promote", None, {}, 405, "GET"),
        ("POST", "/kill", {"reason": "r"}, {}, 400, "route"),
        ("POST", "/kill", {"route": None}, {}, 400, "reason"),
        ("POST", "/validate", {"files": {}}, {}, 400, "files"),
        ("POST", "/validate", {"files": {"../x.yaml": ""}}, {}, 400, "files"),
        ("POST", "/validate", {"files": {".hidden.yaml": ""}}, {}, 400, "files"),
        ("POST", "/validate", {"files": {"a.yaml\n": ""}}, {}, 400, "files"),
        ("POST", "/explain", {"request": []}, {}, 400, "request"),
        ("GET", "/", None, {}, 404, "there is no"),
    ],
)
async def test_bad_calls_are_clear_errors_and_change_nothing(
    admin: Admin, method: str, path: str, body: Any, headers: dict[str, str], status: int, says: str
) -> None:
    """In OpenAI's form, with what was expected."""
    await admin.refuses(method, path, body, headers, status=status, says=says)
    assert admin.operator.gate.book.kills == []


async def test_a_body_that_is_no_json_or_too_large_is_refused(admin: Admin) -> None:
    """400, 415 and 413; a large body is refused by its length alone."""
    url = f"{admin.url}/admin/v1/kill"
    json = {"content-type": "application/json"}
    async with admin.http.post(url, data=b"{nope", headers=json) as response:
        assert response.status == 400
    async with admin.http.post(url, data=b"route=x") as response:
        assert response.status == 415
    async with admin.http.post(url, data=io.BytesIO(b" " * (4 * 2**20 + 1)), headers=json) as response:
        assert response.status == 413


async def test_a_fault_of_ours_is_said_with_its_id(admin: Admin) -> None:
    """No traceback leaves the server; a damaged store is named."""
    admin.operator.damage("UPDATE states SET body = x'00'")
    async with admin.http.get(f"{admin.url}/admin/v1/routes/code/revisions") as response:
        body = await response.json()
        assert response.status == 500
        assert response.headers["x-request-id"] in body["error"]["message"]
