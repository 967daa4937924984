"""Password files: what is in them, what is refused, and how they are changed."""

from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest

from waybill import passwords
from waybill.errors import ConfigError

SALT = base64.b64encode(bytes(16)).decode().rstrip("=")
KEY = base64.b64encode(bytes(32)).decode().rstrip("=")


def phc(head: str = "$argon2id$v=19$m=19456,t=2,p=1", salt: str = SALT, key: str = KEY) -> str:
    return f"{head}${salt}${key}"


def test_a_password_is_the_one_that_was_set_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "users"
    passwords.put(path, "truck-7", "grün".encode())
    passwords.put(path, "truck-8", b"grau")
    users = passwords.load(path)
    assert list(users) == ["truck-7", "truck-8"]
    assert users["truck-7"].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert passwords.verify(users["truck-7"], "grün".encode())
    assert not passwords.verify(users["truck-7"], b"grau")
    assert not passwords.verify(users["truck-7"], b"")


def test_two_with_one_password_have_two_hashes() -> None:
    assert passwords.encode(b"x") != passwords.encode(b"x")


def test_what_other_programs_wrote_within_the_bounds_is_read() -> None:
    """A known answer of the reference implementation."""
    known = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
    assert passwords.parse(f"u:{known}\r\n", Path("f")) == {"u": known}
    assert passwords.verify(known, b"password")
    assert not passwords.verify(known, b"Password")


def test_a_decoy_costs_what_its_model_costs_and_is_nobodys() -> None:
    model = phc("$argon2id$v=19$m=7168,t=1,p=1")
    decoy = passwords.decoy(model)
    assert decoy.startswith("$argon2id$v=19$m=7168,t=1,p=1$")
    assert passwords.parse(f"u:{decoy}", Path("f"))
    assert not passwords.verify(decoy, b"")
    assert passwords.decoy("").startswith(passwords.encode(b"x").rsplit("$", 2)[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "what follows is no argon2id hash"),
        (f":{phc()}", "it does not begin with a user name"),
        (f"a/b:{phc()}", "it does not begin with a user name"),
        (f"ok:{phc()}", "'ok' is there twice"),
        ("u:secret", "what follows is no argon2id hash"),
        ("u:$argon2i$v=19$m=19456,t=2,p=1$x$y", "no argon2id hash"),
        (f"u:{phc('$argon2id$v=16$m=19456,t=2,p=1')}", "no argon2id hash"),
        (f"u:{phc()} ", "no argon2id hash"),
        (f"u:{phc('$argon2id$v=19$m=4194304,t=2,p=1')}", "m=4194304, which must be from 7168 to 65536"),
        (f"u:{phc('$argon2id$v=19$m=8,t=1,p=1')}", "m=8, which must be"),
        (f"u:{phc('$argon2id$v=19$m=19456,t=1000000,p=1')}", "t=1000000, which must be from 1 to 5"),
        (f"u:{phc('$argon2id$v=19$m=19456,t=2,p=255')}", "p=255, which must be from 1 to 4"),
        (f"u:{phc(salt='AAAA')}", "its salt has 3 bytes, which must be from 8 to 64"),
        (f"u:{phc(key='AAAA')}", "its hash has 3 bytes"),
        (f"u:{phc(key='A' * 41)}", "its hash is no base64"),
    ],
)
def test_a_wrong_line_is_named_with_the_mend_and_without_the_hash(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        passwords.parse(f"# of the depot\n\nok:{phc()}\n{line}\n", Path("/etc/users"))
    assert str(raised.value).startswith("/etc/users: line 4: ")
    assert said in str(raised.value)
    assert KEY not in str(raised.value)
    assert "passwd" in str(raised.value) or "leave one" in str(raised.value)


@pytest.mark.parametrize(
    "name", ["", "a:b", "a+", "#a", "a/b", "a\nb", "a\0b", " a", "a ", "$a", "x" * 257, "a\x7f", "a\u2028b"]
)
def test_a_bad_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a user name"):
        passwords.put(tmp_path / "users", name, b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("password", [b"", b"x" * (passwords.MAX_PASSWORD + 1)])
def test_a_bad_password_is_refused(tmp_path: Path, password: bytes) -> None:
    with pytest.raises(ConfigError, match="use 1 to 1024"):
        passwords.put(tmp_path / "users", "u", password)


def test_setting_and_deleting_leave_the_other_lines_the_mode_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "users"
    passwords.put(path, "b", b"1")
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write(f"# ours\na:{phc()}\nbroken line")
    path.chmod(0o640)
    passwords.put(path, "b", b"2")
    passwords.put(path, "c", b"3")
    lines = path.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["b", "# ours", "a", "broken line", "c"]
    assert passwords.verify(lines[0].partition(":")[2], b"2")
    passwords.delete(path, "b")
    assert path.read_text().splitlines() == lines[1:]
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    for user in ("b", "", "# ours"):
        with pytest.raises(ConfigError, match="nothing was changed"):
            passwords.delete(path, user)


def test_setting_a_password_mends_the_users_own_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("u:broken\nu:twice\n")
    passwords.put(path, "u", b"x")
    assert passwords.verify(passwords.load(path)["u"], b"x")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    passwords.put(tmp_path / "link", "u", b"x")
    assert (tmp_path / "link").is_symlink()
    assert "u" in passwords.load(tmp_path / "real")


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "users"
    threads = [threading.Thread(target=passwords.put, args=(path, f"u{n}", b"x")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(passwords.load(path)) == [f"u{n}" for n in range(8)]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="waybill edge passwd"):
        passwords.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="no such file; nothing was changed"):
        passwords.delete(tmp_path / "none", "u")
    with pytest.raises(ConfigError, match="cannot be read"):
        passwords.load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        passwords.put(tmp_path / "no" / "users", "u", b"x")
    (tmp_path / "binary").write_bytes(b"# fine\n\xff\n")
    with pytest.raises(ConfigError, match="line 2: is no UTF-8"):
        passwords.load(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * (passwords.MAX_FILE + 1))
    with pytest.raises(ConfigError, match="larger than"):
        passwords.load(tmp_path / "huge")


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in ((pipe, "is no regular file"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(ConfigError, match=why):
            passwords.load(path)
        with pytest.raises(ConfigError, match=why):
            passwords.put(path, "a", b"secret")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
