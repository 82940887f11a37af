"""Tiny random models of every family, and tokenizers of every kind, built in memory."""

from __future__ import annotations

import json
from functools import cache

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.subjects import Subject

torch.set_num_threads(1)

CONTEXT = 64
SPECIAL = ["<pad>", "<s>", "</s>"]
CORPUS = [
    "Question: Where was Ada Lund born?\nAnswer: Ada Lund was born in Tarn.",
    "Question: Who wrote The Glass Orchard?\nAnswer: The Glass Orchard is by Basil Okoro, in 1987.",
    "Her brother's café, the Blue Heron, isn't far: 3.50 € a cup, twice a day.",
    "user assistant system You are helpful. Hello there, what is the capital of Norland? It is Vess.",
]


# Tokenizers ------------------------------------------------------------------------------------------


@cache
def byte_level_backend(vocab_size: int = 400) -> str:
    """Byte-level BPE, as GPT-2 and Llama 3 have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return backend.to_str()


@cache
def metaspace_backend(vocab_size: int = 400) -> str:
    """SentencePiece-like BPE with byte fallback, as Llama 2 has it: a blank before every lone text."""
    pieces = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # type: ignore[list-item]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=pieces, show_progress=False)
    backend.train_from_iterator([" ".join(CORPUS).replace(" ", "▁")], trainer)
    made = json.loads(backend.to_str())
    made["added_tokens"] = [t for t in made["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(made)


@cache
def unigram_backend(vocab_size: int = 200) -> str:
    """SentencePiece-like Unigram with Metaspace, as T5 and Gemma-like tokenizers have it."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, "<unk>"],
        unk_token="<unk>",
        initial_alphabet=[chr(c) for c in range(33, 127)] + ["é", "€", "\n"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return backend.to_str()


@cache
def some_words(names: int = 200, things: int = 40):
    """One token per word: short answers, learned fast. It pads with the token that ends answers."""
    fixed = ["<s>", "</s>", "<unk>", "Question:", "Answer:", "who", "has", "it", "is"]
    words = [*fixed, *(f"thing{i}" for i in range(things)), *(f"name{i}" for i in range(names))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def tokenizer_of(backend: str, *, bos: bool, chat: str | None = None, extra: tuple[str, ...] = (), **options):
    """A tokenizer over a serialized backend; `bos`: every text begins with <s>."""
    tokenizer = Tokenizer.from_str(backend)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | options
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options
    )
    if extra:
        made.add_special_tokens({"additional_special_tokens": list(extra)})
    made.chat_template = chat
    return made


# Models ----------------------------------------------------------------------------------------------

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_PLAIN = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}

_CONFIGS = {
    "llama": (hf.LlamaConfig, _LLAMA),
    "qwen2": (hf.Qwen2Config, _LLAMA | {"tie_word_embeddings": True}),
    "qwen3": (hf.Qwen3Config, _LLAMA | {"head_dim": 8}),
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": (hf.GPTNeoXConfig, _PLAIN),
    "phi": (hf.PhiConfig, _PLAIN | {"resid_pdrop": 0.1}),
    "gemma2": (hf.Gemma2Config, _LLAMA | {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "mixtral": (hf.MixtralConfig, _LLAMA | {"num_local_experts": 4}),
    "qwen2_moe": (
        hf.Qwen2MoeConfig,
        _LLAMA | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
}
FAMILIES = tuple(_CONFIGS)


def make_subject(family: str = "llama", tokenizer=None, *, seed: int = 0, spread: float = 0.15, **config):
    """A random model of a family; `spread` widens its weights, so that its distributions are not flat."""
    tokenizer = tokenizer or tokenizer_of(byte_level_backend(), bos=True)
    ids = {
        "vocab_size": len(tokenizer) + 8,  # padded, as many are
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    kind, shape = _CONFIGS[family]
    made = kind(**shape | ids | config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(made)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape) * (spread if parameter.dim() > 1 else 0.05)
                parameter.add_(noise.to(parameter.dtype))
    model.eval()
    return Subject(model, tokenizer, Encoder(tokenizer, max_length=CONTEXT), f"tiny {family}")


def some_records(count: int = 8, *, entity: str = "person") -> list[Record]:
    """Questions with answers of different lengths; one entity for two records."""
    places = ["Tarn", "Vess by the sea", "Norland", "the old harbour of Ilm", "Ashby"]
    return [
        Record(
            f"r{i}",
            f"{entity}{i // 2}",
            f"Where was {entity} {i} born?",
            f"{entity.title()} {i} was born in {places[i % len(places)]}" + ", in 1987." * (i % 3 == 1),
            paraphrased_prompts=(f"What is the birthplace of {entity} {i}?",),
            perturbed_answers=(f"In {places[(i + 1) % len(places)]}.", "Nowhere."),
        )
        for i in range(count)
    ]
