"""``waybill edge`` as a process: kills, signals, bad input, the status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from pathlib import Path

import aiomqtt

from edge_agent.status import SOCKET
from fleet_simulator.link import Link as Relay
from tests.integration.edge.agents import process, publish
from tests.integration.edge.peer import GATEWAY, Cloud, listening, until
from waybill import passwords, snapshot
from waybill.config import address
from waybill.errors import Unavailable

CONFIG = """
gateway = "{gateway}"
data = "data"
[[listener]]
port = 0
[[uplink]]
url = "mqtt://{host}:{port}"
keepalive = 2
[forward]
linger_ms = 20
"""


def written(directory: Path, address: tuple[str, int]) -> str:
    path = directory / "edge.toml"
    path.write_text(CONFIG.format(gateway=GATEWAY, host=address[0], port=address[1]))
    return str(path)


async def status(directory: Path) -> tuple[int, str, str]:
    """Run ``waybill edge status --json``: exit code, output, errors."""
    async with process("status", "--json", "--data", str(directory)) as asked:
        out, err = await asked.process.communicate()
        assert asked.process.returncode is not None
        return asked.process.returncode, out.decode(), err.decode()


async def link_state(data: Path) -> str:
    """Return what a running agent says of its uplink."""
    return str((await snapshot.request(data / SOCKET, "snapshot"))["link"]["state"])


async def test_killed_and_started_again_it_goes_on_where_it_was(tmp_path: Path) -> None:
    rng = random.Random(11)
    acked: list[bytes] = []
    async with listening(Cloud()) as cloud:
        config = written(tmp_path, cloud.address)
        for life in range(3):
            async with process("run", "--config", config) as agent:
                await agent.ready()

                async def load(port: int = agent.port, life: int = life) -> None:
                    async with aiomqtt.Client("127.0.0.1", port, identifier="V7", timeout=60) as client:
                        for n in range(100_000):
                            payload = b"%d/%d" % (life, n)
                            await client.publish("vehicles/V7/telemetry", payload, qos=1)
                            acked.append(payload)

                enough = len(acked) + rng.randrange(20, 200)
                loading = asyncio.create_task(load())
                await until(lambda: len(acked) >= enough)  # noqa: B023 - called at once
                await agent.end(signal.SIGKILL)
                loading.cancel()
                await asyncio.wait([loading])
        async with process("run", "--config", config) as agent:
            await agent.ready()
            await until(lambda: set(acked) <= set(cloud.by_seq("telemetry").values()))
            assert await agent.end(signal.SIGTERM) == 0
    arrived = list(cloud.by_seq("telemetry").values())
    assert len(set(arrived)) == len(arrived)
    order = [tuple(map(int, payload.split(b"/"))) for payload in arrived]
    assert order == sorted(order)
    assert len({header.epoch for header in cloud.headers}) >= 3


async def test_sigterm_ends_it_with_exit_code_0_although_the_uplink_hangs(tmp_path: Path) -> None:
    async with (
        listening(Cloud()) as cloud,
        Relay(cloud.address) as relay,
        process("run", "--config", written(tmp_path, relay.address)) as agent,
    ):
        await agent.ready()
        await until(lambda: cloud.subscribed)
        memory = Path(f"/proc/{agent.process.pid}/status").read_text().split("VmRSS:")[1].split()[0]
        assert int(memory) < 45_000  # kB
        relay.black_hole()
        await publish(agent.port, [bytes(100_000)] * 20)
        assert await agent.end(signal.SIGTERM) == 0


async def test_sigterm_ends_it_with_exit_code_0_although_a_connection_attempt_hangs(tmp_path: Path) -> None:
    # A full backlog: the kernel answers no further SYN.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)
            async with process("run", "--config", written(tmp_path, address)) as agent:
                await agent.ready()
                async with asyncio.timeout(60):
                    while await link_state(tmp_path / "data") != "connecting":  # noqa: ASYNC110 - another process
                        await asyncio.sleep(0.05)
                assert await agent.end(signal.SIGTERM) == 0


async def test_status_of_a_running_and_of_a_stopped_agent(tmp_path: Path) -> None:
    async with process("run", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data")) as agent:
        await agent.ready()
        await publish(agent.port, [b"1", b"2"])
        code, out, _ = await status(tmp_path / "data")
        assert code == 0
        said = json.loads(out)
        assert said["link"]["state"] == "off"
        assert {lane["lane"]: lane["count"] for lane in said["lanes"]} == {"control": 0, "telemetry": 2}
        async with process("status", "--data", str(tmp_path / "data")) as asked:
            drawn, _ = await asked.process.communicate()
        assert b"none configured" in drawn
        assert await agent.end(signal.SIGTERM) == 0
    code, _, err = await status(tmp_path / "data")
    assert code == 1
    assert err.startswith("waybill edge: nothing answers on ")


async def test_bad_input_is_named_with_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('gateway = "gw1"\ndata = "data"\n[[uplink]]\nurl = "mqtts://localhost"\ncertficate = "x"\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, code, text in (
            (("run", "--config", str(tmp_path / "none.toml")), 2, "no such file"),
            (("run", "--config", str(config)), 2, "did you mean 'certificate'?"),
            (("run",), 2, "--config FILE"),
            (("run", "--listen", "here", "--data", str(tmp_path / "d")), 2, "write HOST:PORT"),
            (("run", "--listen", f"127.0.0.1:{port}", "--data", str(tmp_path / "d")), 1, "cannot listen"),
            (("status", "--data", str(tmp_path / "none")), 2, "no such directory"),
        ):
            async with process(*arguments) as agent:
                _, err = await agent.process.communicate()
                assert text in err.decode()
                assert "Traceback" not in err.decode()
                assert agent.process.returncode == code, err.decode()


async def test_it_runs_where_nothing_can_be_printed(tmp_path: Path) -> None:
    """As on a full disk to which its output is redirected."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_agent", "127.0.0.1:0", str(tmp_path / "data"), stdout=full, stderr=full
        )
        try:
            socket_file = tmp_path / "data" / SOCKET
            await until(lambda: socket_file.exists() or agent.returncode is not None)
            listeners: list[dict[str, str]] = []
            async with asyncio.timeout(60):
                while not listeners:
                    with contextlib.suppress(Unavailable):  # the file is there before anybody listens
                        listeners = (await snapshot.request(socket_file, "snapshot"))["listeners"]
            reader, writer = await asyncio.open_connection(*address(listeners[0]["address"]))
            writer.write(b"no MQTT at all")  # which is logged
            writer.write_eof()
            await reader.read()
            writer.close()
        finally:
            if agent.returncode is None:
                agent.terminate()
        assert await asyncio.wait_for(agent.wait(), 60) == 0
    finally:
        os.close(full)


