"""The command `waybill`: what it imports, what it says, how it ends."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from waybill.console.main import PARTS, Part, main

APP = """
import sys
import typer
from waybill.errors import ConfigError, Unavailable

app = typer.Typer()

@app.command()
def greet(name: str) -> None:
    print("hello", name)

@app.command()
def fail(how: str) -> None:
    if how == "config":
        raise ConfigError("site.toml, line 3: no such lane; name one of telemetry, control")
    if how == "away":
        raise Unavailable("Kafka does not answer on 127.0.0.1:1")
    if how == "extra":
        import aio_what_is_not_installed
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "bug":
        raise ZeroDivisionError
    raise typer.Exit(int(how))
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    (tmp_path / "console_test_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    return {"test": Part("console_test_app:app", "edge", "for these tests")}


def test_it_runs_a_part(parts: dict[str, Part], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "greet", "Ada"], parts) == 0
    assert capsys.readouterr().out == "hello Ada\n"


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("0", 0, ""),
        ("7", 7, ""),
        ("config", 2, "waybill test: site.toml, line 3: no such lane; name one of telemetry, control\n"),
        ("away", 1, "waybill test: Kafka does not answer on 127.0.0.1:1\n"),
        (
            "extra",
            2,
            "waybill test: aio_what_is_not_installed is not installed: pip install 'waybill[edge]'\n",
        ),
    ],
)
def test_how_it_ends(
    parts: dict[str, Part], capsys: pytest.CaptureFixture[str], how: str, code: int, says: str
) -> None:
    assert main(["test", "fail", how], parts) == code
    assert capsys.readouterr().err == says


def test_an_interrupt_is_no_error(parts: dict[str, Part], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "fail", "interrupt"], parts) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_hidden(parts: dict[str, Part]) -> None:
    with pytest.raises(ZeroDivisionError):
        main(["test", "fail", "bug"], parts)


def test_wrong_arguments_are_named(parts: dict[str, Part], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "greet"], parts) == 2
    assert "Usage: waybill test greet" in capsys.readouterr().err
    assert main(["egde"]) == 2
    assert "waybill: there is no 'egde'; did you mean edge?" in capsys.readouterr().err


def test_an_own_module_that_is_missing_is_a_bug(parts: dict[str, Part]) -> None:
    with pytest.raises(ModuleNotFoundError):
        main(["test"], parts | {"test": Part("edge_agent.there_is_no_such_module:app", "edge", "")})


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_part(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}  " in said or f"  {name} " in said for name in PARTS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"waybill {importlib.metadata.version('waybill')}\n"


def test_the_command_itself_imports_no_part() -> None:
    script = "import sys, waybill.console.main as m; m.main(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    ).stderr
    heavy = {"aiokafka", "asyncio", "cryptography", "edge_agent", "cloud_ingest", "fleet_simulator", "typer", "rich"}
    assert heavy.isdisjoint(loaded.split())


def test_what_an_encoding_does_not_have_is_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "console_marks.py").write_text(
        "import typer\napp = typer.Typer()\n@app.command()\ndef main() -> None:\n    print('● online')\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from waybill.console.main import Part, main\n"
    code += "sys.exit(main(['p'], {'p': Part('console_marks:app', 'edge', 'x')}))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"? online\n", b"")
