"""Evidence on disk: what goes in comes out, and a crash leaves nothing behind."""

from dataclasses import fields

import numpy as np
import pyarrow.parquet as pq
import pytest

from expunge.evidence import Evidence, Row, is_forget_side, read_evidence, variant_kind, write_evidence


def make_row(record, length, variant="gold", **more):
    rng = np.random.default_rng(length)
    floats = (rng.normal(size=length).astype(np.float32) for _ in range(3))
    logprobs, mean, std = floats
    values = {
        "record_id": record,
        "split": "forget",
        "entity": "Ada",
        "variant": variant,
        "logprobs": logprobs,
        "hits": rng.random(length) < 0.5,
        "greedy_ids": rng.integers(0, 99, length).astype(np.int32),
        "vocab_mean": mean,
        "vocab_std": std,
        "has_end": length > 0,
        "truncated": False,
        "num_prompt_tokens": 4,
        "text_bytes": 11,
        "zlib_bytes": 19,
        "vocab_size": 99,
    }
    return Row(**values | more)


ROWS = [
    make_row("q1", 5, answer="Björk 東京 🜁", generated="line\nbreak \0 end", finish_reason="end"),
    make_row("q1", 0, "perturbed:0"),
    make_row("q1", 3, "choice:1", label=False),
    make_row("q2", 4, kl=np.array([0, np.inf, 1e-30, 2], dtype=np.float32), label=True, entity=""),
    make_row(
        "q2", 2, "paraphrased_prompt:0", kl=np.zeros(0, np.float32), extra={"nli": "entailment", "n": [1]}
    ),
    make_row("q3", 2, logprobs=np.array([-np.inf, np.nan], dtype=np.float32)),
]


def assert_same(first, second):
    assert first.split == second.split
    assert first.meta == second.meta
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for field in fields(Row):
            left, right = getattr(a, field.name), getattr(b, field.name)
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype, field.name
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right, field.name


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2], []], ids=["all", "one empty answer", "none"])
def test_round_trip(tmp_path, rows):
    evidence = Evidence("forget", rows, {"weights": "abc", "settings": {"max_new_tokens": 8}})
    path = write_evidence(evidence, tmp_path / "new" / "forget.parquet")
    assert_same(evidence, read_evidence(path))


def test_schema_holds_every_field_of_a_row(tmp_path):
    path = write_evidence(Evidence("forget", ROWS), tmp_path / "e.parquet")
    assert pq.read_schema(path).names == [field.name for field in fields(Row)]


def test_equal_evidence_gives_equal_bytes(tmp_path):
    first, second = (
        write_evidence(Evidence("forget", ROWS, meta), tmp_path / name)
        for name, meta in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1}))
    )
    assert first.read_bytes() == second.read_bytes()


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = write_evidence(Evidence("forget", ROWS[:1]), tmp_path / "e.parquet")
    before = path.read_bytes()

    def half_written(table, where, **options):
        where.write_bytes(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_evidence(Evidence("forget", ROWS), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_a_partial_file(tmp_path, monkeypatch):
    path = tmp_path / "e.parquet"
    write = pq.write_table

    def watched(table, where, **options):
        write(table, where, **options)
        assert where.parent == path.parent  # a rename is atomic only within one file system
        assert not path.exists()

    monkeypatch.setattr(pq, "write_table", watched)
    write_evidence(Evidence("forget", ROWS), path)
    assert_same(Evidence("forget", ROWS), read_evidence(path))


def test_rows_are_grouped_by_kind_in_record_order():
    evidence = Evidence("forget", ROWS)
    assert list(evidence.gold) == ["q1", "q2", "q3"]
    assert [r.variant for r in evidence.of("choice")["q1"]] == ["choice:1"]
    assert evidence.kinds() == {"gold", "perturbed", "choice", "paraphrased_prompt"}
    assert evidence.of("refusal") == {}


def test_record_without_entity_is_its_own_cluster():
    evidence = Evidence(
        "forget", [make_row("q1", 1), make_row("q2", 1, entity=""), make_row("q3", 1, entity="")]
    )
    assert evidence.entities(["q1", "q2", "q3"]) == ["Ada", "record:q2", "record:q3"]


def test_end_token_is_outside_the_answer_span():
    row = ROWS[0]
    assert row.num_answer == 4
    assert len(row.logprobs[row.answer_span]) == 4
    assert ROWS[1].num_answer == 0


def test_sides_and_kinds():
    assert is_forget_side("forget_hard")
    assert not is_forget_side("neighbors")
    assert variant_kind("paraphrased_prompt:12") == "paraphrased_prompt"
