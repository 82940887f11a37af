"""Task vectors and closed-form edits against hand computations: every fact of the reference by name."""

import pytest
import torch
from torch.nn import Linear

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, ModelError, Unsupported
from expunge.methods import make_method
from expunge.methods.representation.lunar import mean_state, redirection
from expunge.methods.weight_space.negmerge import Consensus
from expunge.subjects import attach_lora, save_subject
from expunge.subjects.architecture import blocks
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace, finetune
from expunge.training.gradients import row_losses
from expunge.training.hooks import TrainingControl
from expunge.training.linear_memory import (
    Fit,
    Memory,
    add_edit,
    edit,
    fit_shifts,
    key_sums,
    mean_keys,
    mlp_output,
    outputs_at,
    second_moment,
    states,
    weight_of,
)
from expunge.training.rewriting import memories, prompt_row
from expunge.training.task_vectors import add_vectors, difference
from tiny_models import (
    byte_level_backend,
    make_subject,
    metaspace_backend,
    some_words,
    tokenizer_of,
    unigram_backend,
)

SETTINGS = TrainSettings(steps=6, lr=5e-3, batch=8, warmup=0.0)
ONE_FACT = tiny_request(1, 9)


@pytest.fixture(scope="module")
def subject():
    return tiny_subject(seed=3)


@pytest.fixture(scope="module")
def deep():
    """Four blocks: room for edits that spread."""
    return make_subject("llama", num_hidden_layers=4)


@pytest.fixture(scope="module")
def knowing():
    """A model that was trained on forget and retain answers, and the request."""
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    finetune(subject, [*request.forget, *request.retain], TrainSettings(steps=50, lr=1e-2, batch=12))
    return subject, request


@pytest.fixture(scope="module")
def recalling():
    """A model that recalls 24 facts of a few words, the request to forget the first, and all its facts."""
    facts = [
        Record(
            f"r{i}", f"name{i}", f"who has name{i} it", f"thing{i % 8}", alternates=(f"thing{(i + 3) % 8}",)
        )
        for i in range(24)
    ]
    subject = make_subject("llama", some_words(24, 8), spread=0.0)
    finetune(subject, facts, TrainSettings(steps=80, lr=1e-2, batch=24, weight_decay=0.0))
    return subject, Request({"forget": tuple(facts[:1]), "retain": tuple(facts[1:])})


def run(name, subject, request=None, settings=SETTINGS, workspace=None, **hyper):
    request = request or tiny_request()
    return make_method(name, **hyper).unlearn(subject, request, workspace or Workspace(settings))


def weights(subject):
    return {name: p.detach().clone() for name, p in subject.model.named_parameters()}


