"""What a job works on: documents in any form, read in pieces without blocking the event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

from fanout.inputs import BadRow, Document

#: What `submit` takes as one document: a text, an object with a payload (and maybe an `id`), a
#: document as `fanout.inputs` reads it, or a row that could not be read.
Doc = str | Mapping[str, Any] | Document | BadRow

_T = TypeVar("_T")


def payload_of(doc: str | Mapping[str, Any] | Document, ordinal: int) -> tuple[str, Any]:
    """(id, payload) of a document; `ordinal` is the id of one that has none."""
    if isinstance(doc, str):
        return str(ordinal), {"text": doc}
    if isinstance(doc, Document):
        return doc.id, {"text": doc.text, "meta": doc.meta} if doc.meta else {"text": doc.text}
    payload = {key: value for key, value in doc.items() if key != "id"}
    return str(doc.get("id", ordinal)), payload


async def chunks(docs: Iterable[Doc] | AsyncIterable[Doc], size: int) -> AsyncIterator[list[Doc]]:
    """The documents in pieces of `size`."""
    if isinstance(docs, AsyncIterable):
        chunk: list[Doc] = []
        async for doc in docs:
            chunk.append(doc)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    documents: Iterator[Doc] = iter(docs)
    # Reading files blocks, and the collector runs on this loop.
    while taken := await _in_thread(lambda: list(itertools.islice(documents, size))):
        yield taken


async def _in_thread(call: Callable[[], _T]) -> _T:
    """What `call` returns, computed in a daemon thread of its own.

    `asyncio.to_thread` would be waited for at the end of the program: a read of a terminal or a
    pipe that gives nothing would then hold up Ctrl-C for ever.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def finish(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(_T, result))

    def run() -> None:
        result: _T | None = None
        failed: BaseException | None = None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - handed over to who waits
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, result, failed)

    threading.Thread(target=run, name="fanout reader", daemon=True).start()
    return await done
