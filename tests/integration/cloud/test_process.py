"""The ingest as people run it: a process, its exit codes, and the tools beside it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest

from tests.integration.cloud.gateway import frame, status_frame
from tests.support.tools import ended
from tests.unit.mqtt import rig
from waybill import snapshot, wire
from waybill.errors import Unavailable
from waybill.wire import CommandStatus

WAYBILL = [sys.executable, "-m", "waybill"]


async def tool(*arguments: object) -> tuple[int, str, str]:
    """Run ``waybill ARGUMENTS`` to its end; return exit code, stdout and stderr."""
    return await ended(*WAYBILL, *arguments)


class Running:
    """A ``waybill cloud run`` that listens on ``port``."""

    def __init__(self, process: Process, port: int, data: Path) -> None:
        self.process = process
        self.port = port
        self.data = data

    async def stop(self) -> tuple[int, str]:
        """SIGTERM; return exit code and what it said."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@pytest.fixture
async def ingest(tmp_path: Path) -> AsyncIterator[Running]:
    data = tmp_path / "data"
    process = await asyncio.create_subprocess_exec(
        *WAYBILL, "cloud", "run", "--listen", "127.0.0.1:0", "--data", str(data), stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on 127.0.0.1:"), line
        yield Running(process, int(line.rpartition(":")[2]), data)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def sent(ingest: Running, *frames: bytes) -> None:
    """Send frames as the gateway g1 and wait until all are acked."""
    async with aiomqtt.Client("127.0.0.1", ingest.port, identifier="g1", timeout=60) as client:
        await client.subscribe(wire.ack_topic("g1"))
        for each in frames:
            await client.publish(wire.up_topic("g1"), each)
        count = 0
        async with asyncio.timeout(60):
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                count += sum(one.last - one.first + 1 for one in wire.decode_ack(message.payload).journaled)
                if count >= len(frames):
                    return


async def test_run_tail_status_audit_and_sigterm(ingest: Running) -> None:
    await sent(ingest, frame(1), frame(2), frame(3))
    code, out, _ = await tool("cloud", "tail", "fleet.telemetry", "--data", ingest.data, "--end", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["key"], line["value"]) for line in lines] == [("V1", f'{{"n":{n}}}') for n in (1, 2, 3)]
    assert lines[0]["headers"]["ce_id"] == "g1/4711/telemetry/1"

    code, out, _ = await tool("cloud", "status", "--data", ingest.data, "--json")
    shot = json.loads(out)
    assert (code, shot["state"], shot["frames"]["journaled"]) == (0, "running", 3)
    assert "embedded log" in (await tool("cloud", "status", "--data", ingest.data))[1]

    code, out, _ = await tool("cloud", "audit", "--data", ingest.data, "--json")
    (lane,) = json.loads(out)["lanes"]
    assert (code, lane["gateway"], lane["delivered"], lane["missing_count"]) == (0, "g1", 3, 0)
    assert (await tool("cloud", "audit", "g1", "--data", ingest.data))[0] == 0
    code, out, err = await tool("cloud", "audit", "nobody", "--data", ingest.data)
    assert out == ""
    assert await tool("cloud", "tail", "nothing", "--data", ingest.data, "--end") == (0, "", "nothing: no records\n")
    assert code == 2
    assert "nobody" in err

    code, err = await ingest.stop()
    assert code == 0
    assert "Traceback" not in err
    assert not (ingest.data / "cloud.sock").exists()
    # the log can be read when nobody runs
    assert len((await tool("cloud", "tail", "fleet.telemetry", "--data", ingest.data, "--end"))[1].splitlines()) == 3