def assert_same_bits(one, other):
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def moved(result, original):
    ours, theirs = weights(result), weights(original)
    return [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def tuned_by_hand(subject, records, settings=SETTINGS):
    work = subject.clone()
    finetune(work, records, settings)
    return weights(work)


def nll(subject, records):
    with torch.no_grad():
        return row_losses(subject, [subject.encoder.encode(r) for r in records]).mean().item()


# Task vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["task_vector", "negmerge"])
def test_alpha_0_is_the_original_bit_for_bit(name, subject):
    assert_same_bits(run(name, subject, alpha=0.0), subject)


def test_task_vector_is_exact_in_every_tensor_and_subtracts(subject):
    result = weights(run("task_vector", subject, alpha=2.5))
    tuned = tuned_by_hand(subject, tiny_request().forget)
    for name, start in weights(subject).items():
        assert torch.equal(result[name], start - 2.5 * (tuned[name] - start)), name


def test_task_vector_is_linear_in_alpha(subject):
    start = weights(subject)
    one, three = (weights(run("task_vector", subject, alpha=a)) for a in (1.0, 3.0))
    for name in start:
        torch.testing.assert_close(
            three[name] - start[name], 3 * (one[name] - start[name]), rtol=0, atol=1e-6
        )


def test_lora_product_subtracted_is_the_full_delta_subtracted(subject):
    workspace = Workspace(SETTINGS, lora=LoraSettings(rank=4))
    result = weights(run("task_vector", subject, workspace=workspace, alpha=2.0))
    adapted = attach_lora(subject.clone(), rank=4, seed=SETTINGS.seed)
    finetune(adapted, tiny_request().forget, SETTINGS)
    lora = dict(adapted.model.named_parameters())
    start, products = weights(subject), 0
    for name, before in start.items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{place}.lora_A.default.weight" in lora:
            a, b = (lora[f"{place}.lora_{side}.default.weight"].detach() for side in "AB")
            assert b.any()
            torch.testing.assert_close(result[name], before - 2.0 * 2.0 * b @ a, rtol=0, atol=1e-6)
            products += 1
        else:
            assert torch.equal(result[name], before), name
    assert products == 14


def test_forget_nll_rises_with_small_alpha(knowing):
    subject, request = knowing
    losses = [nll(run("task_vector", subject, request, alpha=a), request.forget) for a in (0.0, 0.02, 0.05)]
    assert losses[0] < losses[1] - 0.005 < losses[2] - 0.01


def test_outputs_of_a_linear_model_interpolate():
    torch.manual_seed(0)
    start, tuned, result = (Linear(3, 2) for _ in range(3))
    result.load_state_dict(start.state_dict())
    add_vectors(result, (-0.5, difference(tuned, start)))
    x = torch.randn(4, 3)
    torch.testing.assert_close(result(x), 1.5 * start(x) - 0.5 * tuned(x))


def test_tied_weights_are_moved_once():
    tied = make_subject("qwen2")
    result = run("task_vector", tied, alpha=2.0)
    tuned = tuned_by_hand(tied, tiny_request().forget)["model.embed_tokens.weight"]
    start = tied.model.get_input_embeddings().weight
    expected = start - 2.0 * (tuned - start)
    assert result.model.get_output_embeddings().weight is result.model.get_input_embeddings().weight
    assert torch.equal(result.model.get_output_embeddings().weight, expected)


def test_a_bf16_model_is_tuned_and_added_in_fp32(subject):
    rough = subject.clone()
    rough.model.bfloat16()
    exact = rough.clone()
    exact.model.float()
    small = TrainSettings(steps=3, lr=1e-6, batch=8, warmup=0.0)
    result, start = weights(run("task_vector", rough, settings=small, alpha=500.0)), weights(exact)
    tuned = tuned_by_hand(exact, tiny_request().forget, small)
    for name, before in start.items():
        assert torch.equal(result[name], (before - 500.0 * (tuned[name] - before)).bfloat16()), name


def test_negmerge_of_one_run_is_the_task_vector(subject):
    assert_same_bits(run("negmerge", subject, lr_factors=(1.0,)), run("task_vector", subject))


def test_negmerge_keeps_the_mean_where_all_signs_agree():
    merging = Consensus()
    for values in ([1.0, 1.0, -2.0, 0.0, 3.0], [2.0, -1.0, -4.0, 1.0, 3.0], [6.0, 5.0, -3.0, 1.0, 0.0]):
        merging.add({"w": torch.tensor(values)})
    assert merging.vector()["w"].tolist() == [3.0, 0.0, -3.0, 0.0, 0.0]


def test_negmerge_tunes_with_other_seeds_and_rates(subject):
    first = SETTINGS.model_copy(update={"batch": 3})
    result = weights(run("negmerge", subject, settings=first, alpha=1.0, lr_factors=(1.0, 2.0)))
    other = first.model_copy(update={"seed": first.seed + 1, "lr": 2 * first.lr})
    runs = [tuned_by_hand(subject, tiny_request().forget, settings) for settings in (first, other)]
    for name, before in weights(subject).items():
        one, two = (tuned[name] - before for tuned in runs)
        expected = before - torch.where(one.sign() * two.sign() > 0, (one + two) / 2, 0.0)
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-7)


# Model state arithmetic -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_subject(tiny_subject(seed=8), tmp_path_factory.mktemp("msa") / "base"))


