"""Tools on a machine where Waybill is installed need not be told where."""

from pathlib import Path

import pytest

import cloud_ingest.where
import edge_agent.cli
from waybill.console.main import main


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
