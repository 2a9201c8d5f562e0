"""Groups as JSON, for people to read and edit."""

import json
from typing import Any

from bnrate.groups._values import Group, Groups, Member

_FORM = '{"groups": [[{"path": "layer/kernel", "axes": [1]}, ...], ...]}'
_FIELDS = {
    "axes": ("a list of whole numbers, like [0, 2]", 1),
    "shape": ("a list of whole numbers, like [512, 8, 64]", 1),
    "part": ("a list of ranges [axis, start, stop], like [[1, 0, 8]]", 2),
}


def to_json(groups: Groups) -> str:
    """Groups as JSON with one group a line; what a member does not need is left out."""
    lines = [json.dumps([_written(member) for member in group.members]) for group in groups]
    body = ",\n".join(f"    {line}" for line in lines)
    return f'{{\n  "groups": [\n{body}\n  ]\n}}\n' if lines else '{\n  "groups": []\n}\n'


def from_json(text: str) -> Groups:
    """Read back what `to_json` wrote.

    Raises:
      ValueError: the text is not JSON, or not of that form; the message shows the offending part.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected {_FORM}") from error
    if not (isinstance(document, dict) and set(document) == {"groups"}):
        raise ValueError(f"expected an object with the one key 'groups', like {_FORM}")
    if not isinstance(document["groups"], list):
        raise ValueError(f"'groups' must be a list of groups, like {_FORM}")
    return Groups(map(_group, document["groups"]))


def _written(member: Member) -> dict[str, Any]:
    fields = {name: getattr(member, name) for name in _FIELDS}
    return {"path": member.path} | {name: value for name, value in fields.items() if value}


def _group(group: Any) -> Group:
    if not isinstance(group, list):
        raise ValueError(f"a group must be a list of members, got {group!r}; expected {_FORM}")
    return Group(map(_member, group))


def _member(member: Any) -> Member:
    legal = isinstance(member, dict) and set(member) <= {"path", *_FIELDS}
    if not (legal and isinstance(member.get("path"), str)):
        raise ValueError(
            f"a member has a 'path' and perhaps 'axes', 'shape' and 'part', got {member!r}; "
            f"expected {_FORM}"
        )
    for name, (form, depth) in _FIELDS.items():
        if name in member and not _nested(member[name], depth):
            raise ValueError(
                f"'{name}' of leaf '{member['path']}' must be {form}, got {member[name]!r}"
            )
    return Member(**member)


def _nested(value: Any, depth: int) -> bool:
    """Whether this is a list, of lists, of integers."""
    if depth == 0:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, list) and all(_nested(one, depth - 1) for one in value)
