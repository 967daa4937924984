"""docs/gateway.md: every command of the page, in its order, on one machine; test_deb.py has those of the package.

In a mount namespace of its own, where what changes in /etc, /opt, /usr and /var is in memory: nothing is left. One
machine plays both, so ``scp`` copies, ``sudo`` just runs, and the name of the ingest is in /etc/hosts. There is no
systemd: what the unit starts is started by hand, as the unit says it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PAGE = re.sub(r"(?ms)^## As a Debian package$.*?(?=^## )", "", (ROOT / "docs" / "gateway.md").read_text())
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMPUTER, GATEWAY = "computer", "gateway"
WHERE = [COMPUTER, COMPUTER, GATEWAY, GATEWAY, GATEWAY, COMPUTER, GATEWAY, GATEWAY]

PRELUDE = r"""
set -euo pipefail
for name in etc opt usr var; do
    mkdir -p "$WORK/over/$name"
done
mount -t tmpfs tmpfs "$WORK/over"
for name in etc opt usr var; do
    mkdir -p "$WORK/over/$name/up" "$WORK/over/$name/work"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$WORK/over/$name/up,workdir=$WORK/over/$name/work" "/$name"
done
echo '127.0.0.1 ingest.example' >> /etc/hosts
rm -rf /opt/waybill /etc/waybill /var/lib/waybill
sudo() { "$@"; }
scp() { shift 2; cp -r "${@:1:$#-1}" "$WORK/gateway"; }
serve() {
    mkdir -p /var/lib/waybill
    $(sed -n 's/^ExecStart=//p' /etc/systemd/system/waybill-edge.service) > "$WORK/agent.log" 2>&1 &
    echo $! >> "$WORK/pids"
    until grep -qs '^listening on' "$WORK/agent.log"; do kill -0 $!; sleep 0.1; done
}
"""


def script() -> str:
    """Return the page as one script."""
    assert len(BLOCKS) == len(WHERE)
    lines = [PRELUDE]
    for where, block in zip(WHERE, BLOCKS, strict=True):
        lines += [f'cd "$WORK/{where}"', 'echo "=== $PWD"', "set -x", block, "set +x"]
        if "cloud run" in block:
            lines += [
                'echo $! >> "$WORK/pids"',
                "until waybill cloud status --config cloud.toml >/dev/null 2>&1; do kill -0 $!; sleep 0.5; done",
            ]
        if "edge install --config" in block:
            lines += ["serve"]
    lines += ["test ! -e /etc/systemd/system/waybill-edge.service", "test -s /etc/waybill/agent.toml"]
    lines += ["test -s /var/lib/waybill/buffer.db", "du -sm --apparent-size /opt/waybill"]
    return "\n".join(lines)


def test_every_command_of_the_page(tmp_path: Path) -> None:
    computer = tmp_path / COMPUTER
    (tmp_path / GATEWAY).mkdir()
    (tmp_path / "over").mkdir()
    computer.mkdir()
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements",
        "edge_agent",
        "cloud_ingest",
        "shared",
        "simulators",
    ):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, computer / name)
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    log = tmp_path / "log"
    with log.open("w") as said:
        page = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", script()],
            env=os.environ | {"WORK": str(tmp_path), "PATH": path, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            code = page.wait(timeout=600)
        finally:
            if page.poll() is None:
                page.kill()
                page.wait()
            pids = tmp_path / "pids"
            for pid in pids.read_text().split() if pids.exists() else ():
                os.kill(int(pid), signal.SIGTERM)
    text = log.read_text()
    assert code == 0, text
    assert '{"speed": 50}' in text
    megabytes = re.findall(r"(?m)^(\d+)\t/opt/waybill$", text)
    assert [int(each) < 80 for each in megabytes] == [True]  # the page says 62, with pip and setuptools
    assert "failed" not in {line.split(" ")[0] for line in text.splitlines()}