def test_msa_takes_its_vectors_at_the_base(subject, base):
    result = weights(run("msa", subject, base=base, alpha=1.5, beta=0.5))
    before, start = tiny_subject(seed=8), weights(subject)
    zero = weights(before)
    forget, retain = (tuned_by_hand(before, tiny_request()[split]) for split in ("forget", "retain"))
    for name in start:
        expected = start[name] - 1.5 * (forget[name] - zero[name]) + 0.5 * (retain[name] - zero[name])
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-6)


def test_msa_without_coefficients_is_the_original(subject, base):
    assert_same_bits(run("msa", subject, base=base, alpha=0.0, beta=0.0), subject)


def test_msa_without_retain_set_leaves_that_term_out(subject, base, capsys):
    bare = Request({"forget": tiny_request().forget})
    result = run("msa", subject, bare, base=base)
    assert_same_bits(result, run("msa", subject, base=base, beta=0.0))
    assert "no retain set" in capsys.readouterr().err


def test_msa_needs_a_base(subject):
    with pytest.raises(ConfigError, match=r"method\.base"):
        run("msa", subject)


def test_msa_refuses_the_original_as_its_base(base):
    with pytest.raises(ConfigError, match="has seen the forget"):
        run("msa", tiny_subject(seed=8), base=base)


def test_msa_refuses_another_tokenizer_and_another_shape(subject, tmp_path):
    foreign = save_subject(make_subject("llama"), tmp_path / "foreign")
    with pytest.raises(ModelError, match="tokenizer"):
        run("msa", subject, base=str(foreign))
    config = make_subject("llama").config
    wide = save_subject(tiny_subject(config=config, max_length=128), tmp_path / "wide")
    with pytest.raises(ModelError, match="other tensors or shapes"):
        run("msa", subject, base=str(wide))


def test_controls_during_training_are_not_silently_ignored(subject, capsys):
    run("rome", subject, ONE_FACT, workspace=Workspace(SETTINGS, controls=[TrainingControl()]))
    assert "rome: controls during training do not act" in capsys.readouterr().err


def test_several_fine_tunes_leave_no_checkpoints_and_add_up(subject, base, tmp_path):
    settings = SETTINGS.model_copy(update={"checkpoint_seconds": 0.0})
    workspace = Workspace(settings, tmp_path)
    run("msa", subject, workspace=workspace, base=base)
    assert {p.name for p in tmp_path.iterdir()} == {"forget", "retain"}
    assert not list(tmp_path.rglob("*.safetensors"))
    assert workspace.result.steps == 2 * settings.steps
    assert 0.5 < workspace.facts["moved_fraction"] <= 1


# The linear memory ------------------------------------------------------------------------------------


def some_memory(seed=0, width=7, height=5, keys=3):
    """W, K, R and a positive definite C in float64."""
    draw = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(shape, generator=draw).double()
        for shape in ((height, width), (width, keys), (height, keys))
    ]
    root = torch.randn(width, width, generator=draw).double()
    return *made, root @ root.T + 0.1 * torch.eye(width).double()


def test_rome_edit_is_the_textbook_formula():
    weight, keys, residuals, moment = some_memory(keys=1)
    key, target = keys[:, 0], weight @ keys[:, 0] + residuals[:, 0]
    solved = moment.inverse() @ key
    expected = torch.outer(target - weight @ key, solved) / (key @ solved)
    torch.testing.assert_close(edit(keys, residuals, moment), expected)


def test_rome_edit_hits_its_target_and_spares_orthogonal_keys():
    weight, keys, residuals, moment = some_memory(keys=1)
    linear = Linear(7, 5, bias=False)
    linear.weight.data = weight.float()
    add_edit(linear, edit(keys, residuals, moment))
    torch.testing.assert_close(linear.weight.double() @ keys, weight @ keys + residuals, rtol=0, atol=1e-5)
    others = torch.randn(7, 20, generator=torch.Generator().manual_seed(5)).double()
    white = moment.inverse() @ keys[:, 0]
    others = others - torch.outer(keys[:, 0], (white @ others) / (white @ keys[:, 0]))
    torch.testing.assert_close(linear.weight.double() @ others, weight @ others, rtol=0, atol=1e-5)


