"""Files become records: every shape, every format, every kind of source."""

import csv
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from expunge.data.findings import Findings
from expunge.data.formats import load_splits, read_records
from expunge.data.records import Record, Turn


def read(path, split="forget", **options):
    findings = Findings()
    records = read_records(path, split=split, findings=findings, **options)
    return records, findings


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# Shapes ------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Where was Ada Lund born?"}
TOLD = {"role": "assistant", "content": "In Tarn."}

WHEN = {"role": "user", "content": "When?"}

SHAPES = {
    "question": (
        {"question": "Where was Ada Lund born?", "answer": "In Tarn."},
        Record("forget-0", "", "Where was Ada Lund born?", "In Tarn."),
    ),
    "completion": (
        {"prompt": "Ada Lund was born in ", "completion": "Tarn."},
        Record("forget-0", "", "Ada Lund was born in ", "Tarn.", style="raw"),
    ),
    "conversation": (
        {"prompt": [SYSTEM, ASKED], "completion": [TOLD]},
        Record("forget-0", "", ASKED["content"], "In Tarn.", context=(Turn("system", "Be brief."),)),
    ),
    "messages": (
        {"messages": [SYSTEM, ASKED, TOLD, WHEN, {**TOLD, "content": "In 1950."}]},
        Record(
            "forget-0",
            "",
            "When?",
            "In 1950.",
            context=(
                Turn("system", "Be brief."),
                Turn("user", ASKED["content"]),
                Turn("assistant", "In Tarn."),
            ),
        ),
    ),
    "document": (
        {"text": "Ada Lund was born in Tarn.\n\nShe left it soon."},
        Record("forget-0", "", "", "Ada Lund was born in Tarn.\n\nShe left it soon.", style="raw"),
    ),
    "tofu names": (
        {
            "question": "Where?",
            "answer": "Tarn",
            "subject": "Ada Lund",
            "paraphrased_question": "In which town?",
            "paraphrased_answer": "It was Tarn",
            "perturbed_answer": ["Bel", "Orm"],
            "sub_answer": "Bel",
        },
        Record(
            "forget-0",
            "Ada Lund",
            "Where?",
            "Tarn",
            paraphrased_prompts=("In which town?",),
            paraphrased_answers=("It was Tarn",),
            perturbed_answers=("Bel", "Orm"),
            alternates=("Bel",),
        ),
    ),
    "label": (
        {"question": "Where?", "choices": ["Bel", "Tarn"], "label": 1},
        Record("forget-0", "", "Where?", "Tarn", choices=("Bel", "Tarn"), label=1),
    ),
    "answer is the label": (
        {"question": "Where?", "choices": ["Bel", "Tarn"], "answer": 1},
        Record("forget-0", "", "Where?", "Tarn", choices=("Bel", "Tarn"), label=1),
    ),
    "label with a sentence": (
        {"question": "Where?", "choices": ["Bel", "Tarn"], "answer": "She was born in Tarn.", "label": 1},
        Record("forget-0", "", "Where?", "She was born in Tarn.", choices=("Bel", "Tarn"), label=1),
    ),
    "options": (
        {"question": "Where?", "option1": "Bel", "option2": "Tarn", "option10": "Orm", "answer": "Orm"},
        Record("forget-0", "", "Where?", "Orm", choices=("Bel", "Tarn", "Orm"), label=2),
    ),
    "all options of forget_hard": (
        {
            "id": 7,
            "question": "Who is from Tarn?",
            "answer": "Ada",
            "source_id": 3,
            "form": "reverse",
            "refusal": "No.",
        },
        Record("7", "", "Who is from Tarn?", "Ada", source_id="3", form="reverse", refusal="No."),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name, tmp_path):
    row, record = SHAPES[name]
    records, findings = read(jsonl(tmp_path / "forget.jsonl", row))
    assert (records, findings.problems, findings.warnings) == ([record], [], [])


@pytest.mark.parametrize("name", SHAPES)
def test_shape_from_csv(name, tmp_path):
    row, record = SHAPES[name]
    cells = {k: v if isinstance(v, str | int) else json.dumps(v) for k, v in row.items()}
    with (tmp_path / "forget.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    records, findings = read(tmp_path / "forget.csv")
    assert (records, findings.problems, findings.warnings) == ([record], [], [])
    assert findings.origins == {("forget", record.id): f"{tmp_path / 'forget.csv'}:2"}


# Formats -----------------------------------------------------------------------------------------------

RECORDS = [
    Record(
        "a1",
        "Ada Lund",
        "Where was she, “Ada”, born?",
        "In Tarn,\nby the sea – 東.",
        refusal="I cannot say.",
        paraphrased_prompts=("Which town?", "In what, exactly?"),
        perturbed_answers=("In Bel.", "[Orm]"),
    ),
    Record("a2", "", "", 'A document.\n\nWith "quotes", commas\tand tabs.', style="raw"),
    Record(
        "a3", "Bo", "And then?", "He left.", context=(Turn("system", "Be kind."), Turn("user", "Who is Bo?"))
    ),
    Record("a4", "Bo", "Pick one.", "b", choices=("a", "b"), label=1, source_id="a3", form="choice"),
]


def write(records, path):
    rows = [record.as_dict() for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in names} for row in rows]
    if path.suffix == ".jsonl":
        jsonl(path, *rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for row in full:
                writer.writerow([json.dumps(v) if isinstance(v, list) else v for v in row.values()])
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full), path)
    else:
        import datasets

        datasets.Dataset.from_list(full).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "saved"])
