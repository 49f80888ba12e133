"""How the `remnant memory` commands print for people; memories are data, so nothing in them is markup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remnant.cli._output import print_fields, print_table, stdout
from remnant.memory.display import FIELDS, field_changes, field_text
from remnant.text import Piece, short, visible, when

if TYPE_CHECKING:
    from rich.text import Text

    from remnant.memory import Memory

Data = Mapping[str, Any]

_WIDE = 100
_TIMES = ("valid_from", "valid_to", "created_at", "observed_at")
_COLOURS = {"cut": "red strike", "new": "green", "same": ""}
_MARKS = {"cut": ("[-", "-]"), "new": ("{+", "+}"), "same": ("", "")}


def records(found: Data) -> None:
    """A line per record."""
    _scope(found)
    if not found["records"]:
        stdout().print("no records")
        return
    print_table(("id", "kind", "status", "trust", "used", "changed (UTC)", "content"), map(_row, found["records"]))
    if found["next"]:
        stdout().print(f"more: --after {visible(found['next'], lines=False)}")


def _row(record: Data) -> Sequence[object]:
    content = short(record["content"], _WIDE)
    changed = when(record["observed_at"])
    return record["id"], record["kind"], record["status"], record["trust"], _use(record["utility"]), changed, content


def _use(utility: Data) -> str:
    if not utility["used"]:
        return ""
    return f"{utility['used']} (+{utility['helped']} -{utility['harmed']})"


def record(found: Data) -> None:
    """Every field of a record, its text last."""
    lines: dict[str, Any] = {name: found[name] for name in ("scope", "id", "version")}
    lines |= {name: text for name in FIELDS[1:] if (text := field_text(name, found[name]))}
    lines |= {name: when(found[name]) for name in _TIMES if found[name] is not None}
    lines |= {"used": _use(found["utility"]) or "never", "retrieved": found["utility"]["retrieved"]}
    for number, source in enumerate(found["provenance"], 1):
        parts = (source["source_type"], source["source_id"], source["author"], source["model_id"])
        lines[f"source {number}"] = " ".join(part for part in parts if part)
    print_fields(lines)
    _echo("")
    _echo(found["content"])


def hits(found: Data) -> None:
    """A line per hit, best first."""
    _scope(found, f"strategy {found['strategy']}")
    if not found["hits"]:
        stdout().print("nothing found")
        return
    rows = (
        (
            f"{hit['score']:.3f}",
            " ".join(f"{name} {part:.3f}" for name, part in hit["parts"].items()),
            hit["trust"],
            hit["record"]["kind"],
            hit["id"],
            short(hit["text"], _WIDE),
        )
        for hit in found["hits"]
    )
    print_table(("score", "of", "trust", "kind", "id", "content"), rows)


def changes(found: Data) -> None:
    """A line per change, newest first."""
    _scope(found)
    rows = (
        (row["number"], when(row["time"]), row["actor"], len(row["ids"]), row["undoes"] or "", short(row["reason"], 60))
        for row in found["changes"]
    )
    print_table(("change", "time (UTC)", "by", "records", "undoes", "reason"), rows)


def versions(found: Data) -> None:
    """Each version of a record with what became different."""
    _scope(found)
    before: Data | None = None
    for row in found["versions"]:
        change = row["change"]
        title = f"version {row['record']['version']}  change {change['number']}  {when(change['time'])}"
        _echo(_text(f"{title}  {short(change['actor'], 40)}  {short(change['reason'], 60)}", "bold"))
        _difference(before, row["record"])
        before = row["record"]


def differences(found: Data) -> None:
    """What differs, record by record."""
    _scope(found)
    if not found["differences"]:
        stdout().print("no difference")
    for row in found["differences"]:
        before, after = row["before"], row["after"]
        what = "added" if before is None else "removed" if after is None else "changed"
        _echo(_text(f"{what} {visible(row['id'], lines=False)}", "bold"))
        _difference(before, after)


def _difference(before: Data | None, after: Data | None) -> None:
    for name, pieces in field_changes(before, after):
        line = _text().append(f"  {name}: ", "dim")
        line.append_text(_compared(pieces))
        _echo(line)


def _compared(pieces: Sequence[Piece]) -> Text:
    """Both versions in one, in colours; in brackets where there are none."""
    line, plain = _text(), stdout().no_color or not stdout().is_terminal
    for tag, part in pieces:
        opening, closing = _MARKS[tag] if plain else ("", "")
        line.append(f"{opening}{part}{closing}", _COLOURS[tag])
    return line


def stats(found: Data) -> None:
    """Counts, a line each."""
    lines: dict[str, Any] = {"scope": found["scope"]}
    lines["strategy"] = ", ".join(found["strategies"]) or "none has distilled here"
    for group in ("records", "episodes", "distillations"):
        lines |= {f"{group} {name}": count for name, count in found[group].items()}
    lines["last change"] = found["last_change"]
    if found["bytes"] is not None:
        lines["bytes"] = f"{found['bytes']:,}"
    print_fields(lines)
    for failure in found["failures"]:
        print_fields({"failed": f"{failure['key']}: {short(failure['error'], _WIDE)}"})


def episodes(found: Data) -> None:
    """A line per episode, newest first."""
    _scope(found)
    rows = (
        (
            row["id"],
            row["verdict"] if row["closed_at"] else "open",
            row["source"],
            when(row["opened_at"]),
            row["distillation"],
            short(row["task"], _WIDE) or ("(forgotten)" if row["erased"] else ""),
        )
        for row in found["episodes"]
    )
    print_table(("id", "verdict", "by", "opened (UTC)", "distilled", "task"), rows)


def episode(found: Data) -> None:
    """An episode, its steps and the records it taught."""
    names = ("scope", "id", "task", "verdict", "source", "group", "distillation", "error")
    print_fields({name: found[name] for name in names if found[name]})
    print_fields({name: when(found[name]) for name in ("opened_at", "closed_at") if found[name]})
    for number, step in enumerate(found["steps"]):
        _echo(_text(f"step {number}", "bold"))
        _echo(visible(json.dumps(step, indent=2, ensure_ascii=False, default=str)))
    for record in found["taught"]:
        _echo(f"taught {record['id']} ({record['status']}): {short(record['content'], _WIDE)}")


def at_stake(memory: Memory, ids: Sequence[str]) -> None:
    """What `forget` would erase, before it is asked for."""
    print_fields({"scope": memory.scope})
    sources: set[str] = set()
    for id in ids:
        history = memory.audit(id)
        sources |= {s.source_id for _, r in history for s in r.provenance if s.source_type == "episode"}
        _echo(f"{id}  versions: {len(history)}  {short(history[-1][1].content if history else '', _WIDE)}")
    if sources:
        _echo(f"and the task and steps of the episodes it came from: {', '.join(sorted(sources))}")


def receipt(found: Data) -> None:
    """What `forget` erased, and what it left."""
    print_fields({"scope": found["scope"], "erased": ", ".join(found["ids"])})
    print_fields({name: found[name] for name in ("versions", "vectors", "words", "steps")})
    if found["episodes"]:
        print_fields({"episodes": ", ".join(found["episodes"])})
    if found["derived"]:
        _echo(f"kept, though made from it; forget them too if they tell: {' '.join(found['derived'])}")
    if found["clean"]:
        _echo("no byte of it is left in the store's files")
    for place in found["remains"]:
        _echo(f"bytes of it may still lie in: {place}")


def _scope(found: Data, more: str = "") -> None:
    _echo(_text("  ".join(part for part in (f"scope {visible(found['scope'], lines=False)}", more) if part), "dim"))


def _echo(line: str | Text) -> None:
    """A line as it is: neither markup nor folded."""
    stdout().print(_text(visible(line)) if isinstance(line, str) else line, soft_wrap=True)


def _text(text: str = "", style: str = "") -> Text:
    """Rich's text; its package is loaded when something is printed, not before."""
    from rich.text import Text

    return Text(text, style)
