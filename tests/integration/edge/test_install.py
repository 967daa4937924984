"""``waybill edge init``, ``install``, ``uninstall``: what they write, what they keep, what they refuse."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edge_agent import config
from edge_agent.setup import check_machine, init
from edge_agent.setup import install as setting_up
from waybill import pki
from waybill.console.main import main

PROGRAM = "/opt/waybill/bin/waybill"
UNIT = "etc/systemd/system/waybill-edge.service"
OF_ROOT = Path("/", "root", "users")
NOW = dt.datetime.now(dt.UTC)

BASIC = ("--uplink", "mqtt://127.0.0.1:1", "--gateway", "gw1", "--data", "/var/lib/waybill")


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    pki.ca_init(tmp_path / "ca", now=NOW)
    pki.issue_gateway(tmp_path / "ca", tmp_path / "pki", "plant-7", now=NOW)
    return tmp_path / "pki"


def written(directory: Path, *arguments: str) -> Path:
    path = directory / "agent.toml"
    assert main(["edge", "init", str(path), *arguments]) == 0
    return path


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if not path.is_dir()
    }


def test_flags_make_a_file_that_the_agent_takes(tmp_path: Path, bundle: Path) -> None:
    path = written(
        tmp_path, "--uplink", "mqtts://ingest.example", "--certificates", str(bundle), "--listen", "0.0.0.0:1883",
        "--devices", "500", "--budget-mb", "300", "--buffer-gb", "2",
    )  # fmt: skip
    made = config.load(path)
    assert made.gateway == "plant-7"  # as its certificate says
    assert made.uplinks[0].certificate == bundle / "gateway.pem"
    assert 'certificate = "pki/gateway.pem"' in path.read_text()
    assert made.uplinks[0].metered
    assert made.plan is not None
    assert made.plan.budget_bytes == 300_000_000
    assert made.buffer.max_bytes == 2_000_000_000
    assert made.limits.max_connections == 500
    assert made.listeners[0].passwords == tmp_path / "users"
    assert not made.listeners[0].lets_anybody
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(each.name for each in tmp_path.glob("agent*")) == ["agent.toml"]


@pytest.mark.parametrize("devices", ["1", "200", "100000"])
def test_the_comment_says_what_the_limits_allow(tmp_path: Path, devices: str) -> None:
    path = written(tmp_path, *BASIC, "--devices", devices)
    assert f"{config.memory_ceiling(config.load(path)) >> 20} MiB at most" in path.read_text()


def test_anybody_beyond_loopback_has_to_be_said_and_none_is_no_uplink(tmp_path: Path) -> None:
    path = written(tmp_path, "--uplink", "none", "--gateway", "g", "--listen", "0.0.0.0:1883", "--passwords", "none")
    made = config.load(path)
    assert made.uplinks == ()
    assert made.listeners[0].lets_anybody


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "--uplink: "),
        (("--uplink", "ingest.example"), "waybill edge: --uplink: 'ingest.example': write mqtts://HOST"),
        ((*BASIC, "--gateway", "a/b"), "cannot name a gateway"),
        ((*BASIC, "--listen", "1883"), "write HOST:PORT"),
        ((*BASIC, "--devices", "many"), "--devices: 'many' is no number"),
        ((*BASIC, "--devices", "1.5"), "a whole number from 1 to 100,000"),
        ((*BASIC, "--passwords", ""), "--passwords: write the name of a file, or none"),
        ((*BASIC, "--data", "/etc/passwd/x"), "--data: /etc/passwd is there and no directory"),
        ((*BASIC, "--data", "here"), "write the whole path"),
        ((*BASIC, "--buffer-gb", "0"), "a number from 0.1"),
        ((*BASIC, "--budget-mb", "-1"), "a whole number from 0"),
        ((*BASIC, "--certificates", "."), "ca.pem, gateway.pem, gateway.key not there"),
        (("--uplink", "none", "--gateway", "g", "--budget-mb", "5"), "--budget-mb: there is no uplink"),
        (("--uplink", "mqtts://h", "--certificates", "/none"), "ca.pem, gateway.pem, gateway.key not there"),
    ],
)
def test_a_bad_answer_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], text: str
) -> None:
    assert main(["edge", "init", str(tmp_path / "agent.toml"), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gateway_is_who_its_certificate_says(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    flags = ("--uplink", "mqtts://h", "--certificates", str(bundle), "--gateway")
    assert main(["edge", "init", str(path), *flags, "plant-8"]) == 2
    assert "--gateway: the certificate is of 'plant-7': take that id" in capsys.readouterr().err
    assert not path.exists()
    assert config.load(written(tmp_path, *flags, "plant-7")).gateway == "plant-7"


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("mine")
    assert main(["edge", "init", str(path), *BASIC]) == 2
    assert "stays as it is" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_flag_is_heeded_where_nothing_would_have_been_asked(tmp_path: Path) -> None:
    made = config.load(written(tmp_path, *BASIC, "--passwords", "users"))
    assert made.listeners[0].passwords == tmp_path / "users"


def test_in_a_terminal_it_asks_and_asks_again(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    here, there = pty.openpty()
    command = [sys.executable, "-m", "waybill", "edge", "init", str(path), "--devices", "50"]
    said = ""
    with subprocess.Popen(command, stdin=there, stdout=there, stderr=there) as asking:
        os.close(there)
        os.write(
            here,
            b"nonsense\nmqtt://127.0.0.1:1\nmy gateway\ngw9\n0.0.0.0\n0.0.0.0:1883\nnone\n/var/lib/waybill\n1.5\n0\n",
        )
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while part := os.read(here, 4096):
                said += part.decode()
        assert asking.wait(60) == 0
    os.close(here)
    assert "  'nonsense': write mqtts://HOST" in said
    assert "  '0.0.0.0': write HOST:PORT" in said
    assert "'my gateway' cannot name a gateway" in said
    made = config.load(path)
    assert (made.gateway, made.buffer.max_bytes, made.limits.max_connections) == ("gw9", 1_500_000_000, 50)
    assert made.listeners[0].lets_anybody


def test_ctrl_c_while_it_asks_writes_nothing_and_says_so(tmp_path: Path) -> None:
    here, there = pty.openpty()
    command = [sys.executable, "-m", "waybill", "edge", "init", str(tmp_path / "agent.toml")]
    with subprocess.Popen(command, stdin=there, stdout=there, stderr=there) as asking:
        os.close(there)
        said = ""
        while "keep everything here" not in said:
            said += os.read(here, 4096).decode()
        state = Path(f"/proc/{asking.pid}/stat")
        for _ in range(20):  # one that comes after the prompt and before the read ends nothing
            while state.read_text().rpartition(")")[2].split()[0] != "S":
                time.sleep(0.01)
            asking.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                asking.wait(5)
                break
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while part := os.read(here, 4096):
                said += part.decode()
        assert asking.wait(30) == 130
    os.close(here)
    assert said.endswith("\r\nnothing was written\r\n")
    assert not list(tmp_path.iterdir())


def test_the_default_of_the_buffer_is_half_of_what_is_free(tmp_path: Path) -> None:
    state = os.statvfs(tmp_path)
    half = min(8 << 30, state.f_bavail * state.f_frsize / 2) / 10**9
    assert abs(init.default_buffer_gb(tmp_path / "not" / "there") - half) < 0.2


# --- install ---


def install(root: Path, *arguments: str) -> int:
    return main(["edge", "install", "--root", str(root), "--program", PROGRAM, *arguments])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    made.mkdir()
    return made


def test_an_image_gets_user_configuration_and_unit_and_the_second_time_nothing(
    tmp_path: Path, root: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path, "--uplink", "mqtts://h", "--certificates", str(bundle), "--data", "/var/lib/waybill", "--devices", "9"
    )
    assert install(root, "--config", str(path), "--dry-run") == 0
    assert not list(root.iterdir())
    assert install(root, "--config", str(path)) == 0
    made = tree(root)
    assert made["etc/waybill/agent.toml"] == path.read_text()
    assert made["etc/waybill/pki/gateway.key"] == (bundle / "gateway.key").read_text()
    assert stat.S_IMODE((root / "etc/waybill/pki/gateway.key").stat().st_mode) == 0o640
    assert made["etc/sysusers.d/waybill.conf"].startswith("u waybill ")
    assert made["etc/systemd/system/multi-user.target.wants/waybill-edge.service"] == "../waybill-edge.service"
    assert f"ExecStart={PROGRAM} edge run --config /etc/waybill/agent.toml\n" in made[UNIT]
    ceiling = config.memory_ceiling(config.load(path))
    (limit,) = [line for line in made[UNIT].splitlines() if line.startswith("MemoryMax=")]
    assert ceiling + (64 << 20) < int(limit.removeprefix("MemoryMax=").removesuffix("M")) << 20 < ceiling + (256 << 20)
    config.load(root / "etc/waybill/agent.toml")
    capsys.readouterr()
    assert install(root) == 0
    assert tree(root) == made
    said = capsys.readouterr().out
    assert "written" not in said
    assert "kept       /etc/waybill/agent.toml" in said


def test_an_image_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, *BASIC)
    assert install(tmp_path / "typo", "--config", str(path)) == 2
    assert main(["edge", "uninstall", "--root", str(tmp_path / "typo")]) == 2
    assert capsys.readouterr().err.count(f"--root {tmp_path}/typo: no such directory") == 2
    assert not (tmp_path / "typo").exists()


def test_a_configuration_that_is_there_is_never_overwritten_and_the_unit_is_ours(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(root, "--config", str(written(tmp_path, *BASIC))) == 0
    mine = (root / "etc/waybill/agent.toml").read_text() + "# mine\n"
    (root / "etc/waybill/agent.toml").write_text(mine)
    (root / UNIT).write_text("[Service]\n")
    capsys.readouterr()
    assert install(root, "--config", str(tmp_path / "agent.toml")) == 0
    assert f"kept       /etc/waybill/agent.toml: {tmp_path}/agent.toml is another one" in capsys.readouterr().out
    assert (root / "etc/waybill/agent.toml").read_text() == mine
    assert "Type=notify" in (root / UNIT).read_text()


def test_a_unit_that_no_longer_fits_is_found(tmp_path: Path, root: Path) -> None:
    path = root / "etc/waybill/agent.toml"
    assert install(root, "--config", str(written(tmp_path, *BASIC))) == 0
    (found,) = check_machine.service(path, config.load(path), root)
    assert found.verdict == "ok"
    path.write_text(path.read_text().replace("max_connections = 200", "max_connections = 20000"))
    (found,) = check_machine.service(path, config.load(path), root)
    assert found.verdict == "warning"
    assert install(root) == 0
    (found,) = check_machine.service(path, config.load(path), root)
    assert found.verdict == "ok"
    assert not list(check_machine.service(tmp_path / "agent.toml", config.load(path), root))


def test_data_elsewhere_may_be_written(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('gateway = "g"\ndata = "/srv/waybill"\n')
    assert install(root, "--config", str(path)) == 0
    assert "ReadWritePaths=/srv/waybill\n" in (root / UNIT).read_text()
    assert "make /srv/waybill yourself" in capsys.readouterr().out
    assert main(["edge", "uninstall", "--root", str(root)]) == 0
    assert "/etc/waybill and /srv/waybill: the messages that wait" in capsys.readouterr().out
    assert main(["edge", "uninstall", "--root", str(root), "--purge"]) == 0
    assert "/srv/waybill stays" in capsys.readouterr().out


def test_a_program_that_is_not_in_the_image_is_told(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, *BASIC)
    assert install(root, "--config", str(path), "--dry-run") == 0
    assert f"put waybill where the unit starts it, {PROGRAM}" in capsys.readouterr().out
    (root / str(PROGRAM).lstrip("/")).parent.mkdir(parents=True)
    (root / str(PROGRAM).lstrip("/")).touch()
    assert install(root, "--config", str(path), "--dry-run") == 0
    assert "put waybill where" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (None, (), "write one (waybill edge init FILE)"),
        ('data = "d"', (), 'write data = "/var/lib/waybill"'),
        ('data = "/home/pi/d"', (), "does not see /home/pi/d"),
        ('data = "/var/lib/waybill"', ("--program", "/home/pi/venv/bin/waybill"), "does not see what is below /home"),
        ('data = "/var/lib/waybill"', ("--program", "waybill"), "write the whole path"),
        (
            f'data = "/var/lib/waybill"\n[[listener]]\npasswords = "{OF_ROOT}"',
            (),
            f"would not find {OF_ROOT}",
        ),
        ('data = "/var/lib/waybill"\nunknown = 1', (), "unknown key"),
    ],
)
def test_what_the_service_could_not_use_is_refused_and_nothing_is_changed(
    tmp_path: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    arguments: Sequence[str],
    said: str,
) -> None:
    path = tmp_path / "agent.toml"
    if text is not None:
        path.write_text(f'gateway = "g"\n{text}\n')
        arguments = ("--config", str(path), *arguments)
    assert install(root, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(root.iterdir())


def test_the_agent_is_taken_away_and_its_data_stays_unless_told(tmp_path: Path, root: Path) -> None:
    assert install(root, "--config", str(written(tmp_path, *BASIC))) == 0
    data = root / "var/lib/waybill"
    data.mkdir(parents=True)
    (data / "buffer.db").write_text("messages")
    (root / "etc/passwd").write_text("not ours")
    before = tree(root)
    assert main(["edge", "uninstall", "--root", str(root), "--purge", "--dry-run"]) == 0
    assert tree(root) == before
    for _ in range(2):
        assert main(["edge", "uninstall", "--root", str(root)]) == 0
        assert tree(root).keys() == {"etc/waybill/agent.toml", "var/lib/waybill/buffer.db", "etc/passwd"}
    assert main(["edge", "uninstall", "--root", str(root), "--purge"]) == 0
    assert tree(root).keys() == {"etc/passwd"}


def test_where_systemd_runs_the_agent_is_started_and_anew_only_for_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what would be done: ``/`` is looked at as if it were the image."""
    root = tmp_path / "image"
    root.mkdir()
    path = written(tmp_path, *BASIC)
    monkeypatch.setattr(setting_up, "RUNNING", tmp_path)
    monkeypatch.setattr(setting_up, "_below", lambda _root, path: root / path.relative_to("/"))
    first = setting_up.install(Path("/"), path, Path(PROGRAM))
    assert [step.text for step in first][-2:] == [
        "run        systemctl daemon-reload",
        "run        systemctl restart waybill-edge.service",
    ]
    assert install(root, "--config", str(path)) == 0
    assert (
        setting_up.install(Path("/"), path, Path(PROGRAM))[-1].text == "run        systemctl start waybill-edge.service"
    )
    (root / UNIT).write_text("[Service]\n")
    assert setting_up.install(Path("/"), path, Path(PROGRAM))[-1].text.split()[2] == "restart"


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_this_machine_is_changed_by_root_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    arguments = ["--program", PROGRAM, "--config", str(written(tmp_path, *BASIC))] if command == "install" else []
    assert main(["edge", command, *arguments]) == 2
    assert "as root" in capsys.readouterr().err
