"""The table of what works where: the documentation has all of it."""

from __future__ import annotations

from tests.table import BEGIN, END, KINDS, PAGE, Line, table


def test_the_documentation_has_every_kind_and_method_on_every_tensorflow() -> None:
    _, _, rest = PAGE.read_text().partition(BEGIN)
    lines = [line.split(" | ") for line in rest.partition(END)[0].strip().splitlines()[2:]]
    for kind, methods in KINDS.items():
        assert {line[2] for line in lines if line[0] == f"| {kind}"} == set(methods), kind
        versions = {line[1].rpartition(".")[0] for line in lines if line[0] == f"| {kind}"}
        assert {"2.15", "2.21"} <= versions, kind
    assert {line[0] for line in lines} == {f"| {kind}" for kind in KINDS}
    assert "none" in {line[1] for line in lines}


def test_what_does_not_work_has_no_figures() -> None:
    kind = "Function, numpy"
    lines = [
        Line(kind, "none", "function", "no: why"),
        Line(kind, "2.21.0", "function", "yes", 2.4e-07, 0.0004, 1.25),
    ]
    assert table(lines).splitlines()[2:] == [
        "| Function, numpy | 2.21.0 | function | yes | 2e-07 | 0.40 ms | 1.25 s |",
        "| Function, numpy | none | function | no: why |  |  |  |",
    ]