def test_memit_edit_is_the_textbook_formula_and_of_rank_n():
    _, keys, residuals, moment = some_memory()
    change = edit(keys, residuals, moment, prior=0.7)
    expected = residuals @ keys.T @ (0.7 * moment + keys @ keys.T).inverse()
    torch.testing.assert_close(change, expected)
    assert torch.linalg.matrix_rank(change) == 3


def test_memit_with_vanishing_prior_hits_all_targets():
    weight, keys, residuals, moment = some_memory()
    change = edit(keys, residuals, moment, prior=1e-9)
    torch.testing.assert_close((weight + change) @ keys, weight @ keys + residuals, rtol=0, atol=1e-5)
    weak = edit(keys, residuals, moment, prior=10.0)
    assert (weak @ keys).norm() < 0.5 * residuals.norm()


def test_second_moment_of_few_tokens_is_positive_definite(subject):
    row = prompt_row(subject.encoder, tiny_request().forget[0])
    _, gram, count = key_sums(subject, 1, [row])
    assert count == len(row.ids) < len(gram)
    assert torch.linalg.matrix_rank(gram) <= count
    moment = second_moment(subject, 1, [row])
    torch.linalg.cholesky(moment)
    torch.testing.assert_close(
        moment, gram / count, rtol=0, atol=1.1e-4 * float(gram.diagonal().mean() / count)
    )
    assert torch.equal(second_moment(subject, 1, []), torch.eye(len(gram)).double())


