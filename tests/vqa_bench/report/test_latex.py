"""The LaTeX tables: that they would compile, what is bold and starred, and that text stays text."""

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vqa_bench.report.run_folder import make_byte_run, make_run
from vqa_bench.report.beside import with_published
from vqa_bench.report.collect import collect
from vqa_bench.report.frame import build_frame
from vqa_bench.report.latex import escape, latex

AWKWARD = r'50 % of R&D_1, $x^2$ {a}~b\c #1 <|> "q"'

COMMANDS = {
    *("begin", "end", "caption", "label", "centering", "scriptsize", "setlength", "tabcolsep", "medskip", "parbox"),
    *("linewidth", "toprule", "midrule", "bottomrule", "textbf", "rlap", "dag", "ddag", "textbackslash"),
    *("textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"),
}
"""LaTeX's own and those of booktabs: nothing else is needed."""


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("latex")
    make_run(folder / "lstm", accuracy=0.4, seed=9)
    make_byte_run(folder / "awkward", accuracy=0.8, draw=1, title=AWKWARD)
    make_byte_run(folder / "tuned", accuracy=0.5, draw=2, init="pretrained")
    make_run(folder / "other", accuracy=0.9, shuffled_accuracy=0.4, dataset={"name": "real_clevr"}, questions=130)
    return build_frame(collect(folder).runs)


def check(text: str) -> None:
    """What LaTeX would refuse: braces and environments that do not match, rows with too many or too few cells, and
    special characters that are not escaped."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[&%_#${}]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#~\"†‡<>|]", bare)
    outside_math = re.sub(r"\$[^$]*\$", "", bare)
    labels = re.sub(r"\\label\{[^}]*\}", "", outside_math)
    assert not re.search(r"[_^]", labels)
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", bare, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 2
        assert {line.count("&") + 1 for line in rows} == {len(columns)}
    assert set(re.findall(r"\\([A-Za-z]+)", text)) <= COMMANDS


def test_tables_would_compile(frame: pd.DataFrame) -> None:
    check(latex(frame))
    check(latex(with_published(frame)))
    assert latex(frame).count(r"\begin{table}") == latex(frame).count(r"\caption{") == 4
    names = re.findall(r"\\label\{(.*?)\}", latex(frame))
    assert len(set(names)) == 4
    assert "tab:accuracy-mini-0" in names
    assert "tab:scores-real-clevr-1" in names


def test_best_is_bold_and_stars_are_raised(frame: pd.DataFrame) -> None:
    table = latex(frame[frame["dataset"] == "mini"]).split(r"\end{table}")[0]
    lines = {line.split(" & ")[0]: line for line in table.splitlines() if " & " in line}
    best = frame[(frame["cell"] == "awkward") & (frame["row"] == "cell")].iloc[0]
    line = lines[escape(AWKWARD)]
    assert line.count(r"\textbf{") == 6
    assert rf"\textbf{{{100 * best['count_accuracy']:.1f}}}" in line
    assert rf"${100 * best['vs_blind']:+.1f}$\rlap{{$^{{***}}$}}" in line
    assert r"\textbf" not in lines["lstm (blind)"] + lines["tuned"]
    assert f"${100 * frame.set_index('title').loc['tuned', 'vs_scratch']:+.1f}$" in lines["tuned"]


def test_published_rows_stand_under_a_rule_of_their_own(frame: pd.DataFrame) -> None:
    lines = latex(with_published(frame)).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(r"Human \dag{}"))
    assert lines[first - 1] == r"\midrule"
    assert r"\textbf" not in lines[first]


@given(st.text(alphabet='ab &%_#${}\\~^<>|"†‡é', max_size=30))
def test_escaped_text_has_nothing_special_left(text: str) -> None:
    check(escape(text.replace('"', '""')))
    plain = escape(text)
    for character, escaped in {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "~": r"\textasciitilde{}"}.items():
        assert plain.count(escaped) == text.count(character)


def test_awkward_text() -> None:
    assert escape(AWKWARD) == (
        r"50 \% of R\&D\_1, \$x\textasciicircum{}2\$ \{a\}\textasciitilde{}b\textbackslash{}c \#1 "
        r"\textless{}\textbar{}\textgreater{} ``q''"
    )


def test_without_cells_there_is_nothing_but_the_head(tmp_path: Path) -> None:
    assert latex(build_frame([])).splitlines()[0].startswith("%")
    assert r"\begin" not in latex(build_frame([]))
