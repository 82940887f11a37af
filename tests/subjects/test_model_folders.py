"""Model folders: what cannot be loaded is said in one sentence, and a failed save leaves the old model."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.errors import ExpungeError, ModelError, Unsupported
from expunge.subjects import attach_lora, fingerprint, load_subject, merge, save_subject, weights
from expunge.subjects.subject import Subject, context_length, load_encoder
from expunge.subjects.weights import check_mixable, dump_weights, mix_into
from tiny_models import byte_level_backend, make_subject, some_records, tokenizer_of

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_subject(make_subject("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('ran foreign code')")


def longer_tokenizer(folder):
    tokenizer = tokenizer_of(byte_level_backend(), bos=True)
    tokenizer.add_tokens([f"<new{i}>" for i in range(20)])
    tokenizer.save_pretrained(folder)


DAMAGE = {
    "no config": (lambda d: (d / "config.json").unlink(), "holds no config.json"),
    "bad config": (lambda d: (d / "config.json").write_text('{"a"'), "not a valid JSON file"),
    "no tokenizer": (no_tokenizer, "holds no tokenizer"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no weights in safetensors"),
    "pickle only": (pickle_only, "unpickles nothing"),
    "broken weights": (lambda d: (d / "model.safetensors").write_bytes(b"abc"), "damaged safetensors"),
    "cut off weights": (cut_off, "damaged safetensors"),
    "NaN": (
        lambda d: change_weights(d, lambda t: t[WEIGHT].fill_(torch.nan)),
        f"non-finite weights in {WEIGHT}",
    ),
    "a tensor missing": (lambda d: change_weights(d, lambda t: t.pop(WEIGHT)), f"lacks 1 weights ({WEIGHT})"),
    "other shapes": (
        lambda d: change_weights(d, lambda t: t.update({WEIGHT: torch.zeros(3, 3)})),
        "other shapes than its config.json",
    ),
    "unknown type": (lambda d: (d / "config.json").write_text('{"model_type": "zzz"}'), "zzz"),
    "encoder-decoder": (lambda d: (d / "config.json").write_text('{"model_type": "t5"}'), "not a causal LM"),
    "own code": (own_code, "trust_remote_code: true"),
    "tokenizer too large": (longer_tokenizer, "writes ids up to"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder_is_one_clear_error(name, folder):
    damage, words = DAMAGE[name]
    damage(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ModelError) as caught:
        load_subject(folder)
    text = str(caught.value)
    assert words in text
    assert text.startswith(str(folder))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].fix
    assert "Traceback" not in text
    assert "\n" not in text
    assert len(text) < 500
    assert caught.value.exit_code == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("load", [load_subject, load_encoder])
def test_folder_that_is_not_there(load, tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_all_that_is_wrong_with_the_weights_comes_at_once(folder):
    longer_tokenizer(folder)
    change_weights(folder, lambda t: t[WEIGHT].fill_(torch.inf))
    with pytest.raises(ModelError) as caught:
        load_subject(folder)
    assert len(caught.value.problems) == 2


def test_home_folder_is_expanded(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert load_subject("~/llama").source == str(saved)


def test_encoder_alone_equals_the_subjects(saved):
    subject = load_subject(saved)
    encoder = load_encoder(str(saved))
    assert encoder.fingerprint() == subject.encoder.fingerprint()
    assert encoder.max_length == 64
    assert [encoder.encode(r) for r in some_records()] == [subject.encoder.encode(r) for r in some_records()]


def test_adapter_folder_is_loaded_merged(saved, tmp_path):
    adapted = attach_lora(load_subject(saved), rank=2)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    adapted.model.save_pretrained(tmp_path / "adapter")
    adapted.tokenizer.save_pretrained(tmp_path / "adapter")
    again = load_subject(tmp_path / "adapter")
    assert not again.adapter
    assert fingerprint(again.model) == fingerprint(merge(adapted).model)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match="unpickles nothing"):
        load_subject(tmp_path / "adapter")


def test_context_is_the_models_or_the_tokenizers():
    config = SimpleNamespace(n_positions=32)
    assert context_length(config, SimpleNamespace(model_max_length=8)) == 32
    assert context_length(SimpleNamespace(), SimpleNamespace(model_max_length=8)) == 8
    assert context_length(SimpleNamespace(), SimpleNamespace(model_max_length=10**30)) == 2048


def test_lesser_subject_says_what_it_cannot_do():
    subject = make_subject()
    lesser = Subject(subject.model, subject.tokenizer, subject.encoder, "api", frozenset({"generate"}))
    lesser.need("generate")
    with pytest.raises(Unsupported, match="scoring answers needs logprobs"):
        lesser.need("generate", "logprobs", what="scoring answers")


def test_clone_shares_nothing():
    subject = make_subject()
    mark = fingerprint(subject.model)
    copy = subject.clone()
    with torch.no_grad():
        for parameter in copy.model.parameters():
            parameter.zero_()
    copy.info["method"] = "npo"
    assert fingerprint(subject.model) == mark
    assert subject.info == {}


# Saving ----------------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fails_at(monkeypatch, what):
    if what == "reload":
        monkeypatch.setattr(weights, "load_subject", lambda *_, **__: make_subject(seed=9))
    elif what == "write":

        def half_written(self, where, **_):
            where.mkdir()
            (where / "model.safetensors").write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", half_written)
    elif what == "space":
        monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    elif what == "rename":
        rename = weights.os.replace
        monkeypatch.setattr(
            weights.os,
            "replace",
            lambda a, b: refuse() if str(a).endswith(".tmp") and "old" not in str(a) else rename(a, b),
        )


def refuse():
    raise OSError("device lost")


@pytest.mark.parametrize("what", ["reload", "write", "space", "rename"])
@pytest.mark.parametrize("existed", [True, False])
def test_failed_save_leaves_what_was_there(what, existed, folder, monkeypatch):
    target = folder if existed else folder.parent / "new"
    before = contents(folder)
    subject = make_subject(seed=1)
    with monkeypatch.context() as patch:
        fails_at(patch, what)
        with pytest.raises((ExpungeError, OSError)) as caught:
            save_subject(subject, target)
    assert {"reload": "differs", "space": "MiB free"}.get(what, "") in str(caught.value)
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_no_room_makes_no_folder(tmp_path, monkeypatch):
    fails_at(monkeypatch, "space")
    with pytest.raises(ExpungeError, match="Make room"):
        save_subject(make_subject(), tmp_path / "a" / "b" / "model")
    assert list(tmp_path.iterdir()) == []


def test_old_model_stands_until_the_new_one_is_whole(folder, monkeypatch):
    """Every file is written under a temporary name; the target is only ever renamed."""
    before, seen = contents(folder), []
    load = weights.load_subject

    def watched(where, **options):
        seen.append((where.name, contents(folder) == before))
        return load(where, **options)

    monkeypatch.setattr(weights, "load_subject", watched)
    subject = make_subject(seed=1)
    save_subject(subject, folder)
    assert len(seen) == 1
    assert seen[0][1]
    assert seen[0][0].startswith(".model.")
    assert fingerprint(load_subject(folder).model) == fingerprint(subject.model)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_tokenizer_that_would_come_back_as_another_is_refused(tmp_path):
    """transformers puts a Qwen tokenizer in place of any plain one beside a Qwen model."""
    with pytest.raises(ExpungeError, match="tokenizer"):
        save_subject(make_subject("qwen2"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Mixing ----------------------------------------------------------------------------------------------


def test_models_that_cannot_be_mixed_are_named(tmp_path):
    subject = make_subject()
    files = {}
    for name, other in {
        "same": subject,
        "wider": make_subject(intermediate_size=64),
        "tied": make_subject(tie_word_embeddings=True),
    }.items():
        files[name] = dump_weights(other.model, tmp_path / f"{name}.safetensors")
    broken = make_subject(seed=2)
    broken.model.lm_head.weight.data[0, 0] = torch.nan
    files["nan"] = dump_weights(broken.model, tmp_path / "nan.safetensors")
    check_mixable(subject.model, files["same"], files["same"])
    with pytest.raises(ModelError, match=r"up_proj.*shape"):
        check_mixable(subject.model, files["same"], files["wider"])
    with pytest.raises(ModelError, match=r"other ties: lm_head"):
        check_mixable(subject.model, files["same"], files["tied"])
    with pytest.raises(ModelError, match=r"lm_head.*cannot rescue a NaN"):
        check_mixable(subject.model, files["same"], files["nan"])


def test_mixing_takes_buffers_along_and_refuses_integers_that_differ(tmp_path):
    ends = []
    for i, seed in enumerate((0, 1)):
        subject = make_subject(seed=seed)
        subject.model.register_buffer("drift", torch.full((2,), float(i)))
        subject.model.register_buffer("count", torch.tensor(7))
        ends.append(subject)
    files = [dump_weights(s.model, tmp_path / f"{i}.safetensors") for i, s in enumerate(ends)]
    live = ends[0].clone()
    check_mixable(live.model, *files)
    mix_into(live.model, *files, 0.25)
    assert live.model.drift.tolist() == [0.25, 0.25]
    assert live.model.count == 7
    ends[1].model.count.fill_(8)
    files[1] = dump_weights(ends[1].model, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="integer buffer"):
        check_mixable(live.model, *files)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_the_unit_interval_is_a_mistake(alpha, tmp_path):
    subject = make_subject()
    file = dump_weights(subject.model, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="outside"):
        mix_into(subject.model, file, file, alpha)


def test_failed_dump_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    dump_weights(make_subject().model, path)
    before = path.read_bytes()

    def half_written(_, where):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        dump_weights(make_subject(seed=1).model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
