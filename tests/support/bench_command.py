"""The bench command as a process, and tiers written to files."""

import json

from tests.support.processes import Script


def toml(tmp_path, table, name="t") -> str:
    """Write a tier; JSON's lists, strings and numbers are TOML's."""
    lines = [f"[{name}]"]
    for key, value in table.items():
        if isinstance(value, dict):
            value = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
        else:
            value = json.dumps(value)
        lines.append(f"{key} = {value}")
    path = tmp_path / "protocol.toml"
    path.write_text("\n".join(lines))
    return str(path)


def start(tmp_path, *arguments) -> Script:
    return Script("thermoopt", "bench", *arguments, folder=tmp_path)
