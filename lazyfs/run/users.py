"""Who a container's process is: names resolved by the image's own passwd and group files."""

from dataclasses import dataclass

from lazyfs.errors import RunError

MAX_ID = (1 << 32) - 2
MAX_GROUPS = 65536
"""``NGROUPS_MAX`` of Linux."""


@dataclass(frozen=True, slots=True)
class User:
    """A user as the kernel knows it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary ones."""
    home: str = "/"


def resolve_user(wish: str, passwd: str, group: str) -> User:
    """The user that ``wish`` names: ``[USER][:GROUP]``, names or numbers, as Docker has it.

    Args:
        wish: of the image's configuration or of the command line; empty: root.
        passwd: the image's /etc/passwd, empty if it has none.
        group: its /etc/group.

    Raises:
        RunError: a name is not in there, or a number out of range.
    """
    name, colon, group_name = wish.partition(":")
    name = name or "0"
    fields = _line(passwd, name, 7)
    if fields is not None:
        uid, gid, home = _number(fields[2]), _number(fields[3]), fields[5] or "/"
        name = fields[0]
    elif name.isdigit():
        uid, gid, home = _number(name), 0, "/"
    else:
        raise RunError(f"the image's /etc/passwd has no user {name!r}")
    if not colon:
        return User(uid, gid, _memberships(group, name), home)
    found = _line(group, group_name, 4)
    if found is None and not group_name.isdigit():
        raise RunError(f"the image's /etc/group has no group {group_name!r}")
    return User(uid, _number(group_name if found is None else found[2]), (), home)


def _line(text: str, name: str, count: int) -> list[str] | None:
    """The first line of that name, or else of that number."""
    lines = [line.split(":") for line in text.splitlines()]
    lines = [fields for fields in lines if len(fields) == count]
    for column in (0, 2):
        for fields in lines:
            if fields[column] == name:
                return fields
    return None


def _memberships(group: str, name: str) -> tuple[int, ...]:
    lines = (line.split(":") for line in group.splitlines())
    found = [
        _number(fields[2]) for fields in lines if len(fields) == 4 and name in fields[3].split(",")
    ]
    return tuple(found[:MAX_GROUPS])


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MAX_ID:
        raise RunError(f"{text!r} is not the number of a user or a group")
    return int(text)
