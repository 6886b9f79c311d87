"""The documents: each command that they tell is one that the command line takes, each file that they link is there."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ashnets import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The arguments of each command, in blocks of code and within lines, without what is said of it behind #."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    told = re.findall(r"^(?:\.venv/bin/)?ashnets (.+)$", "\n".join(FENCED.findall(text)), re.MULTILINE)
    told += re.findall(r"`(?:\.venv/bin/)?ashnets ([^`]+)`", FENCED.sub("", text))
    return [shlex.split(command, comments=True) for command in dict.fromkeys(told) if "|" not in command]


def test_every_command_is_one_that_the_command_line_takes(monkeypatch, capsys):
    taken = []

    def only_taken(name: str, command: Any) -> Any:
        return functools.wraps(command)(lambda *_, **__: taken.append(name) or 0)

    monkeypatch.setattr(cli, "COMMANDS", {name: only_taken(name, command) for name, command in cli.COMMANDS.items()})
    wrong = []
    for page in PAGES:
        for arguments in commands(page):
            try:
                cli.main(arguments)
            except SystemExit as end:
                if end.code and "Missing from ashnets" not in capsys.readouterr().err:  # a command that is only named
                    wrong.append(f"{page.name}: ashnets {shlex.join(arguments)}")
    assert not wrong
    assert len(taken) > 70


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_is_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
