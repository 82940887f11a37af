"""What is said of bad files: one clear problem each, with file, line and field."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from expunge.data.findings import SHOWN, Findings
from expunge.data.formats import read_records
from expunge.errors import DataError, Problem

GOOD = b'{"question": "q", "answer": "a"}\n'
CHAT = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
ASKED = b'{"prompt": [{"role": "user", "content": "q"}], "completion": '

BAD = {
    "answer missing": ("f.jsonl", GOOD + b'{"question": "q"}', "f.jsonl:2 answer", "is missing"),
    "question missing": ("f.jsonl", b'{"answer": "a"}', "f.jsonl:1 question", "is missing"),
    "completion missing": ("f.jsonl", b'{"prompt": "p"}', "f.jsonl:1 completion", "is missing"),
    "answer null": ("f.jsonl", b'{"question": "q", "answer": null}', "f.jsonl:1 answer", "is null"),
    "answer empty": ("f.jsonl", b'{"question": "q", "answer": " "}', "f.jsonl:1 answer", "is empty"),
    "question empty": ("f.jsonl", b'{"question": "", "answer": "a"}', "f.jsonl:1 question", "is empty"),
    "document empty": ("f.jsonl", b'{"text": "\\n"}', "f.jsonl:1 text", "is empty"),
    "answer is a number": (
        "f.jsonl",
        b'{"question": "q", "answer": 42}',
        "f.jsonl:1 answer",
        "is a number, not text",
    ),
    "question is a list": (
        "f.jsonl",
        b'{"question": ["q"], "answer": "a"}',
        "f.jsonl:1 question",
        "is a list",
    ),
    "entity is an object": (
        "f.jsonl",
        b'{"question": "q", "answer": "a", "subject": {}}',
        "f.jsonl:1 subject",
        "is an object, not text",
    ),
    "list of numbers": (
        "f.jsonl",
        b'{"question": "q", "answer": "a", "perturbed_answer": ["b", 1]}',
        "f.jsonl:1 perturbed_answer",
        "[1] is a number, not text",
    ),
    "empty text in a list": (
        "f.jsonl",
        b'{"question": "q", "answer": "a", "paraphrased_prompts": [""]}',
        "f.jsonl:1 paraphrased_prompts",
        "[0] is empty",
    ),
    "bad json": ("f.jsonl", GOOD + b'{"question": "q", "answer" "a"}', "f.jsonl:2", "not valid JSON"),
    "cut json": ("f.jsonl", GOOD + b'{"question": "q', "f.jsonl:2", "not valid JSON"),
    "field twice": (
        "f.jsonl",
        b'{"question": "q", "answer": "a", "answer": "b"}',
        "f.jsonl:1 answer",
        "stands twice",
    ),
    "row is a list": ("f.jsonl", GOOD + b'["q", "a"]', "f.jsonl:2", "a list, not an object"),
    "half a surrogate": (
        "f.jsonl",
        b'{"question": "q", "answer": "\\ud83d"}',
        "f.jsonl:1 answer",
        "surrogate",
    ),
    "unknown shape": (
        "f.jsonl",
        b'{"query": "q", "reply": "a"}\n' * 3,
        "f.jsonl:1",
        "fields are query, reply, as in 2 more",
    ),
    "empty row": ("f.jsonl", GOOD + b"{}", "f.jsonl:2", "the row is empty"),
    "duplicate id": (
        "f.jsonl",
        b'{"id": "x", "question": "q", "answer": "a"}\n' * 2,
        "f.jsonl:2 id",
        "already that of",
    ),
    "id is a number and a text": (
        "f.jsonl",
        b'{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}',
        "f.jsonl:2 id",
        "'1' is already",
    ),
    "id is true": ("f.jsonl", b'{"id": true, "text": "a"}', "f.jsonl:1 id", "true or false, not text"),
    "not utf-8": ("f.jsonl", GOOD + "é".encode("latin-1"), "f.jsonl:2", "not UTF-8"),
    "utf-16": ("f.jsonl", GOOD.decode().encode("utf-16"), "f.jsonl:1", "not UTF-8"),
    "empty file": ("f.jsonl", b"", "f.jsonl", "the file is empty"),
    "blank file": ("f.csv", b"\n \n", "f.csv", "the file is empty"),
    "unknown type": ("f.txt", GOOD, "f.txt", "unknown file type '.txt'"),
    "no type": ("forget", GOOD, "forget", "unknown file type ''"),
    "label out of range": (
        "f.jsonl",
        b'{"question": "q", "choices": ["a", "b"], "label": 2}',
        "f.jsonl:1 label",
        "is 2, out of range",
    ),
    "label below zero": (
        "f.jsonl",
        b'{"question": "q", "choices": ["a", "b"], "answer": -1}',
        "f.jsonl:1 answer",
        "is -1, out of range",
    ),
    "label is a word": (
        "f.jsonl",
        b'{"question": "q", "choices": ["a", "b"], "label": "B"}',
        "f.jsonl:1 label",
        "not a whole number",
    ),
    "label without choices": (
        "f.jsonl",
        b'{"question": "q", "answer": "a", "label": 0}',
        "f.jsonl:1 label",
        "stands without choices",
    ),
    "answer none of the choices": (
        "f.jsonl",
        b'{"question": "q", "answer": "c", "choices": ["a", "b"]}',
        "f.jsonl:1 answer",
        "none of the choices",
    ),
    "messages no list": ("f.jsonl", b'{"messages": "hello"}', "f.jsonl:1 messages", "not a list of messages"),
    "messages empty": ("f.jsonl", b'{"messages": []}', "f.jsonl:1 messages", "not a list of messages"),
    "message without content": (
        "f.jsonl",
        b'{"messages": [{"role": "user"}]}',
        "f.jsonl:1 messages",
        "[0] is not a message",
    ),
    "unknown role": (
        "f.jsonl",
        CHAT.replace(b"user", b"human"),
        "f.jsonl:1 messages",
        "[0] has an unknown role",
    ),
    "content of parts": (
        "f.jsonl",
        CHAT.replace(b'"a"', b'["a"]'),
        "f.jsonl:1 messages",
        "[1].content is a list",
    ),
    "no answer turn": (
        "f.jsonl",
        CHAT.replace(b"assistant", b"user"),
        "f.jsonl:1 messages",
        "last message is not the assistant's",
    ),
    "no user turn": (
        "f.jsonl",
        CHAT.replace(b'"user"', b'"system"'),
        "f.jsonl:1 messages",
        "before the answer is not the user's",
    ),
    "completion of two messages": (
        "f.jsonl",
        ASKED + b'[{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        "f.jsonl:1 completion",
        "has 2 messages, not one",
    ),
    "prompt of messages, completion of text": (
        "f.jsonl",
        ASKED + b'"a"}',
        "f.jsonl:1 completion",
        "not a list of messages",
    ),
    "unknown style": (
        "f.jsonl",
        b'{"prompt": "p", "answer": "a", "style": "chat"}',
        "f.jsonl:1 style",
        "is 'chat'",
    ),
    "json object": (
        "f.json",
        b'{"question": {"0": "q"}, "answer": {"0": "a"}}',
        "f.json",
        "one object (answer, question)",
    ),
    "json empty array": ("f.json", b"[]", "f.json", "the array is empty"),
    "json number": ("f.json", b"3", "f.json", "no array of objects"),
    "json item": (
        "f.json",
        b'[{"question": "q", "answer": "a"}, 3]',
        "f.json:item 1",
        "a int, not an object",
    ),
    "json item's field": ("f.json", b'[{"question": "q", "answer": ""}]', "f.json:item 0 answer", "is empty"),
    "json broken": ("f.json", b'[{"question": "q",\n]', "f.json", "line 2, column 1"),
    "csv ragged": ("f.csv", b"question,answer\nq,a\nq,a,b\n", "f.csv:3", "has 3 cells, the header has 2"),
    "csv after a cell of two lines": (
        "f.csv",
        b'question,answer\n"q\nq",a\nq,\n',
        "f.csv:4 answer",
        "is empty",
    ),
    "csv header twice": (
        "f.csv",
        b"question,answer,answer\nq,a,b\n",
        "f.csv:1 answer",
        "stands twice in the header",
    ),
    "csv open quote": ("f.csv", b'question,answer\nq,"a\n', "f.csv:2", "not valid CSV"),
    "csv semicolons": ("f.csv", b"question;answer\nq;a\n", "f.csv:2", "parted by semicolons"),
    "csv header only": ("f.csv", b"question,answer\n", "f.csv", "holds no records"),
    "csv messages": ("f.csv", b"messages\nhello\n", "f.csv:2 messages", "not a list of messages"),
    "parquet broken": ("f.parquet", b"PAR1 and no more", "f.parquet", "no readable parquet file"),
}


def read(path, split="forget"):
    findings = Findings()
    return read_records(path, split=split, findings=findings), findings


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, data, where, what = BAD[name]
    (tmp_path / file).write_bytes(data)
    records, findings = read(file)
    (problem,) = findings.problems
    assert problem.where == where
    assert what in problem.what
    assert len(records) <= 1  # good rows are kept, so that their overlaps are reported too


def test_bad_parquet_row(tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    (problem,) = read(tmp_path / "f.parquet")[1].problems
    assert problem.where == f"{tmp_path / 'f.parquet'}:row 1 answer"


def test_broken_saved_dataset(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    (problem,) = read(tmp_path)[1].problems
    assert "no readable dataset" in problem.what


def test_folder_without_data(tmp_path):
    (problem,) = read(tmp_path)[1].problems
    assert "no data files" in problem.what


def test_one_kind_of_problem_does_not_drown_the_others(tmp_path):
    rows = [{"question": "q", "answer": ""}] * 1000 + [{"question": "", "answer": "a"}]
    _, findings = read(jsonl(tmp_path / "f.jsonl", *rows))
    assert [p.where.split(":")[-1] for p in findings.problems] == [
        *(f"{i} answer" for i in range(1, 6)),
        "1001 question",
    ]
    assert "995 more rows" in findings.problems[4].what


def test_problems_are_capped_when_raised():
    findings = Findings([Problem(f"f:{i}", "bad") for i in range(SHOWN + 7)])
    with pytest.raises(DataError, match=r"\.\.\. and 7 more problems") as caught:
        findings.raise_problems()
    assert len(caught.value.problems) == SHOWN + 1
