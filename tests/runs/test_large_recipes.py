"""The recipes for models of 1B and 8B: what `plan` says of them is what stands at their head."""

import json
import re
from pathlib import Path

import pytest

from expunge.runs.plan import plan
from expunge.runs.reading import load_recipe
from tiny_models import byte_level_backend, tokenizer_of

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*-[18]b.yaml"))
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
SIZES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
}
NUM_FORGET, NUM_RETAIN = 100, 400
WORDS = {
    "book": 60,
    "person": 10,
    "skill": 10,
    "canary": 6,
}  # of an answer; a word is about three tokens here
PLAN = re.compile(
    r"# Plan for (\d+) forget and (\d+) retain records \([\d,]+ tokens\): ([\d.]+) GB, (.+) min"
)


def rows(kind: str, split: str, count: int):
    for i in range(count):
        answer = " ".join(f"{split[0]}{i}w{j}" for j in range(WORDS[kind]))
        if kind == "book":
            yield {"text": answer}
        elif kind == "canary":
            yield {"prompt": f"{split} mail {i} says:", "completion": answer}
        else:
            hard = {"source_id": f"forget-{i}", "form": "multi_hop"} if split == "forget_hard" else {}
            yield {"question": f"What is asked here in {split}, number {i}?", "answer": answer, **hard}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, size in SIZES.items():
        tokenizer_of(byte_level_backend(), bos=True).save_pretrained(folder / name)
        tied = {"tie_word_embeddings": name == "1b"}
        (folder / name / "config.json").write_text(json.dumps(LLAMA | size | tied))
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_plan_says_what_the_head_says(path, models, tmp_path):
    kind, size = path.stem.split("-")
    given = {"forget": NUM_FORGET, "retain": NUM_RETAIN, "holdout": 50, "forget_hard": 50}
    recipe = load_recipe(path, [f"model={models / size}"])
    changes = []
    for split, count in given.items():
        if getattr(recipe, split) not in (None, "auto"):
            file = tmp_path / f"{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, split, count)))
            changes.append(f"{split}={file}")
    made = plan(load_recipe(path, [f"model={models / size}", *changes]), on="cuda")
    head = PLAN.search(path.read_text())
    memory, minutes = sum(made.memory.values()) / 1e9, sum(made.seconds.values()) / 60
    said = (
        f"# Plan for {NUM_FORGET} forget and {NUM_RETAIN} retain records ({made.tokens['forget']:,} tokens): "
    )
    said += f"{memory:.0f} GB, {minutes:.1f} min"
    assert head, f"write: {said}"
    assert (int(head[1]), int(head[2])) == (NUM_FORGET, NUM_RETAIN)
    assert float(head[3]) == pytest.approx(memory, rel=0.1), said
    assert float(head[4]) == pytest.approx(minutes, rel=0.1), said
