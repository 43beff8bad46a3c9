"""The Containerfile language, its words and its ignore files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from highrt.images.containerfile import expand, pairs, parse, words
from highrt.images.errors import BuildError
from highrt.images.ignore import Ignore

VARIABLES = {"A": "1", "LONG_NAME": "two words", "EMPTY": ""}


def test_continued_lines_comments_and_flags_become_instructions_with_line_numbers() -> None:
    arguments, stages = parse(
        "# syntax=docker/dockerfile:1\n"
        "ARG BASE=scratch\n"
        "FROM ${BASE} AS Build\n"
        "RUN one && \\\n"
        "    # a comment between\n"
        "\n"
        "    two\n"
        'COPY --from=other --chown=1:2 ["a b", "/c"]\n'
        "FROM build\n"
        "CMD sleep 1"
    )
    assert [a.text for a in arguments] == ["BASE=scratch"]
    assert [stage.name for stage in stages] == ["build", ""]
    run, copy = stages[0].instructions
    assert (run.line, run.text) == (4, "RUN one &&     two".removeprefix("RUN "))
    assert copy.line == 8
    assert copy.flags == (("from", "other"), ("chown", "1:2"))
    assert copy.exec_form() == ["a b", "/c"]
    assert stages[1].instructions[0].text == "sleep 1"


def test_the_escape_directive_changes_the_continuation() -> None:
    _, stages = parse("# escape=`\nFROM scratch\nRUN a `\n b\\\n")
    assert stages[0].instructions[0].text == "a  b\\"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no FROM"),
        ("RUN x", "line 1: .*before the first FROM"),
        ("FROM a b", "line 1: .*FROM IMAGE AS NAME"),
        ("FROM scratch\n\nFROB x", "line 3: FROB is not an instruction"),
        ("FROM scratch\nRUN", "line 2: RUN needs an argument"),
        ("FROM scratch\nRUN --device=x ls", "line 2: RUN --device is not supported"),
        ("FROM scratch\nCOPY <<EOF /x\nhi\n", "line 2: the here-document EOF has no end"),
        ("FROM scratch\nONBUILD FROM x", "line 2: ONBUILD FROM x: FROM cannot be a trigger"),
        ("FROM scratch\nONBUILD FROB x", "line 2: FROB is not an instruction"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b  c", ["a", "b", "c"]),
        ("$A${A}x", ["11x"]),
        ("'$A' \"$A\"", ["$A", "1"]),
        (r"\$A a\ b", ["$A", "a b"]),
        ("${NO:-d} ${A:-d} ${A:+p} ${NO:+p}x", ["d", "1", "p", "x"]),
        ("${NO:-${A}z}", ["1z"]),
        ("${EMPTY:-full}", ["full"]),
        ('"$LONG_NAME" $LONG_NAME', ["two words", "two words"]),
        ("$ a", ["$", "a"]),
    ],
)
def test_words_are_split_and_expanded(text: str, expected: list[str]) -> None:
    assert words(text, VARIABLES) == expected


@pytest.mark.parametrize("text", ['"open', "'open", "${A", "${", "${A:-x", "${A?x}"])
def test_unclosed_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"missing|brace|name"):
        words(text, VARIABLES)


@given(st.text(alphabet="ab $\\{}\"':-+", max_size=30))
def test_the_lexer_always_ends(text: str) -> None:
    try:
        words(text, VARIABLES)
        expand(text, VARIABLES)
    except ValueError:
        return


def test_pairs_have_an_old_and_a_new_form() -> None:
    assert pairs("A=1 B='2 3'", {}) == {"A": "1", "B": "2 3"}
    assert pairs("A some words", {}) == {"A": "some words"}
    with pytest.raises(ValueError, match="KEY=VALUE"):
        pairs("A", {})


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        (["*.pyc"], ["a.pyc"], ["sub/a.pyc", "a.py"]),
        (["**/*.pyc"], ["a.pyc", "sub/deep/a.pyc"], ["a.py"]),
        (["node_modules"], ["node_modules", "node_modules/x/y"], ["sub/node_modules"]),
        (["*", "!keep", "!dir/file"], ["other", "dir/no"], ["keep", "keep/inside", "dir/file"]),
        (["# comment", "", "/a?"], ["ab", "ab/c"], ["abc", "a"]),
        (["[a-c]x"], ["ax"], ["dx"]),
    ],
)
def test_an_ignore_file_leaves_out_what_it_says(patterns: list[str], ignored: list[str], kept: list[str]) -> None:
    ignore = Ignore(patterns)
    assert [path for path in ignored if not ignore.matches(path)] == []
    assert [path for path in kept if ignore.matches(path)] == []
