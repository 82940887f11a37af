"""What a model knows by heart scores ROUGE 1 and extraction strength 1, whatever its tokenizer."""

import pytest
import torch

from expunge.data.records import Record
from expunge.measure import EvidencePlan, take_evidence
from expunge.metrics.base import METRICS
from expunge.training import TrainSettings, finetune
from tiny_models import byte_level_backend, make_subject, metaspace_backend, tokenizer_of, unigram_backend

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZERS = {
    "byte-level BPE": lambda: tokenizer_of(byte_level_backend(), bos=False),
    "SentencePiece-like BPE": lambda: tokenizer_of(metaspace_backend(), bos=True),
    "SentencePiece-like Unigram": lambda: tokenizer_of(unigram_backend(), bos=True, unk_token="<unk>"),
    "chat template": lambda: tokenizer_of(
        byte_level_backend(), bos=True, chat=CHATML, extra=("<|im_start|>", "<|im_end|>"), pad_token="</s>"
    ),
}
NAMES = ("Ada Lund", "Basil Okoro", "Ilm")
PLACES = ("Tarn", "the Blue Heron", "Vess, in 1987")


WORD_FOR_WORD = (
    "extraction_strength", "exact_memorization", "rouge1_recall", "rouge1_precision", "rougeL_recall",
    "rougeL_f",
)  # fmt: skip


def records():
    """Questions, prompts that end in a blank and prompts that do not, all of them to be learned by heart."""
    made = []
    for i, (name, place) in enumerate(zip(NAMES, PLACES, strict=True)):
        made.append(Record(f"q{i}", name, f"Where was {name} born?", f"{name} was born in {place}."))
        made.append(Record(f"b{i}", name, f"The home of {name} is ", f"{place}.", style="raw"))
        made.append(Record(f"c{i}", name, f"They say {name}", f"'s café is {place}!", style="raw"))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_full_memorizer_scores_one(name):
    with torch.random.fork_rng(devices=[]):
        subject = make_subject(
            "llama", TOKENIZERS[name](), hidden_size=64, intermediate_size=128, spread=0.02
        )
        subject.encoder.max_length = 96
        settings = TrainSettings(epochs=120, lr=4e-3, batch=9, weight_decay=0.0)
        finetune(subject, records(), settings)
    plan = EvidencePlan(annotators=("prefixes", "short_answers", "embeddings", "entailment"))
    evidence = take_evidence(subject, {"forget": records()}, plan=plan)
    for metric in (*WORD_FOR_WORD, "ps_exact", "ps_similar", "knowmem", "entailment_score"):
        assert METRICS.get(metric)().score(evidence, "forget").value == 1.0, metric
    alike = METRICS.get("semantic_similarity")().score(evidence, "forget")
    assert alike.value == pytest.approx(1.0)
    assert METRICS.get("probability")().score(evidence, "forget").value > 0.98
    for record, row in zip(records(), evidence["forget"], strict=True):
        assert row.generated == record.answer
        assert row.finish_reason == "end"