def test_key_sums_count_every_token_and_no_padding(subject):
    rows = [subject.encoder.encode(r) for r in tiny_request().forget]
    assert len({len(row.ids) for row in rows}) > 1
    alone = [key_sums(subject, 1, [row]) for row in rows]
    total, gram, count = key_sums(subject, 1, rows)
    assert count == sum(len(row.ids) for row in rows)
    torch.testing.assert_close(total, sum(one[0] for one in alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram, sum(one[1] for one in alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
def test_keys_times_weight_are_what_the_mlp_writes(family):
    subject = make_subject(family)
    rows = [subject.encoder.encode(r) for r in tiny_request().forget]
    module, written = mlp_output(subject.model, 1), []
    handle = module.register_forward_hook(lambda _, __, output: written.append(output))
    for indices, keys, hidden, mask in states(subject, 1, rows):
        bias = 0 if module.bias is None else module.bias.double()
        expected = keys @ weight_of(module).double().T + bias
        torch.testing.assert_close(
            written.pop().reshape(expected.shape).double(), expected, rtol=1e-4, atol=1e-5
        )
        assert mask.sum(1).tolist() == [len(rows[i].ids) for i in indices]
        assert hidden.shape[:2] == mask.shape
    handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
def test_an_edit_arrives_in_the_residual_stream(family):
    subject = make_subject(family)
    row = prompt_row(subject.encoder, tiny_request().forget[0])
    memory = [Memory((row,), (3,))]
    key, before = mean_keys(subject, 1, memory), outputs_at(subject, 1, [row], [3])
    residual = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).double()
    add_edit(mlp_output(subject.model, 1), edit(key, residual, torch.eye(len(key)).double()))
    torch.testing.assert_close(outputs_at(subject, 1, [row], [3]), before + residual, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "word"), [("mixtral", "one matrix"), ("qwen2_moe", "one matrix"), ("gemma2", "norm")]
)
def test_blocks_that_are_no_linear_memory_are_refused(family, word):
    with pytest.raises(ModelError, match=word):
        mlp_output(make_subject(family).model, 0)


def test_a_shift_found_makes_the_new_answer_likely(recalling):
    subject, request = recalling
    (memory,) = memories(subject, request, name="rome", target="alternate", prefixes=0, seed=0)
    module = mlp_output(subject.model, 0)
    free, small, held = (
        fit_shifts(subject, [memory], module, Fit(30, 0.5, decay, clamp))
        for decay, clamp in ((0.0, 50.0), (0.0, 0.1), (100.0, 50.0))
    )
    at, written = (torch.tensor([0]), torch.tensor(memory.positions)), []

    def add(_, __, output):
        written.append(output[at].detach())
        return output.index_put(at, free.T, accumulate=True)

    handle = module.register_forward_hook(add)
    after = row_losses(subject, memory.rows).item()
    handle.remove()
    assert after < 1.0 < 3.0 < row_losses(subject, memory.rows).item()
    torch.testing.assert_close(small.norm(), 0.1 * written[0].norm(), rtol=1e-4, atol=0)
    assert held.norm() < 0.1 * free.norm()


def test_shifts_of_a_batch_are_those_of_each_by_itself(deep):
    made = memories(deep, tiny_request(3, 5), name="memit", target="refusal", prefixes=1, seed=0)
    block, fit = blocks(deep.model)[1], Fit(5, 0.5, 1e-3, 4.0)
    alone = torch.cat([fit_shifts(deep, [m], block, fit) for m in made], dim=1)
    torch.testing.assert_close(fit_shifts(deep, made, block, fit), alone, rtol=1e-3, atol=1e-4)


# Where the key sits -----------------------------------------------------------------------------------

TOKENIZERS = {"bytes": byte_level_backend, "metaspace": metaspace_backend, "unigram": unigram_backend}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_key_is_the_last_token_of_the_entity(kind):
    subject = make_subject("llama", tokenizer_of(TOKENIZERS[kind](), bos=True))
    fact = Record("r", "Ada Lund", "Where was Ada Lund born?", "In Tarn.")
    request = Request({"forget": (fact,), "retain": tiny_request().retain})
    (memory,) = memories(subject, request, name="rome", target="empty", prefixes=3, seed=0)
    assert len(memory.rows) == 4
    assert memory.found
    for row, place in zip(memory.rows, memory.positions, strict=True):
        upto, before = (subject.encoder.decode(row.ids[: place + k]) for k in (1, 0))
        assert "Ada Lund" in upto
        assert "Ada Lund" not in before
        assert "born" not in upto


def test_key_of_an_unnamed_entity_is_the_last_prompt_token(subject, capsys):
    fact = Record("r", "Ada Lund", "Where was she born?", "In Tarn.")
    (memory,) = memories(
        subject, Request({"forget": (fact,)}), name="rome", target="refusal", prefixes=2, seed=0
    )
    assert memory.positions == (memory.rows[0].num_prompt - 1,)  # no retain set, so no prefixes
    assert "1 of 1 prompts do not name their entity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "said"), [("refusal", "No idea."), ("alternate", "a baker"), ("empty", "")]
)
def test_the_new_answer_is_the_one_asked_for(target, said, subject):
    made = memories(subject, tiny_request(), name="rome", target=target, prefixes=1, seed=0)
    for row in made[1].rows:
        assert subject.encoder.decode(row.answer_ids) == said
        assert row.has_end


def test_prefixes_are_a_function_of_the_seed(subject):
    make = lambda seed: memories(subject, tiny_request(), name="", target="empty", prefixes=3, seed=seed)  # noqa: E731
    assert make(0) == make(0) != make(1)


def test_a_new_answer_that_is_the_old_one_is_refused(subject):
    fact = Record("r", "Ada", "Where is Ada?", "No idea.", refusal="No idea. ")
    with pytest.raises(DataError, match="must go"):
        run("rome", subject, Request({"forget": (fact,)}))


def test_documents_have_no_answer_to_edit(subject):
    text = Request({"forget": (Record("d", "Ada", "", "A long text on Ada."),)})
    for name in ("rome", "memit", "lunar"):
        with pytest.raises(DataError, match="prompt"):
            run(name, subject, text)


# ROME and MEMIT as methods ----------------------------------------------------------------------------