async def test_tail_follows(ingest: Running) -> None:
    await sent(ingest, *(frame(n) for n in range(1, 13)))
    process = await asyncio.create_subprocess_exec(
        *WAYBILL, "cloud", "tail", "fleet.telemetry", "--data", str(ingest.data), stdout=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = [await process.stdout.readline() for _ in range(10)]
            await sent(ingest, frame(13))
            last = await process.stdout.readline()
        assert [line.split()[-1] for line in (*first, last)] == [b'{"n":%d}' % n for n in range(3, 14)]
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            await process.wait()
    assert process.returncode == 0


async def test_an_undeclared_gap_is_found_by_the_audit(ingest: Running) -> None:
    """An epoch that the gateway has settled, although its second message never came."""
    await sent(ingest, frame(1), frame(1, epoch=4712, previous=(4711, 2)))
    code, out = 0, ""
    async with asyncio.timeout(60):
        while code == 0:  # until the second frame is routed
            code, out, _ = await tool("cloud", "audit", "--data", ingest.data, "--json")
    lanes = {lane["epoch"]: lane for lane in json.loads(out)["lanes"]}
    assert code == 1
    assert lanes[4711]["missing"] == [[2, 2]]
    assert (await tool("cloud", "audit", "--data", ingest.data))[0] == 1


async def test_a_command_is_sent_watched_and_done(ingest: Running) -> None:
    where = ("--data", ingest.data)
    code, out, _ = await tool(
        "command", "send", "--gateway", "g1", "--device", "V1", "--name", "lock", "--payload", '{"a": 1}', *where
    )
    id_ = out.strip()
    assert code == 0
    async with aiomqtt.Client("127.0.0.1", ingest.port, identifier="g1", timeout=60) as client:
        await client.subscribe(wire.down_topic("g1"))
        async with asyncio.timeout(60):
            message = await anext(aiter(client.messages))
        assert isinstance(message.payload, bytes)
        envelope = wire.decode_envelope(message.payload)
        assert (envelope.id, envelope.name, envelope.payload) == (id_, "lock", b'{"a": 1}')
        for seq, state in enumerate(("delivered", "done"), 1):
            result = b"locked" if state == "done" else None
            status = CommandStatus(id_, "g1", "V1", state, 5, result)  # type: ignore[arg-type]
            await client.publish(wire.up_topic("g1"), status_frame(seq, status))
        code, out, _ = await tool("command", "watch", id_, "--timeout", "30s", *where)
    assert (code, out.splitlines()) == (0, ["delivered g1/V1", "done g1/V1 locked"])


async def test_a_command_that_expires_ends_the_watch_with_1(ingest: Running, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"\xff")
    where = ("--data", ingest.data)
    options = ("--gateway", "g1", "--device", "V1", "--name", "n", "--expires", "500ms", "--id", "mine")
    assert (await tool("command", "send", *options, "--payload-file", tmp_path / "payload", *where))[1] == "mine\n"
    code, out, _ = await tool("command", "watch", "mine", "--timeout", "30s", "--json", *where)
    assert (code, json.loads(out)["state"]) == (1, "expired")
    code, _, err = await tool("command", "watch", "unknown", "--timeout", "300ms", *where)
    assert code == 1
    assert "no state yet" in err


async def test_only_commands_are_written_through_the_socket(ingest: Running) -> None:
    reader, writer = await asyncio.open_unix_connection(str(ingest.data / "cloud.sock"))
    writer.write(b'{"op":"append","topic":"waybill.ledger","key":null,"value":null,"headers":[]}\n')
    assert "only waybill.commands" in json.loads(await reader.readline())["error"]
    writer.close()
    assert (ingest.data / "cloud.sock").stat().st_mode & 0o077 == 0


async def test_a_command_is_written_through_the_socket_and_a_wrong_one_is_not(ingest: Running) -> None:
    fields = {"id": "by-hand", "gateway": "g1", "device": "V1", "name": "lock", "expires_at": 1}
    await snapshot.request(ingest.data / "cloud.sock", "command", command=fields)
    code, out, _ = await tool("command", "watch", "by-hand", "--timeout", "30s", "--data", ingest.data)
    assert (code, out.partition(" ")[0]) == (1, "expired")
    for wrong, said in (
        ({**fields, "device": "V/1"}, "device 'V/1': use"),
        ("lock", "Expected `object`"),
        (None, "Expected `object`"),
    ):
        with pytest.raises(Unavailable, match=said):
            await snapshot.request(ingest.data / "cloud.sock", "command", command=wrong)


async def test_a_second_ingest_on_the_same_data_or_address_is_refused(ingest: Running, tmp_path: Path) -> None:
    code, _, err = await tool("cloud", "run", "--listen", "127.0.0.1:0", "--data", ingest.data)
    assert code == 2
    assert "in use by" in err
    code, _, err = await tool("cloud", "run", "--listen", f"127.0.0.1:{ingest.port}", "--data", tmp_path / "other")
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{ingest.port}" in err


async def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text('data = "d"\n[listener]\ncertificate = "s.pem"\nkey = "s.key"\nca = "ca.pem"\n')
    code, _, err = await tool("cloud", "run", "--config", path)
    assert code == 2
    assert str(tmp_path / "s.pem") in err
    path.write_text('data = "d"\n[listener]\naddress = "127.0.0.1:0"\n[[route]]\ntopic = "t"\nkey = "{x}"\n')
    code, _, err = await tool("cloud", "run", "--config", path)
    assert code == 2
    assert "{x}" in err
    (tmp_path / "d").mkdir(exist_ok=True)
    (tmp_path / "d" / "log.db").write_bytes(b"no database at all" * 100)
    path.write_text('data = "d"\n[listener]\naddress = "127.0.0.1:0"\n')
    code, _, err = await tool("cloud", "run", "--config", path)
    assert code == 2
    assert "log.db" in err
    path.write_text(
        'data = "d"\n[listener]\naddress = "127.0.0.1:0"\n[log]\nkind = "kafka"\n"bootstrap.server" = "k:1"\n'
    )
    code, _, err = await tool("cloud", "run", "--config", path)
    assert code == 2
    assert "bootstrap.server" in err


async def test_a_node_makes_room_for_the_connections_that_it_allows(tmp_path: Path) -> None:
    """A shell's soft limit of open files is 1,024; the hard one is what counts."""
    script = 'ulimit -Sn 64; exec "$@"'
    node = await asyncio.create_subprocess_exec(
        *("sh", "-c", script, "sh", *WAYBILL, "cloud", "run", "--listen", "127.0.0.1:0", "--data", str(tmp_path)),
        stdout=PIPE,
        stderr=PIPE,
    )
    assert node.stdout is not None
    try:
        async with asyncio.timeout(60):
            port = int((await node.stdout.readline()).decode().rpartition(":")[2])
        writers = []
        async with asyncio.timeout(60):
            for number in range(200):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                writer.write(rig.connect(f"g{number}"))
                assert (await reader.readexactly(4))[3] == 0
        for writer in writers:
            writer.transport.abort()
    finally:
        node.terminate()
        await node.communicate()
