"""The runtime's config.json and the users in it, from images' configurations and choices."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import RunError
from lazyfs.run.process import exit_status_of, stop_signal
from lazyfs.run.spec import Bind, Choices, ImageConfig, command_line, parse_config, runtime_spec
from lazyfs.run.users import User, resolve_user

PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:12:34::/srv:/bin/sh\n55:x:77:88::/odd:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nweb:x:34:\nextra:x:56:root,web\nmore:x:57:web\n"

IMAGE = ImageConfig(
    entrypoint=("/entry", "-x"),
    command=("serve",),
    environment=("PATH=/own", "A=1=2"),
    user="web",
    working_directory="/srv",
    volumes=("/data",),
)


@pytest.mark.parametrize(
    ("wish", "user"),
    [
        ("", User(0, 0, (56,), "/root")),
        ("web", User(12, 34, (56, 57), "/srv")),
        ("12", User(12, 34, (56, 57), "/srv")),
        ("55", User(77, 88, (), "/odd")),
        ("web:extra", User(12, 56, (), "/srv")),
        ("web:999", User(12, 999, (), "/srv")),
        ("4242", User(4242, 0, (), "/")),
        ("4242:0", User(4242, 0, (), "/")),
    ],
)
def test_users(wish: str, user: User):
    assert resolve_user(wish, PASSWD, GROUP) == user


@pytest.mark.parametrize("wish", ["nobody", "web:none", "-1", "4294967295", "web:4294967295", "²"])
def test_users_that_are_not_there(wish: str):
    with pytest.raises(RunError):
        resolve_user(wish, PASSWD, GROUP)


@given(st.text(), st.text(), st.text())
def test_hostile_files_give_a_user_or_an_error(wish: str, passwd: str, group: str):
    try:
        user = resolve_user(wish, passwd, group)
    except RunError:
        return
    assert 0 <= user.uid < 1 << 32
    assert 0 <= user.gid < 1 << 32


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({}, ["/entry", "-x", "serve"]),
        ({"command": ["a", "b"]}, ["/entry", "-x", "a", "b"]),
        ({"entrypoint": "/other"}, ["/other"]),
        ({"entrypoint": "/other", "command": ["a"]}, ["/other", "a"]),
        ({"entrypoint": "", "command": ["a"]}, ["a"]),
    ],
)
def test_command_lines(choices: dict, words: list[str]):
    assert command_line(IMAGE, Choices("name", **choices)) == words


def test_a_command_is_needed():
    with pytest.raises(RunError, match="no command"):
        command_line(ImageConfig(), Choices("name"))


def spec(**choices) -> dict:
    made = runtime_spec(IMAGE, Choices("name", **choices), User(12, 34, (56,), "/srv"), "/r", [])
    document: dict = json.loads(json.dumps(made))
    return document


def test_what_users_choose_comes_last():
    made = spec(environment={"A": "9"}, binds=[Bind("/s", "/d", True)], working_directory="/w")
    assert {"PATH=/own", "A=9", "HOSTNAME=name", "HOME=/srv"} == set(made["process"]["env"])
    assert made["process"]["cwd"] == "/w"
    assert made["mounts"][-1]["destination"] == "/d"
    assert "ro" in made["mounts"][-1]["options"]


def test_limits_and_namespaces():
    made = spec(memory_bytes=1 << 20, cpus=0.5, network="none", read_only=True)
    resources = made["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 20}
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000}
    assert {"type": "network"} in made["linux"]["namespaces"]
    assert made["root"] == {"path": "/r", "readonly": True}
    [volume] = [mount for mount in made["mounts"] if mount["destination"] == "/data"]
    assert "tmpcopyup" in volume["options"]
    assert {"type": "network"} not in spec()["linux"]["namespaces"]


def test_devices_are_made_only_where_the_kernel_guards_them():
    guarded, bare = spec(), spec(devices_limited=False)
    assert "CAP_MKNOD" in guarded["process"]["capabilities"]["bounding"]
    assert "CAP_MKNOD" not in bare["process"]["capabilities"]["bounding"]
    assert guarded["process"]["capabilities"]["effective"] == []


@pytest.mark.parametrize(
    "config",
    [[], {"Cmd": "sh"}, {"Env": [1]}, {"User": 3}, {"Volumes": []}, {"Cmd": ["a\0b"]}],
)
def test_broken_configurations(config):
    with_content = {"config": config or "text"}
    if config == {"Volumes": []}:
        assert parse_config(with_content).volumes == ()
        return
    with pytest.raises(RunError, match="broken"):
        parse_config(with_content)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", 127),
        ('unable to start container process: exec: "x": executable file not found in $PATH', 127),
        ("open executable: Permission denied", 126),
        ('unable to start container process: exec: "/x": permission denied', 126),
        ("mount `proc` to `proc`: Permission denied", 125),
    ],
)
def test_exit_statuses_of_what_runtimes_say(said: str, status: int):
    assert exit_status_of(said) == status


def test_stop_signals():
    assert [stop_signal(text) for text in ("", "SIGINT", "QUIT", "10")] == [15, 2, 3, 10]
    for text in ("SIGNONE", "999"):
        with pytest.raises(RunError):
            stop_signal(text)
