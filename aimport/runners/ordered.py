"""Many users at once, shown in the order of the list: what `check` needs of a runner.

    jobs ──▶ stream ──▶ N workers ──▶ what came of it, by number ──▶ show, in order

A user who takes long holds up what is shown of those behind, and in the end their work: so much is kept and no more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aimport.model import UserJob
from aimport.pipeline import innermost

AHEAD: Final = 8  # arbitrary
"""So many users a worker may be begun before the first of them is shown."""

T = TypeVar("T")


async def each_in_order(
    jobs: Iterable[UserJob], users: int, act: Callable[[UserJob], Awaitable[T]], show: Callable[[T], None]
) -> None:
    """Does `act` for each, so many users at the same time; `show`s each result when all before it were shown.

    What `jobs`, `act` or `show` raise ends all of it, and comes out as it was raised.
    """
    send, receive = anyio.create_memory_object_stream[tuple[int, UserJob]](users)
    room = anyio.Semaphore(users * AHEAD)
    ended: dict[int, T] = {}
    next_ = 0

    async def feed(send: MemoryObjectSendStream[tuple[int, UserJob]]) -> None:
        async with send:
            for number, job in enumerate(jobs):
                await room.acquire()
                await send.send((number, job))

    async def work(receive: MemoryObjectReceiveStream[tuple[int, UserJob]]) -> None:
        nonlocal next_
        async with receive:
            async for number, job in receive:
                ended[number] = await act(job)
                while next_ in ended:
                    show(ended.pop(next_))
                    next_ += 1
                    room.release()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed, send)
            for _ in range(users):
                tasks.start_soon(work, receive.clone())
            receive.close()
    except ExceptionGroup as group:
        raise innermost(group) from group