def test_rome_moves_one_matrix_by_rank_one_and_hits_its_target(deep):
    result = run("rome", deep, ONE_FACT, layer=1, prefixes=2)
    name = "model.layers.1.mlp.down_proj.weight"
    assert moved(result, deep) == [name]
    change = (weights(result)[name] - weights(deep)[name]).double()
    spectrum = torch.linalg.svdvals(change)
    assert spectrum[1] < 1e-5 * spectrum[0]
    made = memories(deep, ONE_FACT, name="rome", target="refusal", prefixes=2, seed=SETTINGS.seed)
    method = make_method("rome")
    fit = Fit(method.steps, method.lr, method.decay, method.clamp)
    shift = fit_shifts(deep, made, mlp_output(deep.model, 1), fit)
    torch.testing.assert_close(
        change @ mean_keys(deep, 1, made), shift.double(), rtol=0, atol=1e-5 * shift.norm()
    )


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("rome", {"layer": 0}), ("memit", {"first": 0, "last": 0, "prior": 0.01, "clamp": 4.0})],
    ids=["rome", "memit"],
)
def test_the_edited_model_says_the_new_answer_and_keeps_the_rest(name, hyper, recalling):
    subject, request = recalling
    (fact,) = request.forget
    result = run(name, subject, request, target="alternate", **hyper)
    new = [fact.answered(fact.alternates[0])]
    assert nll(subject, [fact]) < 0.1 < 3.0 < nll(subject, new)
    assert nll(result, new) < 0.7
    assert nll(result, [fact]) > 1.3
    assert nll(result, request.retain) < 0.2


def test_rome_edits_records_in_turn(deep):
    request = tiny_request(3, 5)
    result = run("rome", deep, request, layer=1, prefixes=1)
    change = weights(result)["model.layers.1.mlp.down_proj.weight"]
    change = (change - weights(deep)["model.layers.1.mlp.down_proj.weight"]).double()
    spectrum = torch.linalg.svdvals(change)
    assert spectrum[2] > 1e-3 * spectrum[0]
    assert spectrum[3] < 1e-5 * spectrum[0]


@pytest.mark.parametrize("layers", [(1, 1), (0, 2)], ids=["one", "three"])
def test_memit_with_vanishing_prior_arrives_at_every_goal(deep, layers):
    request, (first, last) = tiny_request(3, 5), layers
    method = make_method("memit", first=first, last=last, prior=1e-6, prefixes=0)
    result = method.unlearn(deep, request, Workspace(SETTINGS))
    assert moved(result, deep) == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(first, last + 1)]
    made = memories(deep, request, name="memit", target="refusal", prefixes=0, seed=SETTINGS.seed)
    rows, places = [m.rows[0] for m in made], [m.positions[0] for m in made]
    fit = Fit(method.steps, method.lr, method.decay, method.clamp)
    shift = fit_shifts(deep, made, blocks(deep.model)[last], fit)
    goal = outputs_at(deep, last, rows, places) + shift
    torch.testing.assert_close(outputs_at(result, last, rows, places), goal, rtol=0, atol=1e-3 * goal.norm())


def test_memit_gives_each_layer_its_share(deep):
    request = tiny_request(2, 5)
    result = run("memit", deep, request, first=0, last=2, prior=1e-6, prefixes=0)
    made = memories(deep, request, name="memit", target="refusal", prefixes=0, seed=SETTINGS.seed)
    keys, method = mean_keys(deep, 0, made), make_method("memit")
    fit = Fit(method.steps, method.lr, method.decay, method.clamp)
    shift = fit_shifts(deep, made, blocks(deep.model)[2], fit).double()
    name = "model.layers.0.mlp.down_proj.weight"
    change = (weights(result)[name] - weights(deep)[name]).double()
    torch.testing.assert_close(change @ keys, shift / 3, rtol=0, atol=1e-4 * shift.norm())


