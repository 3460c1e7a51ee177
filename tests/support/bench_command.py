"""The bench command as a process, and tiers written to files."""

import json
import signal
import subprocess
import sys


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


def start(tmp_path, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "thermoopt", "bench", *map(str, arguments)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a test run in the background of a shell ignores the keyboard's signal, and its children would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )
