"""Tools on a machine where Waybill is installed need not be told where."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloud_ingest.where
import edge_agent.cli
from tests.support.nobody import nobody
from waybill.console.main import main
from waybill.monitor import places


def test_edge_status_goes_by_the_installed_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(edge_agent.cli, "INSTALLED", tmp_path / "agent.toml")
    assert main(["edge", "status"]) == 2
    assert "which agent? --data DIR or --config FILE" in capsys.readouterr().err
    (tmp_path / "agent.toml").write_text('gateway = "g"\ndata = "buffer"\n[[listener]]\n')
    (tmp_path / "buffer").mkdir()
    for arguments in ([], ["--config", str(tmp_path / "agent.toml")], ["--data", str(tmp_path / "buffer")]):
        assert main(["edge", "status", *arguments]) == 1
        assert f"nothing answers on {tmp_path / 'buffer' / 'agent.sock'}" in capsys.readouterr().err
    assert main(["edge", "status", "--config", "agent.toml", "--data", "buffer"]) == 2
    assert "give one" in capsys.readouterr().err


def test_the_tools_of_the_cloud_go_by_the_installed_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cloud_ingest.where, "INSTALLED", tmp_path / "cloud.toml")
    assert main(["cloud", "status"]) == 2
    assert "say which deployment" in capsys.readouterr().err
    (tmp_path / "cloud.toml").write_text('data = "here"\n[listener]\naddress = "nowhere"\n')
    assert main(["cloud", "status"]) == 2
    assert str(tmp_path / "cloud.toml") in capsys.readouterr().err


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Give a directory that everybody may enter: those of pytest are closed."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize("closed", ["etc", "etc/agent.toml"])
def test_an_ordinary_user_is_told_who_may_look(
    open_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: str
) -> None:
    """The package keeps ``/etc/waybill`` to its user: not even whether a configuration is there can be asked."""
    installed = open_directory / "etc/agent.toml"
    installed.parent.mkdir()
    installed.write_text('gateway = "g"\ndata = "buffer"\n')
    monkeypatch.setattr(edge_agent.cli, "INSTALLED", installed)
    monkeypatch.setattr(places, "INSTALLED", (installed,))
    for command in (["edge", "status"], ["monitor", "--once"]):
        main(command)  # imports what it needs, while it may
        capsys.readouterr()
        (open_directory / closed).chmod(0)
        with nobody():
            assert main(command) == 2
        (open_directory / closed).chmod(0o700)
        said = capsys.readouterr().err
        assert said.endswith(": not for this user; run it as root (sudo), or as who owns that\n")
        assert str(installed) in said