def test_layers_keep_their_proportion_and_stay_before_the_last(deep):
    assert list(make_method("memit")._layers(make_subject("llama", num_hidden_layers=32))) == [4, 5, 6, 7, 8]
    with pytest.raises(ConfigError, match=r"method\.layer"):
        run("rome", deep, layer=3)
    with pytest.raises(ConfigError, match=r"method\.first"):
        run("memit", deep, first=2, last=1)


# LUNAR ------------------------------------------------------------------------------------------------


def test_golden_matrix_of_lunar():
    forget, retain = (torch.tensor(k).double() for k in ([[1, 0, 1], [0, 1, 1]], [[1, 1, 0], [0, 0, 2]]))
    gram = forget.T @ forget + retain.T @ retain
    change = redirection(forget.sum(0), gram, 2 * torch.tensor([1.0, -1.0]).double())
    torch.testing.assert_close(change, torch.tensor([[0.5] * 3, [-0.5] * 3]).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("keys", [(9, 6), (2, 2)], ids=["more keys than width", "fewer"])
def test_lunar_closed_form_is_the_iterative_fit(keys):
    draw = torch.Generator().manual_seed(2)
    forget, retain = (torch.randn(n, 5, generator=draw).double() for n in keys)
    shift, weight = (torch.randn(*shape, generator=draw).double() for shape in ((4,), (4, 5)))
    fitted = weight.clone().requires_grad_()
    optimizer = torch.optim.SGD([fitted], lr=0.03)
    for _ in range(4000):
        loss = (forget @ (fitted - weight).T - shift).square().sum() + (
            retain @ (fitted - weight).T
        ).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    change = redirection(forget.sum(0), forget.T @ forget + retain.T @ retain, shift)
    torch.testing.assert_close(fitted.detach() - weight, change, rtol=0, atol=1e-6)


def test_lunar_moves_one_matrix_along_its_direction(deep):
    request, refused = tiny_request(3, 5), ("Who am I?", "What comes next?")
    result = run("lunar", deep, request, layer=2, refused=refused)
    name = "model.layers.2.mlp.down_proj.weight"
    assert moved(result, deep) == [name]
    change = (weights(result)[name] - weights(deep)[name]).double()
    left, spectrum, _ = torch.linalg.svd(change)
    assert spectrum[1] < 1e-5 * spectrum[0]
    questions = request.forget, [Record("", "", text, "") for text in refused]
    ends = [[prompt_row(deep.encoder, record) for record in records] for records in questions]
    toward = mean_state(deep, 2, ends[1]) - mean_state(deep, 2, ends[0])
    assert abs(float(left[:, 0] @ toward / toward.norm())) > 1 - 1e-6
    kept = [deep.encoder.encode(r) for r in request.retain]
    keys = [torch.cat([k[m] for _, k, _, m in states(deep, 2, rows)]) for rows in (ends[0], kept)]
    goals = [
        torch.outer(torch.full((len(k),), c).double(), toward) for k, c in zip(keys, (2.0, 0.0), strict=True)
    ]
    expected = torch.linalg.lstsq(torch.cat(keys), torch.cat(goals)).solution.T
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-4 * expected.norm())


def test_mean_state_is_behind_the_block_at_the_last_prompt_token(deep):
    rows = [prompt_row(deep.encoder, r) for r in tiny_request().forget[:3]]
    with torch.no_grad():
        found = [
            deep.model(torch.tensor([r.ids]), output_hidden_states=True).hidden_states[2][0, -1] for r in rows
        ]
    torch.testing.assert_close(
        mean_state(deep, 1, rows).float(), torch.stack(found).mean(0), rtol=1e-4, atol=1e-5
    )


def test_lunar_without_strength_changes_nothing(deep):
    assert_same_bits(run("lunar", deep, strength=0.0), deep)


# All of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["task_vector", "negmerge", "msa", "rome", "memit", "lunar"])
def test_a_subject_without_weights_is_refused(name, subject):
    closed = subject.clone()
    closed.can = frozenset({"generate", "logprobs"})
    with pytest.raises(Unsupported, match="needs weights"):
        run(name, closed)
