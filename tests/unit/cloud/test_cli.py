"""The commands of a person: what is made, what is printed, which exit code."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_ingest.command_cli import describe
from cloud_ingest.config import Topics
from cloud_ingest.journal.embedded import EmbeddedLog
from cloud_ingest.journal.port import OutRecord
from cloud_ingest.logs import as_fields, from_fields
from waybill import pki
from waybill.console.main import main
from waybill.errors import Refused
from waybill.wire import CommandStatus


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(each) for each in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_certificates_from_nothing_to_a_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "cloud", "ca", "init")[0] == 0
    code, out, _ = run(capsys, "cloud", "server", "issue", "127.0.0.1", "ingest.example")
    assert code == 0
    assert f'certificate = "{tmp_path}/pki/server/server.pem"' in out
    code, out, _ = run(capsys, "cloud", "gateway", "issue", "depot-4")
    assert code == 0
    assert "pki/gateways/depot-4" in out
    bundle = tmp_path / "pki/gateways/depot-4"
    pki.client_context(bundle / "ca.pem", bundle / "gateway.pem", bundle / "gateway.key")
    code, _, err = run(capsys, "cloud", "gateway", "issue", "depot-4")
    assert code == 2
    assert "exists and is not overwritten" in err
    assert run(capsys, "cloud", "gateway", "issue", "../x")[0] == 2
    code, _, err = run(capsys, "cloud", "gateway", "issue", "x", "--ca", "nowhere")
    assert code == 2
    assert "ca init" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cloud", "run"], "give --config FILE"),
        (["cloud", "run", "--listen", "127.0.0.1:0"], "give --config FILE"),
        (["cloud", "run", "--listen", "0.0.0.0:1", "--data", "d"], "loopback only"),
        (["cloud", "run", "--config", "none.toml"], "none.toml: no such file"),
        (["cloud", "tail", "t"], "say which deployment"),
        (["cloud", "tail", "t", "--data", "none"], "no such directory"),
        (["cloud", "tail", "t", "--data", "."], "no such log"),
        (["cloud", "audit", "--data", ".", "--bootstrap", "x:1"], "say which deployment"),
        (["command", "send", "--gateway", "g", "--device", "a/b", "--name", "n", "--data", "."], "device 'a/b'"),
        (
            ["command", "send", "--gateway", "g", "--device", "d", "--name", "n", "--payload", "{", "--data", "."],
            "JSON",
        ),
        (["command", "send", "--gateway", "g", "--device", "d", "--name", "n", "--expires", "9", "--data", "."], "60s"),
        (["command", "watch", "x", "--timeout", "1y", "--data", "."], "no time span"),
    ],
)
def test_a_persons_mistake_is_said_with_its_mend_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err


def test_no_ingest_behind_the_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["cloud", "status"], ["command", "send", "--gateway", "g", "--device", "d", "--name", "n"]):
        code, _, err = run(capsys, *arguments, "--data", tmp_path)
        assert code == 1
        assert "is the process running" in err


def test_a_state_as_a_line() -> None:
    assert describe(CommandStatus("c", "g", "d", "done", 1, b'{"ok":1}')) == 'done g/d {"ok":1}'
    assert describe(CommandStatus("c", "g", "d", "expired", 1, reason="too late")) == "expired g/d too late"
    assert describe(CommandStatus("c", "g", "d", "delivered", 1)) == "delivered g/d"


def test_a_record_survives_the_socket() -> None:
    for record in (OutRecord("t", None, None, []), OutRecord("t", b"\xff", b"\x00", [("h", b"\xfe"), ("h", b"")])):
        assert from_fields(json.loads(json.dumps(as_fields(record)))) == record
    whole: dict[str, object] = {"topic": "t", "key": None, "value": None, "headers": []}
    for bad in (dict[str, object](), {**whole, "key": "?"}, {**whole, "value": 7}, {**whole, "headers": [1]}):
        with pytest.raises(Refused, match="append needs"):
            from_fields(bad)


def test_a_reader_leaves_the_handling_of_broken_connections_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With SIGPIPE at its default a broker that hangs up would end the process without a word."""
    before = signal.getsignal(signal.SIGPIPE)
    run(capsys, "cloud", "tail", "t", "--data", tmp_path, "--end")
    assert signal.getsignal(signal.SIGPIPE) == before == signal.SIG_IGN


def test_a_pipe_whose_reader_is_gone_ends_without_a_word(tmp_path: Path) -> None:
    async def fill() -> None:
        log = EmbeddedLog(tmp_path / "log.db", Topics())
        await log.start()
        for _ in range(50):
            await log.append(OutRecord("t", None, bytes(10_000), []))
        await log.close()

    asyncio.run(fill())
    program = "import sys; from waybill.console.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "cloud", "tail", "t", "--data", str(tmp_path), "--end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        tail.stdout.read(10)
        tail.stdout.close()
        assert tail.stderr.read() == b""
