"""The relay as a bad link: what both ends see."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from fleet_simulator.link import Link
from fleet_simulator.network.profiles import Model

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Target:
    """A server that keeps the connections that it accepted."""

    address: tuple[str, int] = ("", 0)
    accepted: asyncio.Queue[Ends] = field(default_factory=asyncio.Queue)


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    one = Target()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one.accepted.put_nowait((reader, writer))

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    one.address = server.sockets[0].getsockname()
    yield one
    server.close()
    while not one.accepted.empty():
        one.accepted.get_nowait()[1].transport.abort()


@pytest.fixture
async def link(target: Target) -> AsyncIterator[Link]:
    async with Link(target.address) as one:
        yield one


async def connected(link: Link, target: Target) -> tuple[Ends, Ends]:
    near = await asyncio.open_connection(*link.address)
    near[1].write(b"hello")
    far = await target.accepted.get()
    assert await far[0].readexactly(5) == b"hello"
    return near, far


def close(*ends: Ends) -> None:
    for _, writer in ends:
        writer.transport.abort()


async def test_passes_bytes_both_ways_and_counts_them(link: Link, target: Target) -> None:
    near, far = await connected(link, target)
    big = bytes(range(256)) * 8192
    far[1].write(big)
    assert await near[0].readexactly(len(big)) == big
    assert (link.bytes_up, link.connections) == (5, 1)
    near[1].write_eof()
    assert await far[0].read() == b""
    far[1].write(b"after the end of the other direction")
    far[1].close()
    assert await near[0].read() == b"after the end of the other direction"
    assert link.bytes_down == len(big) + 36
    close(near, far)


async def test_cut_resets_and_refuses_until_restored(link: Link, target: Target) -> None:
    near, far = await connected(link, target)
    await link.cut()
    assert link.is_cut
    for reader, _ in (near, far):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*link.address)
    await link.restore()
    again = await connected(link, target)
    close(near, far, *again)


async def test_black_hole_is_silent_and_keeps_what_waits(link: Link, target: Target) -> None:
    near, far = await connected(link, target)
    link.black_hole()
    near[1].write(b"late")
    late = await asyncio.open_connection(*link.address)
    late[1].write(b"later")
    for reader in (far[0], near[0], late[0]):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
    assert target.accepted.empty()
    await link.restore()
    assert await far[0].readexactly(4) == b"late"
    other = await target.accepted.get()
    assert await other[0].readexactly(5) == b"later"
    close(near, far, late, other)


async def test_half_open_ends_one_side_only(link: Link, target: Target) -> None:
    near, far = await connected(link, target)
    link.half_open()
    with pytest.raises(ConnectionResetError):
        await far[0].read()
    near[1].write(b"to nobody")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(near[0].read(1), 0.1)
    again = await connected(link, target)
    close(near, far, *again)


async def test_a_target_that_is_away_looks_like_a_reset(free_port: int) -> None:
    async with Link(("127.0.0.1", free_port)) as link:
        reader, writer = await asyncio.open_connection(*link.address)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.transport.abort()


async def test_delay_is_each_way_and_keeps_the_rate(link: Link, target: Target) -> None:
    near, far = await connected(link, target)
    link.change(Model(delay_ms=500))
    loop = asyncio.get_running_loop()
    start = loop.time()
    for n in range(40):
        near[1].write(bytes([n]))
        await asyncio.sleep(0.01)
    assert await far[0].readexactly(40) == bytes(range(40))
    # Not a speed: no byte came sooner than the delay, and forty did not wait for one another's.
    assert 0.5 <= loop.time() - start < 40 * 0.5
    close(near, far)


async def test_a_rate_holds_for_a_connection_that_exists_and_ends_with_the_next_network(
    link: Link, target: Target
) -> None:
    near, far = await connected(link, target)
    link.change(Model(up_kbit=80))  # 10,000 bytes a second
    loop = asyncio.get_running_loop()
    start = loop.time()
    near[1].write(bytes(5000))
    assert len(await far[0].readexactly(5000)) == 5000
    assert loop.time() - start >= 0.5
    link.change(Model())
    assert link.network == Model()
    near[1].write(bytes(1 << 20))  # a hundred seconds of the network before
    async with asyncio.timeout(60):
        assert len(await far[0].readexactly(1 << 20)) == 1 << 20
    close(near, far)


async def test_losses_are_delays_and_are_counted(link: Link, target: Target) -> None:
    near, far = await connected(link, target)
    assert link.packets_lost == 0
    link.change(Model(loss_good=0.3))
    big = bytes(range(256)) * 50
    near[1].write(big)
    assert await far[0].readexactly(len(big)) == big
    counted = link.packets_lost
    assert counted > 0
    await link.cut()
    assert link.packets_lost == counted
    close(near, far)


async def test_a_slow_link_takes_no_more_than_it_can_pass_on(link: Link, target: Target) -> None:
    """What does not fit waits at the sender, who notices, and not in the relay."""
    near, far = await connected(link, target)
    link.change(Model(up_kbit=8))
    near[1].transport.set_write_buffer_limits(high=0)
    near[1].write(bytes(16 << 20))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(near[1].drain(), 0.3)
    assert link.bytes_up < 5000
    close(near, far)


async def test_half_open_says_how_many_connections_there_were(link: Link, target: Target) -> None:
    assert link.half_open() == 0
    ends = await connected(link, target)
    assert link.half_open() == 1
    close(*ends)
