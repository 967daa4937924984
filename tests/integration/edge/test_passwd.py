"""``waybill edge passwd`` as a person and as a script use it."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from edge_agent.status import SOCKET
from tests.integration.edge.agents import process
from waybill import passwords, snapshot

COMMAND = (
    sys.executable, "-c", "import sys; from waybill.console.main import main; sys.exit(main())", "edge", "passwd",
)  # fmt: skip


def run(*arguments: str | Path, given: bytes = b"") -> tuple[int, str]:
    """Run it with ``given`` as its input: exit code and what it said."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], input=given, capture_output=True, check=False, timeout=60,
        env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


async def typed(path: Path, *answers: str) -> tuple[int, str]:
    """Run it on a terminal and type ``answers``: exit code and what the terminal shows."""
    ours, theirs = pty.openpty()
    try:
        # Of a session of its own it has no /dev/tty, and asks on its input: the terminal made here.
        process = await asyncio.create_subprocess_exec(
            *COMMAND, str(path), "V7", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        shown = b""
        for count, answer in enumerate(answers):
            async with asyncio.timeout(60):
                while shown.count(b": ") <= count:
                    shown += await asyncio.to_thread(os.read, ours, 1024)
            os.write(ours, answer.encode() + b"\n")
        async with asyncio.timeout(60):
            code = await process.wait()
        os.set_blocking(ours, False)
        return code, (shown + os.read(ours, 65536)).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_script_sets_and_deletes(tmp_path: Path) -> None:
    path = tmp_path / "users"
    assert run(path, "V7", "--stdin", given=b"s3cret\nmore") == (0, "")
    assert passwords.verify(passwords.load(path)["V7"], b"s3cret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert run(path, "V7", "--delete") == (0, "")
    assert not passwords.load(path)


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (("V/7", "--stdin"), b"x\n", "cannot be a user name"),
        (("V7", "--stdin"), b"", "the password of 'V7' has 0 bytes"),
        (("V7", "--stdin"), b"x" * 5000, "use 1 to 1024"),
        (("V7", "--delete"), b"", "no such file; nothing was changed"),
    ],
)
def test_bad_input_is_named_with_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], given: bytes, said: str
) -> None:
    code, out = run(tmp_path / "users", *arguments, given=given)
    assert code == 2
    assert said in out
    assert "Traceback" not in out
    assert not list(tmp_path.iterdir())


async def test_a_person_types_it_twice_and_unseen(tmp_path: Path) -> None:
    code, shown = await typed(tmp_path / "users", "s3cret", "s3cret")
    assert code == 0, shown
    assert "s3cret" not in shown
    assert passwords.verify(passwords.load(tmp_path / "users")["V7"], b"s3cret")


async def test_two_that_differ_change_nothing(tmp_path: Path) -> None:
    code, shown = await typed(tmp_path / "users", "s3cret", "secret")
    assert code == 2
    assert "the two passwords differ; nothing was changed" in shown
    assert not list(tmp_path.iterdir())


async def asked(data: Path) -> dict[str, Any]:
    """Return the status of the agent on ``data``."""
    answer: dict[str, Any] = await snapshot.request(data / SOCKET, "snapshot")
    return answer


async def test_a_running_agent_takes_over_what_passwd_wrote(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('gateway = "gw1"\ndata = "data"\n[[listener]]\nport = 0\npasswords = "users"\nname = "trucks"\n')
    async with process("run", "--config", str(config)) as agent:
        _, err = await agent.process.communicate()
        assert agent.process.returncode == 2
        assert f"{tmp_path}/users: no such password file; make it: waybill edge passwd" in err.decode()
    assert run(tmp_path / "users", "V7", "--stdin", given=b"seven\n") == (0, "")
    async with process("run", "--config", str(config)) as agent:
        await agent.ready()
        async with aiomqtt.Client("127.0.0.1", agent.port, username="V7", password="seven", timeout=60) as seven:
            with pytest.raises(aiomqtt.MqttError, match="Bad user name or password"):
                async with aiomqtt.Client("127.0.0.1", agent.port, username="V8", password="eight", timeout=60):
                    pass
            assert run(tmp_path / "users", "V8", "--stdin", given=b"eight\n") == (0, "")
            async with asyncio.timeout(60):
                while not (await asked(tmp_path / "data"))["counters"]["auth_reloads"]:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            async with aiomqtt.Client("127.0.0.1", agent.port, username="V8", password="eight", timeout=60):
                await seven.publish("t", b"x", qos=1)
            assert run(tmp_path / "users", "V7", "--delete") == (0, "")
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(60):
                    await anext(seven.messages)
        said = await asked(tmp_path / "data")
        address = f"127.0.0.1:{agent.port}"
        assert said["listeners"] == [{"name": "trucks", "kind": "mqtt", "address": address}]
        assert said["counters"]["auth_hashed"] == 3
        assert await agent.end(signal.SIGTERM) == 0
