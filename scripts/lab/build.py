"""Builds what is to be measured."""

from __future__ import annotations

import json
import os
import subprocess

from lab.process import Failed

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def build(*targets: str, profile: str = "release", rustflags: str = "", target_directory: str | None = None) -> dict[str, str]:
    """`cargo build` with `targets` such as "--bin=ringway"; returns the path of every program by its name.

    cargo's own progress goes to the terminal; the paths come from its messages.
    """
    cargo = ["cargo", "build", f"--profile={profile}", "--locked", "--message-format=json-render-diagnostics", *targets]
    if target_directory:
        cargo.append(f"--target-dir={target_directory}")
    environment = dict(os.environ)
    if rustflags:
        environment["RUSTFLAGS"] = f"{environment.get('RUSTFLAGS', '')} {rustflags}".strip()
    try:
        built = subprocess.run(cargo, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError as missing:
        raise Failed("cargo is not installed: https://rustup.rs") from missing
    if built.returncode != 0:
        raise Failed("the build failed")
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return {message["target"]["name"]: message["executable"] for message in messages if message.get("executable")}
