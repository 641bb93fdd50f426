"""The programs of the README run."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.split("\n")[2])
def test_program(program, capsys):
    names = {}
    exec(compile(program, str(README), "exec"), names)
    if "model" in names:
        assert len(capsys.readouterr().out) > 100
        assert names["logits"].shape == (3, names["model"].vocab_size)
    else:
        assert (names["out"].shape, names["lse"].shape) == ((100, 16, 256), (100, 16))


def test_there_are_programs():
    assert len(PROGRAMS) == 2