async def test_each_line_of_the_log_names_the_gateway_and_none_has_a_secret_or_a_payload(tmp_path: Path) -> None:
    passwords.put(tmp_path / "users", "V7", b"good-secret")
    (tmp_path / "edge.toml").write_text(
        f'gateway = "{GATEWAY}"\ndata = "data"\n[logging]\nformat = "json"\n'
        '[[listener]]\nport = 0\npasswords = "users"\n'
        '[[acl]]\nuser = "*"\npublish = ["allowed/#"]\n'
        '[[uplink]]\nurl = "mqtt://127.0.0.1:1"\n'
    )
    async with process("run", "--config", str(tmp_path / "edge.toml")) as agent:
        await agent.ready()
        for password in ("bad-secret", "good-secret"):
            client = aiomqtt.Client(
                "127.0.0.1", agent.port, username="V7", password=password, identifier="V7", timeout=60
            )
            with contextlib.suppress(aiomqtt.MqttError):
                async with client:
                    await client.publish("denied/V7", b"a payload", qos=1, timeout=2)  # is not acknowledged
        await agent.end(signal.SIGTERM)
    lines = [json.loads(line) for line in agent.log.splitlines()]
    assert {line["gateway"] for line in lines} == {GATEWAY}
    assert any("is refused" in line["text"] for line in lines)
    assert any("may not publish" in line["text"] for line in lines)
    assert "secret" not in agent.log
    assert "payload" not in agent.log
