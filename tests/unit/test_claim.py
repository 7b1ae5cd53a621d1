"""Who collects a job, and who takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanout.client import claim as module
from fanout.client.claim import Claim
from fanout.errors import Collected
from fanout.testing import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(module, "common_folder", lambda: tmp_path)
    return tmp_path


def left_behind(folder: Path) -> None:
    """Files as processes leave them that were killed: there, and not locked."""
    for file in list(folder.glob("*.alive")):
        file.unlink()
        file.touch()


async def test_a_second_collector_on_this_host_is_refused_at_once() -> None:
    store = MemoryStore()
    first, second = Claim(store, "job"), Claim(store, "job")
    await first.take()
    await first.take()  # again is the same
    with pytest.raises(Collected, match="job job is being collected by process"):
        await second.take()
    await first.let_go()
    await second.take()
    await second.let_go()
    await second.let_go()
    await first.take()
    await first.let_go()


async def test_what_a_dead_process_holds_is_free_at_once(folder: Path) -> None:
    store = MemoryStore()
    dead = Claim(store, "job", ttl_s=3600)
    await dead.take()
    dead._lifeline._file = None
    left_behind(folder)
    heir = Claim(store, "job", ttl_s=3600)
    await heir.take()
    await heir.let_go()
    await dead.let_go()


async def test_what_cannot_be_seen_from_here_is_waited_for(folder: Path) -> None:
    store = MemoryStore()
    assert await store.claim("job", "7 elsewhere abc", 0.2) == "7 elsewhere abc"
    heir = Claim(store, "job", ttl_s=3600)
    await heir.take()  # its holder has not renewed it
    await heir.let_go()
    assert await store.claim("job", "7 elsewhere abc", 3600) == "7 elsewhere abc"
    late = Claim(store, "job", ttl_s=0.01)
    late._ttl_s = -0.9  # its patience, and no more
    with pytest.raises(Collected, match="process 7 on elsewhere"):
        await late.take()


async def test_a_claim_that_another_has_taken_over_is_noticed() -> None:
    store = MemoryStore()
    cut_off = Claim(store, "job", ttl_s=0.05)
    await cut_off.take()
    cut_off.check()
    holder, _ = store._collectors["job"]
    store._collectors["job"] = "7 elsewhere abc", float("inf")
    assert holder != "7 elsewhere abc"
    assert cut_off._renewing is not None
    await cut_off._renewing
    with pytest.raises(Collected, match="process 7 on elsewhere"):
        cut_off.check()
    await cut_off.let_go()
    assert store._collectors["job"][0] == "7 elsewhere abc"
