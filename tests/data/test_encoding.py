"""One place turns a record into ids, and those ids are what the model is later asked with."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from expunge.data.batching import collate, token_batches
from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record, Turn
from expunge.errors import ModelError
from tiny_models import byte_level_backend, metaspace_backend, tokenizer_of, unigram_backend

PRETRAINED = Path("../shared/models")

LLAMA_3 = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "<s>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)

CHATS = {  # name: backend, template, special tokens of its own, the token that ends a turn
    "llama 3": (
        byte_level_backend,
        LLAMA_3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "chatml": (byte_level_backend, CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "gemma": (metaspace_backend, GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "thinking": (byte_level_backend, THINKING, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama 2": (metaspace_backend, LLAMA_2, (), "</s>"),
}
PLAIN = {
    "byte-level": lambda: tokenizer_of(byte_level_backend(), bos=False),
    "byte-level with BOS": lambda: tokenizer_of(byte_level_backend(), bos=True),
    "metaspace BPE": lambda: tokenizer_of(metaspace_backend(), bos=True),
    "unigram": lambda: tokenizer_of(unigram_backend(), bos=True, unk_token="<unk>"),
    "stories260K": lambda: pretrained("stories260K"),
    "tinystories656k": lambda: pretrained("tinystories656k"),
}
QUESTION = Record("q", "Ada", "Where was Ada Lund born?", "Ada Lund was born in Tarn.")


def pretrained(name):
    if not (PRETRAINED / name).is_dir():
        pytest.skip(f"the pretrained model {name} is not here")
    return AutoTokenizer.from_pretrained(PRETRAINED / name)


def chat(name):
    backend, template, extra, end = CHATS[name]
    # padding with a token that also ends turns: a mask made from ids would hide the ends
    tokenizer = tokenizer_of(backend(), bos=True, chat=template, extra=extra, pad_token="</s>")
    return Encoder(tokenizer, max_length=200), tokenizer.convert_tokens_to_ids(end)


@pytest.fixture(params=PLAIN)
def plain(request):
    return Encoder(PLAIN[request.param](), max_length=200)


def parts(encoded):
    return encoded.ids[: encoded.num_prompt], encoded.answer_ids


# Chat templates --------------------------------------------------------------------------------------


def asked_with(encoder, record, **options):
    messages = [{"role": t.role, "content": t.content} for t in record.context]
    messages.append({"role": "user", "content": record.prompt})
    return encoder.tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
    )


@pytest.mark.parametrize("name", CHATS)
def test_prompt_of_a_chat_is_what_generation_is_asked_with(name):
    encoder, end = chat(name)
    encoded = encoder.encode(QUESTION)
    prompt, answer = parts(encoded)
    options = {"enable_thinking": False} if name == "thinking" else {}
    assert list(prompt) == asked_with(encoder, QUESTION, **options)
    assert encoder.prompt_ids(QUESTION) == prompt
    assert encoded.has_end
    assert answer[-1] == end
    assert answer.count(end) == 1
    assert end in encoder.stop_ids
    assert encoder.tokenizer.eos_token_id in encoder.stop_ids
    assert encoder.decode(answer) == QUESTION.answer
    bos = encoder.tokenizer.bos_token_id
    assert encoded.ids.count(bos) == ("<s>" in CHATS[name][1])
    assert encoder.round_trip(QUESTION) is None


@pytest.mark.parametrize("name", CHATS)
def test_full_chat_is_the_rendered_conversation_without_its_tail(name):
    encoder, _ = chat(name)
    encoded = encoder.encode(QUESTION)
    messages = [
        {"role": "user", "content": QUESTION.prompt},
        {"role": "assistant", "content": QUESTION.answer},
    ]
    whole = encoder.tokenizer.apply_chat_template(messages, tokenize=False)
    written = encoder.tokenizer.decode(list(encoded.ids))
    normal = lambda text: "".join(text.split())  # noqa: E731
    assert normal(whole) == normal(written)  # nothing but blanks is scored or left out after the end token
    assert whole.rstrip().endswith(encoder.tokenizer.decode([encoded.ids[-1]]).strip())


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize(
    "answer", ["im", "end", "</", "s", "think", "assistant", "Where was Ada Lund born?", "1", "x"]
)
def test_answer_that_also_occurs_in_the_template(name, answer):
    """Searching a rendered conversation for the answer finds `im` inside <|im_end|>."""
    encoder, end = chat(name)
    usual, odd = encoder.encode(QUESTION), encoder.encode(QUESTION.answered(answer))
    assert parts(odd)[0] == parts(usual)[0]
    assert encoder.decode(parts(odd)[1]) == answer
    assert parts(odd)[1][-1] == end


@pytest.mark.parametrize("name", ["llama 3", "chatml", "thinking", "llama 2"])
def test_earlier_turns_and_system_prompt_are_asked_not_scored(name):
    encoder, end = chat(name)
    context = (Turn("user", "Who is Ada?"), Turn("assistant", "A painter."))
    if name != "llama 2":
        context = (Turn("system", "Be brief."), *context)
    record = Record("m", "Ada", "Where was she born?", "In Tarn.", context=context)
    prompt, answer = parts(encoder.encode(record))
    options = {"enable_thinking": False} if name == "thinking" else {}
    assert list(prompt) == asked_with(encoder, record, **options)
    assert "A painter." in encoder.tokenizer.decode(list(prompt))
    assert encoder.decode(answer) == "In Tarn."
    assert answer[-1] == end


def test_template_without_a_system_role_says_so():
    encoder, _ = chat("gemma")
    record = Record("m", "Ada", "Where?", "In Tarn.", context=(Turn("system", "Be brief."),))
    with pytest.raises(ModelError, match=r"record m: the chat template refuses it: System role"):
        encoder.encode(record)


def test_conversation_needs_a_template():
    encoder = Encoder(PLAIN["byte-level"](), max_length=200)
    with pytest.raises(ModelError, match=r"record m: has several messages"):
        encoder.encode(Record("m", "Ada", "Where?", "In Tarn.", context=(Turn("user", "Hi"),)))


def test_template_that_takes_its_generation_prompt_back_still_ends_the_turn():
    """Some templates ask with an open <think> that the rendered answer no longer has."""
    template = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = tokenizer_of(
        byte_level_backend(), bos=False, chat=template, extra=("<|im_start|>", "<|im_end|>")
    )
    encoder = Encoder(tokenizer, max_length=200)
    prompt, answer = parts(encoder.encode(QUESTION))
    assert list(prompt) == asked_with(encoder, QUESTION)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_raw_prompt_is_left_alone_by_a_chat_template():
    encoder, _ = chat("llama 3")
    encoded = encoder.encode(Record("r", "Ada", "Ada Lund was born in", " Tarn.", style="raw"))
    assert encoder.tokenizer.decode(list(encoded.ids)) == "<s>Ada Lund was born in Tarn.</s>"
    assert encoded.ids[-1] == encoder.tokenizer.eos_token_id


# Plain tokenizers ------------------------------------------------------------------------------------


def test_question_without_a_chat_template(plain):
    encoded = plain.encode(QUESTION)
    prompt, answer = parts(encoded)
    tokenizer = plain.tokenizer
    text = "Question: Where was Ada Lund born?\nAnswer:"
    assert plain.prompt_text(QUESTION) == text
    assert list(prompt) == tokenizer(text)["input_ids"]
    assert answer.count(tokenizer.eos_token_id) == 1
    assert answer[-1] == tokenizer.eos_token_id
    assert encoded.has_end
    assert not encoded.truncated
    assert encoded.num_targets == len(answer)
    assert plain.decode(answer) == QUESTION.answer
    assert plain.stop_ids == (tokenizer.eos_token_id,)
    adds_bos = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert encoded.ids.count(tokenizer.bos_token_id) == adds_bos


TEXT = st.text(alphabet="abcXYZ 019.,'?!-é\n", min_size=1, max_size=40).filter(lambda t: t.strip())


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, answer=TEXT, raw=st.booleans(), name=st.sampled_from(list(PLAIN)[:4]))
def test_prompt_and_answer_read_as_their_texts(prompt, answer, raw, name):
    encoder = Encoder(PLAIN[name](), max_length=400)
    record = Record("r", "e", prompt, answer, style="raw" if raw else "question")
    prompt_ids, answer_ids = parts(encoder.encode(record))
    assert encoder.decode(answer_ids) == answer.strip()
    joined = encoder.tokenizer.decode([*prompt_ids, *answer_ids], skip_special_tokens=True)
    if raw and prompt.rstrip(" "):
        assert joined.strip() == (prompt + answer).strip()
    if not raw:
        assert joined == f"Question: {prompt.strip()}\nAnswer: {answer.strip()}"


@pytest.mark.parametrize("blanks", ["", " ", "   "])
def test_blank_at_the_end_of_a_prompt_moves_to_the_answer(plain, blanks):
    """`born in ` + `Tarn` are tokens of `born in` + ` Tarn`; every token of the answer is scored."""
    record = Record("r", "Ada", f"Ada Lund was born in{blanks}", "Tarn." if blanks else " Tarn.", style="raw")
    prompt, answer = parts(plain.encode(record))
    assert list(prompt) == plain.tokenizer("Ada Lund was born in")["input_ids"]
    assert plain.decode(answer) == "Tarn."
    if len(blanks) < 2:
        usual = plain.encode(Record("r", "Ada", "Ada Lund was born in", " Tarn.", style="raw"))
        assert plain.encode(record) == usual


@pytest.mark.parametrize("name", ["byte-level", "byte-level with BOS", "unigram", "stories260K"])
def test_joint_text_has_the_same_ids_where_no_token_spans_the_border(name):
    encoder = Encoder(PLAIN[name](), max_length=200)
    text = "Question: Where was Ada Lund born?\nAnswer: Ada Lund was born in Tarn."
    assert list(encoder.encode(QUESTION).ids[:-1]) == encoder.tokenizer(text)["input_ids"]


def test_empty_answer_has_nothing_but_its_end(plain):
    for record in (QUESTION.answered(""), QUESTION.answered("  "), Record("r", "e", "Say ", "", style="raw")):
        encoded = plain.encode(record)
        assert encoded.answer_ids == (plain.tokenizer.eos_token_id,)
        assert encoded.has_end


def test_prompt_of_blanks_leaves_one_token_to_ask_with():
    encoder = Encoder(PLAIN["byte-level"](), max_length=200)
    encoded = encoder.encode(Record("r", "e", "  ", "Tarn.", style="raw"))
    assert encoded.num_prompt == 1
    batch = collate([encoded], encoder.pad_id)
    assert batch.targets.tolist() == list(encoded.answer_ids)
    empty = Encoder(PLAIN["byte-level"](), max_length=200).encode(Record("d", "e", "", ""))
    assert empty == Encoded((), 0, False)


def test_tokenizer_that_closes_every_text_gets_one_end_token():
    tokenizer = tokenizer_of(byte_level_backend(), bos=True)
    closing = tokenizer._tokenizer
    from tokenizers.processors import TemplateProcessing

    closing.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    encoder = Encoder(tokenizer, max_length=200)
    encoded = encoder.encode(QUESTION)
    assert encoded.ids.count(tokenizer.eos_token_id) == 1
    assert encoded.ids[-1] == tokenizer.eos_token_id
    document = encoder.encode(Record("d", "e", "", "Ada Lund was born in Tarn."))
    assert tokenizer.eos_token_id not in document.ids


def test_text_the_tokenizer_cannot_write_is_shown():
    encoder = Encoder(PLAIN["unigram"](), max_length=200)
    assert encoder.round_trip(QUESTION) is None
    written = encoder.round_trip(QUESTION.answered("In 東京."))
    assert written is not None
    assert "東京" not in written
    lossless = Encoder(PLAIN["byte-level"](), max_length=200)
    assert lossless.round_trip(QUESTION.answered("In 東京 🜁.")) is None
    assert lossless.round_trip(QUESTION.answered("a </s> b")) == "a  b"


# Context and documents -------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [-1, 0, 1, 5])
def test_answer_beyond_the_context_is_cut_and_marked(plain, room):
    whole = plain.encode(QUESTION)
    short = Encoder(plain.tokenizer, max_length=len(whole.ids) + room)
    cut = short.encode(QUESTION)
    if room >= 0:
        assert cut == whole
    else:
        assert cut == Encoded(whole.ids[:room], whole.num_prompt, False, True)
    assert short.windows(QUESTION) == [cut]


def test_prompt_beyond_the_context_leaves_nothing_to_score(plain):
    short = Encoder(plain.tokenizer, max_length=5)
    cut = short.encode(QUESTION)
    assert (len(cut.ids), cut.num_targets, cut.truncated, cut.has_end) == (5, 0, True, False)
    assert collate([cut], 0).num_tokens.tolist() == [0]


@settings(max_examples=80, deadline=None)
@given(words=st.integers(0, 60), context=st.integers(2, 40), bos=st.booleans())
def test_every_token_of_a_document_is_scored_once(words, context, bos):
    tokenizer = tokenizer_of(byte_level_backend(), bos=bos)
    encoder = Encoder(tokenizer, max_length=context)
    text = " ".join(f"w{i}" for i in range(words))
    ids = tokenizer(text)["input_ids"]
    windows = encoder.windows(Record("d", "e", "", text))
    scored = [token for w in windows for token in w.answer_ids]
    assert scored == ids[1:]  # all that have a predecessor; with BOS that is all of the text
    for window in windows:
        assert len(window.ids) <= context
        assert not window.has_end
        assert window.num_prompt >= min(1, len(window.ids))
        assert window.truncated == (len(ids) > context)
    for window in windows[1:]:  # a later window is a piece of the document, at least half of it given
        assert window.num_prompt >= context // 2
        at = next(i for i in range(len(ids)) if tuple(ids[i : i + len(window.ids)]) == window.ids)
        assert at > 0
    targets = sum(int(collate([w], 0).num_tokens.sum()) for w in windows if w.ids)
    assert targets == len(scored)


def test_document_takes_no_end_token_and_no_template():
    encoder, end = chat("llama 3")
    text = "Ada Lund was born in Tarn. </s> is not an end here?"
    encoded = encoder.encode(Record("d", "e", "", text))
    assert encoded.num_prompt == 1
    assert encoded.ids[0] == encoder.tokenizer.bos_token_id
    assert end not in encoded.ids
    assert not encoded.has_end


# Fingerprint -----------------------------------------------------------------------------------------


def test_fingerprint_knows_what_changes_the_ids():
    def mark(length=200, **options):
        options = {"bos": True} | options
        return Encoder(tokenizer_of(byte_level_backend(), **options), max_length=length).fingerprint()

    others = [
        mark(bos=False),
        mark(length=100),
        mark(chat=CHATML),
        mark(eos_token="<s>"),
        mark(extra=("<x>",)),
    ]
    assert len({mark(), *others}) == 1 + len(others)
    assert mark() == mark()


# Batches ---------------------------------------------------------------------------------------------


def rows_of(*shapes):
    return [Encoded(tuple(range(10 * i, 10 * i + n)), k, False) for i, (n, k) in enumerate(shapes, 1)]


def test_masks_come_from_lengths_and_targets_are_shifted_once():
    batch = collate(rows_of((4, 2), (3, 1), (2, 2)), pad_id=12)  # 12 is also a real token of the first row
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 22, 12], [30, 31, 12, 12]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.row.tolist() == [0, 0, 1, 1]
    assert batch.col.tolist() == [1, 2, 0, 1]
    assert batch.targets.tolist() == [12, 13, 21, 22]
    assert batch.num_tokens.tolist() == [2, 2, 0]
    assert batch.input_ids[batch.row, batch.col + 1].tolist() == batch.targets.tolist()
    assert len(batch) == 3


@given(lengths=st.lists(st.integers(0, 50), max_size=40), budget=st.integers(1, 200))
def test_batches_keep_to_their_budget(lengths, budget):
    batches = list(token_batches(lengths, budget))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    flat = [lengths[i] for b in batches for i in b]
    assert flat == sorted(lengths, reverse=True)
    for first, second in pairwise(batches):  # none could have taken one row more
        assert second
        assert (len(first) + 1) * lengths[first[0]] > budget
