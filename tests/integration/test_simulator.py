"""The simulator over real sockets: vLLM's API, aborts, faults, and the referee's book of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from fanout import ChatRequest, Endpoint, Failure, Kind
from fanout.sim import Profile
from fanout.sim.faults import Faults
from fanout.testing import Simulator
from fanout_workers.model import ModelClient, open_transport

pytestmark = pytest.mark.anyio

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "pay": {"type": "integer", "minimum": 1}},
    "required": ["title", "pay"],
}
#: 100 steps/s whatever runs, two at a time.
SMALL = Profile(
    name="small",
    points=((1, 100.0), (2, 200.0)),
    max_num_seqs=2,
    max_model_len=2000,
    kv_capacity_tokens=4000,
    reasoning_tokens=(("low", 10.0),),
)


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], **more}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_chat_completion_of_a_worker() -> None:
    async with Simulator(SMALL, speed=20, output_lengths="30") as sim, open_transport() as net:
        client = ModelClient(Endpoint(name="sim", url=sim.url), net)
        request = ChatRequest(
            messages=({"role": "user", "content": "hello"},), max_tokens=100, schema=SCHEMA
        )
        reply = await client.complete(request, "item-0")
        Draft202012Validator(SCHEMA).validate(json.loads(reply.content))
        assert (reply.finish_reason, reply.model) == ("stop", "small")
        assert reply.usage.completion == 30
        assert reply.usage.prompt == 6
        assert reply.ttft_s is not None
        with pytest.raises(Failure) as failure:
            await client.complete(
                ChatRequest(messages=({"role": "user", "content": "x" * 9000},), max_tokens=10)
            )
        assert failure.value.kind is Kind.REQUEST
        assert sim.stats.answered == 1
        assert sim.stats.failed == {"refused": 1}


async def test_plain_and_streamed_say_the_same() -> None:
    async with Simulator(SMALL, speed=20, output_lengths="40") as sim, open_transport() as net:
        for stream in (False, True):
            client = ModelClient(Endpoint(name="sim", url=sim.url, stream=stream), net)
            request = ChatRequest(
                messages=({"role": "user", "content": "hello"},),
                max_tokens=300,
                schema=SCHEMA,
                reasoning_effort="low",
            )
            reply = await client.complete(request)
            Draft202012Validator(SCHEMA).validate(json.loads(reply.content))
            assert reply.reasoning
            assert reply.usage.reasoning > 0
            assert reply.usage.completion == reply.usage.reasoning + 40
            assert reply.ttft_s is not None
            assert reply.ttft_s < reply.total_s
        assert sim.stats.answered == 2


async def test_the_paths_that_vllm_has() -> None:
    async with Simulator(SMALL) as sim, aiohttp.ClientSession(sim.url) as http:
        async with http.get("/v1/models") as reply:
            model = (await reply.json())["data"][0]
            assert (model["id"], model["max_model_len"]) == ("small", 2000)
        async with http.get("/health") as reply:
            assert (reply.status, await reply.read()) == (200, b"")
        async with http.post("/tokenize", json=chat()) as reply:
            told = await reply.json()
            assert (told["count"], told["max_model_len"]) == (6, 2000)
        async with http.post("/v1/chat/completions", data=b"no json") as reply:
            assert reply.status == 400
            assert (await reply.json())["error"]["type"] == "BadRequestError"
        async with http.post("/v1/chat/completions", json=chat(model="another")) as reply:
            assert reply.status == 404
        async with http.get("/v1/chat/completions") as reply:
            assert reply.status == 405
        async with http.get("/nothing") as reply:
            assert reply.status == 404
        assert sim.stats.failed == {"refused": 2}


async def test_metrics_under_vllms_names() -> None:
    async with Simulator(SMALL, speed=50) as sim, aiohttp.ClientSession(sim.url) as http:
        body = chat(max_tokens=20)
        await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(4)))
        async with http.get("/metrics") as reply:
            families = list(text_string_to_metric_families(await reply.text()))
    samples = {
        (sample.name, sample.labels.get("finished_reason")): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert all(
        sample.labels["model_name"] == "small" for family in families for sample in family.samples
    )
    assert samples["vllm:num_requests_running", None] == 0
    assert samples["vllm:num_requests_waiting", None] == 0
    assert samples["vllm:kv_cache_usage_perc", None] == 0
    assert samples["vllm:num_preemptions_total", None] == 0
    assert samples["vllm:prompt_tokens_total", None] == 24
    assert samples["vllm:generation_tokens_total", None] == 80
    assert samples["vllm:prefix_cache_queries_total", None] == 0
    assert samples["vllm:prefix_cache_hits_total", None] == 0
    assert samples["vllm:request_success_total", "stop"] == 4
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
    ):
        assert samples[f"vllm:{name}_count", None] == 4
    # 19 steps at 100 a second, 50 times as fast.
    assert samples["vllm:e2e_request_latency_seconds_sum", None] >= 4 * 0.19 / 50


async def test_in_flight_is_what_the_client_has() -> None:
    async with Simulator(SMALL, speed=10) as sim, aiohttp.ClientSession(sim.url) as http:
        body = chat(max_tokens=20)
        for _ in range(3):
            waves = [http.post("/v1/chat/completions", json=body) for _ in range(5)]
            await asyncio.gather(*waves)
        assert sim.stats.level.max == 5
        assert sim.stats.level.level == 0
        async with http.get("/stats?from=0&to=0.1&points=5") as reply:
            told = await reply.json()
    assert (told["requests"], told["answered"]) == (15, 15)
    assert len(told["in_flight"]["curve"]) == len(told["between"]["curve"]) == 5
    assert sum(told["in_flight"]["seconds_at"].values()) == pytest.approx(told["seconds"])


async def test_a_request_is_in_flight_before_its_body_has_come() -> None:
    async with Simulator(SMALL) as sim:
        host, port = sim.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n"
        writer.write(head + b"X-Request-Id: a-0\r\n\r\n{")
        await until(lambda: sim.stats.level.level == 1)
        writer.close()
        await until(lambda: sim.stats.level.level == 0)
        assert sim.stats.aborted == 1


async def test_a_client_that_leaves_aborts_its_request() -> None:
    async with Simulator(SMALL) as sim, aiohttp.ClientSession(sim.url) as http:
        asked = [
            asyncio.create_task(
                http.post(
                    "/v1/chat/completions",
                    json=chat(max_tokens=1000, stream=stream),
                    headers={"X-Request-Id": f"item-{n}"},
                )
            )
            for n, stream in enumerate((False, True, False))
        ]
        await until(lambda: sim.stats.level.level == 3)
        load = sim.snapshot()["engine"]
        assert (load["running"], load["waiting"]) == (2, 1)
        for task in asked:
            task.cancel()
        for reply in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(reply, aiohttp.ClientResponse):  # the stream's head had come
                reply.close()
        await until(lambda: sim.stats.level.level == 0)
        load = sim.snapshot()["engine"]
        assert (load["running"], load["waiting"], load["finished"]["abort"]) == (0, 0, 3)
        assert sim.stats.aborted == 3


async def test_a_request_aborted_by_name_gets_what_there_is() -> None:
    async with Simulator(SMALL) as sim, aiohttp.ClientSession(sim.url) as http:
        named = {"X-Request-Id": "mine-0"}
        asked = asyncio.create_task(
            http.post("/v1/chat/completions", json=chat(max_tokens=1000), headers=named)
        )
        await until(lambda: sim.snapshot()["engine"]["generation_tokens"] > 5)
        wanted = {"request_ids": ["nobody", "chatcmpl-mine-0"]}
        async with http.post("/inference/v1/abort_requests", json=wanted) as reply:
            assert reply.status == 200
        said = await (await asked).json()
        assert said["choices"][0]["finish_reason"] == "abort"
        assert 0 < said["usage"]["completion_tokens"] < 1000
        assert 0 < len(said["choices"][0]["message"]["content"]) < 4000
        async with http.post("/inference/v1/abort_requests", json={}) as reply:
            assert reply.status == 400
        assert sim.stats.failed == {"abort_requests": 1}


async def test_a_bounded_queue_answers_503() -> None:
    async with Simulator(SMALL, queue_limit=3) as sim, aiohttp.ClientSession(sim.url) as http:
        held = [
            asyncio.create_task(http.post("/v1/chat/completions", json=chat(max_tokens=1000)))
            for _ in range(3)
        ]
        await until(lambda: sim.stats.level.level == 3)
        async with http.post("/v1/chat/completions", json=chat()) as reply:
            assert reply.status == 503
            assert "retry-after" not in reply.headers
        assert sim.stats.failed == {"unavailable": 1}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_an_outage_is_503_to_everything() -> None:
    down = Faults(outages=((0, 1000),))
    async with Simulator(SMALL, faults=down) as sim, aiohttp.ClientSession(sim.url) as http:
        async with http.get("/health") as reply:
            assert reply.status == 503
        async with http.post("/v1/chat/completions", json=chat()) as reply:
            assert reply.status == 503


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("error", Kind.SERVER),
        ("reset", Kind.CONNECT),
        ("broken", Kind.SERVER),
        ("cut", Kind.SERVER),
        ("null", Kind.EMPTY),
        ("inside", Kind.SERVER),
    ],
)
async def test_faults_are_what_a_worker_calls_them(fault: str, kind: Kind, stream: bool) -> None:
    if (fault, stream) == ("reset", True):
        kind = Kind.SERVER  # the head of the reply had come
    faults = Faults(rates={fault: 1.0})
    async with Simulator(SMALL, speed=20, faults=faults) as sim, open_transport() as net:
        client = ModelClient(Endpoint(name="sim", url=sim.url, stream=stream), net)
        with pytest.raises(Failure) as failure:
            await client.complete(
                ChatRequest(messages=({"role": "user", "content": "hello"},), max_tokens=60)
            )
        assert failure.value.kind is kind
        assert sim.stats.failed == {fault: 1}
        assert sim.stats.answered == 0
        assert sim.snapshot()["engine"]["running"] == 0


async def test_faults_change_while_it_runs() -> None:
    async with Simulator(SMALL, seconds="0") as sim, aiohttp.ClientSession(sim.url) as http:

        async def status() -> int:
            async with http.post("/v1/chat/completions", json=chat()) as reply:
                return reply.status

        async def change(body: object) -> int:
            async with http.post("/faults", json=body) as reply:
                return reply.status

        assert await status() == 200
        assert await change({"rates": {"error": 1.0}, "status": 502}) == 200
        assert await status() == 502
        assert await change({"out_s": 1000}) == 200
        assert await status() == 503
        for wrong in ({"rates": {"nothing": 1}}, {"rates": 1}, {"status": "bad"}, []):
            assert await change(wrong) == 400
        assert await change({}) == 200
        assert await status() == 200


async def test_a_huge_reply_is_more_than_a_worker_takes() -> None:
    faults = Faults(rates={"huge": 1.0})
    async with Simulator(SMALL, speed=20, faults=faults) as sim, open_transport() as net:
        client = ModelClient(Endpoint(name="sim", url=sim.url), net)
        messages = ({"role": "user", "content": "hello"},)
        with pytest.raises(Failure, match="longer than") as failed:
            await client.complete(ChatRequest(messages=messages, max_tokens=60))
        assert failed.value.kind is Kind.SERVER


async def test_a_hanging_request_stays_in_flight_until_its_client_leaves() -> None:
    faults = Faults(rates={"hang": 1.0})
    async with (
        Simulator(SMALL, seconds="0", faults=faults) as sim,
        aiohttp.ClientSession(sim.url) as http,
    ):
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat()))
        await until(lambda: sim.stats.level.level == 1)
        async with http.get("/health"):  # what does not hang is answered meanwhile
            assert sim.stats.level.level == 1
        asked.cancel()
        await until(lambda: sim.stats.level.level == 0)
        assert sim.stats.failed == {"hang": 1}


async def test_the_same_item_twice_is_counted_by_what_happened_to_the_first() -> None:
    async with (
        Simulator(SMALL, seconds="0") as sim,
        aiohttp.ClientSession(sim.url) as http,
    ):

        async def ask(request_id: str) -> None:
            headers = {"X-Request-Id": request_id}
            async with http.post("/v1/chat/completions", json=chat(), headers=headers) as reply:
                await reply.read()

        await ask("one-0")
        await ask("one-0")
        await ask("one-1")
        await ask("two-0")
        assert sim.stats.after_answer == 1
        assert sim.stats.asked_again == 1
        async with http.post("/stats/mark?name=half") as reply:
            assert sim.stats.marks == await reply.json()
        async with http.post("/stats/reset"):
            assert sim.stats.marks == {}
        await ask("one-0")
        assert (sim.stats.after_answer, sim.stats.requests) == (0, 1)


async def test_an_idle_connection_is_closed_as_vllm_does() -> None:
    async with Simulator(SMALL, seconds="0", keep_alive_s=0.1) as sim:
        host, port = sim.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nHost: sim\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.read() == b""
        writer.close()


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with Simulator(SMALL, seconds="uniform:0,0.02") as sim:
        host, port = sim.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(chat(max_tokens=5)).encode()
        for n in range(5):
            head = f"POST /v1/chat/completions HTTP/1.1\r\nX-Request-Id: item{n}-0\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        for n in range(5):
            head_ = await reader.readuntil(b"\r\n\r\n")
            length = int(head_.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            reply = json.loads(await reader.readexactly(length))
            assert reply["id"] == f"chatcmpl-item{n}-0"
        writer.close()
        assert sim.stats.answered == 5


async def test_what_is_no_http_is_refused() -> None:
    async with Simulator(SMALL) as sim:
        host, port = sim.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_times_are_the_clients_whatever_the_speed() -> None:
    async with Simulator(SMALL, speed=10) as sim, httpx.AsyncClient(base_url=sim.url) as http:
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = (await http.post("/v1/chat/completions", json=chat(max_tokens=101))).json()
        passed = loop.time() - began
    # 100 steps at 100 a second, ten times as fast.
    told = reply["metrics"]
    assert told["generation_time_ms"] == pytest.approx(100, abs=1)
    assert told["mean_itl_ms"] == pytest.approx(1.0, abs=0.01)
    assert told["tokens_per_second"] == pytest.approx(1010, rel=0.01)
    assert told["queue_time_ms"] == 0
    assert passed >= 0.1