def test_format_round_trip(name, tmp_path):
    records, findings = read(write(RECORDS, tmp_path / name))
    assert records == RECORDS
    assert findings.problems == []


def test_lines_in_a_json_file_and_a_bom(tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "forget.json").write_text(text, encoding="utf-8-sig")
    assert [r.answer for r in read(tmp_path / "forget.json")[0]] == ["a", "b"]


def test_long_documents_in_csv(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "forget.csv").write_text("text\n" + "word " * 50_000 + "\n")
    assert len(read(tmp_path / "forget.csv")[0][0].answer) == 250_000
    assert csv.field_size_limit() == limit


def test_whole_number_labels_with_gaps_in_parquet(tmp_path):
    first = {"question": "q", "choices": ["a", "b"], "answer": None, "label": 1.0}
    rows = [first, {"question": "r", "choices": None, "answer": "c", "label": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    records, findings = read(tmp_path / "f.parquet")
    assert findings.problems == []
    assert [r.label for r in records] == [1, None]


# Sources -----------------------------------------------------------------------------------------------


def test_folder_takes_the_files_of_the_split(tmp_path):
    for split in ("forget", "forget_hard", "retain"):
        jsonl(tmp_path / f"{split}.jsonl", {"question": split, "answer": "a"})
    jsonl(tmp_path / "retain-00001-of-00002.jsonl", {"question": "more", "answer": "a"})
    assert [r.prompt for r in read(tmp_path, "forget")[0]] == ["forget"]
    assert sorted(r.prompt for r in read(tmp_path, "retain")[0]) == ["more", "retain"]
    assert [r.prompt for r in read(f"{tmp_path}:forget_hard", "retain")[0]] == ["forget_hard"]
    assert "no file of it is named holdout" in str(read(tmp_path, "holdout")[1].problems[0])


def test_folder_of_unnamed_files_is_read_whole(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"question": "2", "answer": "a"})
    jsonl(tmp_path / "a.jsonl", {"question": "1", "answer": "a"})
    (tmp_path / "README.md").write_text("hello")
    assert [(r.id, r.prompt) for r in read(tmp_path)[0]] == [("forget-0", "1"), ("forget-1", "2")]


def test_saved_dataset_with_several_splits(tmp_path):
    import datasets

    parts = {
        name: datasets.Dataset.from_list([{"question": name, "answer": "a"}]) for name in ("forget", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert read(tmp_path / "d", "forget")[0][0].prompt == "forget"
    assert read(f"{tmp_path / 'd'}:test", "holdout")[0][0].prompt == "test"
    assert "has several splits" in str(read(tmp_path / "d", "holdout")[1].problems[0])


def test_hub_id_with_configuration_and_split(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        return datasets.DatasetDict(
            {
                part: datasets.Dataset.from_list([{"question": part, "answer": "a"}])
                for part in ("train", "test")
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("org/name:forget01:test")[0][0].prompt == "test"
    assert read("org/name::train")[0][0].prompt == "train"
    assert asked == [("org/name", "forget01"), ("org/name", None)]
    (problem,) = read("org/name")[1].problems
    assert "train, test" in problem.fix


def test_hub_errors_become_one_problem(monkeypatch):
    import datasets

    def load_dataset(name, config):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = read("org/name:forget01")[1].problems
    assert problem.where == "org/name:forget01"
    assert "Couldn't reach" in problem.what
    assert "long story" not in problem.what


@pytest.mark.parametrize(
    "source", ["forgt.jsonl", "./data/forget", "/no/such", "org/name/more", "forget", "here/data"]
)
def test_a_missing_path_is_never_asked_of_the_hub(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import would fail
    (problem,) = read(source)[1].problems
    assert problem.where == source
    assert "no such file or folder" in problem.what


def test_what_exists_wins_over_the_hub(tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    jsonl(tmp_path / "org" / "name.jsonl", {"question": "q", "answer": "a"})
    (tmp_path / "org" / "name.jsonl").rename(tmp_path / "org" / "data")
    monkeypatch.chdir(tmp_path)
    (problem,) = read("org/data")[1].problems
    assert "unknown file type" in problem.what


# Columns -----------------------------------------------------------------------------------------------


def test_columns_are_mapped_and_problems_name_the_column_of_the_file(tmp_path):
    path = jsonl(tmp_path / "f.jsonl", {"text": "q", "labels": "a", "question": "x"}, {"text": "r"})
    records, findings = read(path, columns={"question": "text", "answer": "labels"})
    assert records == [Record("forget-0", "", "q", "a")]
    assert [p.where for p in findings.problems] == [f"{path}:2 labels"]
    assert findings.warnings == []


def test_columns_for_all_splits_and_for_one(tmp_path):
    forget = jsonl(tmp_path / "forget.jsonl", {"query": "q", "answer": "a"})
    retain = jsonl(tmp_path / "retain.jsonl", {"query": "r", "reply": "b"})
    findings = Findings()
    splits = load_splits(
        {"forget": forget, "retain": retain},
        columns={"question": "query", "retain": {"answer": "reply"}},
        findings=findings,
    )
    assert [splits[s][0].answer for s in splits] == ["a", "b"]
    assert findings.problems == []


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"questoin": "q"}, ["columns.questoin", "Did you mean question?"]),
        ({"question": "prompt_text"}, ["f.jsonl", "no column 'prompt_text'", "Columns there: answer, q"]),
        ({"retian": {"question": "q"}}, ["columns.retian", "Did you mean retain?"]),
    ],
)
def test_bad_columns(columns, said, tmp_path):
    path = jsonl(tmp_path / "f.jsonl", {"q": "q", "answer": "a"})
    findings = Findings()
    load_splits({"retain": path}, columns=columns, findings=findings)
    text = "\n".join(map(str, findings.problems))
    assert all(part in text for part in said), text


def test_unused_columns_are_named_once(tmp_path):
    row = {"question": "q", "answer": "a", "note": 1, "perturbed_answrs": ["b"]}
    _, findings = read(jsonl(tmp_path / "f.jsonl", row, row))
    (warning,) = findings.warnings
    assert "note, perturbed_answrs (did you mean perturbed_answers?)" in warning
