"""YAML as configuration is read: one plain document, bounded, with none of YAML's surprises.

Not accepted, each with an error that names file and line: more than 1 MiB; more than one document;
duplicate keys (YAML libraries let the last one win in silence); anchors, aliases and merge keys (a few
hundred bytes of them unfold into gigabytes); tags. Scalars follow YAML 1.2's core schema, so `no`, `on`
and `n` stay words, `010` and `12:30` stay text, and dates are not turned into objects.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from runtime.config_error import MISSING, ConfigError

MAX_BYTES = 1 << 20
_MAX_DEPTH = 32


def read_yaml(path: Path) -> Any:
    """The document of the file at `path` as dicts, lists and scalars; None when it is empty.

    Raises ConfigError when the file cannot be read or is not such a document.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _error(path, f"a readable file ({reason})") from error
    return parse_yaml(data, file=path)


def parse_yaml(data: bytes | str, *, file: Path | None) -> Any:
    """Like `read_yaml`, of what was read already; `file` is for the error's text."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        raise _error(file, f"a file of at most {MAX_BYTES >> 20} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(file, f"UTF-8 text (byte {error.start} is not)") from error
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader constructs plain values only
    except yaml.MarkedYAMLError as error:
        raise _error(file, f"valid YAML ({_explain(error)})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _error(file, f"valid YAML ({' '.join(str(error).split())[:200]})") from error


def _error(file: Path | None, expected: str) -> ConfigError:
    return ConfigError(file=file, key="", value=MISSING, expected=expected)


def _explain(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = " ".join((error.problem or error.context or "").split())
    # What `listen: [::1]:9400` comes to.
    unquoted = "<block end>" in problem or "node content" in problem
    hint = '; text that starts with "[" or "{" needs quotes' if unquoted else ""
    return f"{place}{problem}{hint}"


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """The pure-Python safe loader: libyaml's recursion can overflow the C stack, this one's cannot."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal("anchors and aliases are not accepted, write the value out", event.start_mark)
        if getattr(event, "tag", None):
            raise _refusal("tags are not accepted", event.start_mark)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _refusal(f"nested deeper than {_MAX_DEPTH}", event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be plain text", key.start_mark)
            if key.value in seen:
                raise _refusal(
                    f'duplicate key "{key.value}", first on line {seen[key.value]}', key.start_mark
                )
            seen[key.value] = key.start_mark.line + 1
            # Keys are names: `1:` and `true:` mean the words.
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys are not read: `<<` is a key like any other, and so an unknown one."""


# YAML 1.2, section 10.3.2, less octal and hexadecimal numbers.
_CORE = {
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,18})$"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(r"^[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?$"),
        list("-+0123456789"),
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
