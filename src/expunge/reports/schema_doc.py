"""The documentation of scorecard.json, written from the schema itself."""

from __future__ import annotations

import json
from typing import Any

from expunge.audit.scorecard import Scorecard

__all__ = ["schema_markdown"]


def schema_markdown() -> str:
    """docs/scorecard.md: one table per part, the scorecard first."""
    schema = Scorecard.model_json_schema()
    parts = {"Scorecard": schema, **dict(sorted(schema["$defs"].items()))}
    blocks = [
        "# scorecard.json",
        "Everything a report shows. Written once by the run; the reports only draw it. "
        "This page is generated from the schema: `python -m expunge.reports.schema_doc > docs/scorecard.md`.",
        "`Infinity`, `-Infinity` and `NaN` may stand where a number is expected. `null` is a number that "
        "does not exist; the `reason` beside it says why.",
    ]
    for name, part in parts.items():
        blocks += [f"## {name}", " ".join(str(part.get("description", "")).split()), _table(part)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(part: dict[str, Any]) -> str:
    required = set(part.get("required", ()))
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in part["properties"].items():
        default = (
            ""
            if name in required
            else f"`{json.dumps(field.get('default', ''))}`"
            if "default" in field
            else ""
        )
        meaning = field.get("description", "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field)} | {default} | {meaning} |")
    return "\n".join(lines)


def _type(field: dict[str, Any]) -> str:
    """A JSON schema type in words; parts link to their section."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    kind = field.get("type", "anything")
    if kind == "array":
        if "prefixItems" in field:
            return "[" + ", ".join(map(_type, field["prefixItems"])) + "]"
        return f"list of {_type(field.get('items', {}))}"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) else "object"
    return str(kind)


if __name__ == "__main__":
    print(schema_markdown(), end="")
