"""The loop: resume to the same bits, stop cleanly, never keep a broken state, say what went wrong."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import DataError, ExpungeError, MissingDependency
from expunge.methods import make_method
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace, finetune
from expunge.training.checkpoint import load_checkpoint
from expunge.training.hooks import TrainingControl


def settings(**more):
    return TrainSettings(**{"steps": 6, "batch": 3, "lr": 1e-3, "checkpoint_seconds": 0.0, **more})


def unlearn(name="npo", folder=None, method=None, controls=(), lora=None, **more):
    workspace = Workspace(settings(**more), folder, controls=controls, lora=lora)
    result = (method or make_method(name)).unlearn(tiny_subject(), tiny_request(), workspace)
    return result, workspace


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# Kill and resume --------------------------------------------------------------------------------------


def to_the_end(folder, name, lora):
    torch.set_num_threads(1)
    result, _ = unlearn(name, folder, lora=lora, steps=40)
    (folder / "mark").write_text(fingerprint(result.model))


def start(folder, *args):
    process = multiprocessing.get_context("fork").Process(target=to_the_end, args=(folder, *args))
    process.start()
    return process


@pytest.mark.parametrize(
    ("name", "lora"),
    [("npo", None), ("rmu", None), ("ga_kl", LoraSettings(rank=2))],
    ids=["full", "rmu", "lora"],
)
def test_killed_at_random_moments_it_ends_with_the_bits_and_the_log_of_a_straight_run(tmp_path, name, lora):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), killed.mkdir()
    to_the_end(straight, name, lora)
    moments = random.Random(name)
    kills = 0
    while True:
        process = start(killed, name, lora)
        target = moments.randint(1, 30)
        while process.is_alive() and kills < 5:
            done = len(log_of_a_live_run(killed))
            if done >= target or (done and moments.random() < 0.02):
                time.sleep(moments.random() * 0.01)
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.join()
        if process.exitcode == 0:
            break
    assert kills >= 3
    assert (killed / "mark").read_text() == (straight / "mark").read_text()
    timeless = [{k: v for k, v in entry.items() if k != "seconds"} for entry in log_of(killed)]
    assert timeless == log_of(straight)
    assert [entry["step"] for entry in timeless] == list(range(1, 41))
    assert not list(killed.glob(".*.tmp")), "weights of a killed write are left behind"


def log_of_a_live_run(folder):
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []


class StopAt(TrainingControl):
    """Press Ctrl-C in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def after_step(self, step, subject):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return False


def test_ctrl_c_finishes_the_step_saves_and_resumes(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    controls = [StopAt(3)]
    with pytest.raises(KeyboardInterrupt):
        unlearn(folder=tmp_path, controls=controls, checkpoint_seconds=1e9)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step" in capsys.readouterr().err
    assert [entry["step"] for entry in log_of(tmp_path)] == [1, 2, 3]
    resumed, workspace = unlearn(folder=tmp_path, controls=[StopAt(-1)])
    assert "resumed at step 3 of 6" in capsys.readouterr().err
    straight, plain = unlearn(controls=[StopAt(-1)])
    assert fingerprint(resumed.model) == fingerprint(straight.model)
    assert workspace.result.history == plain.result.history == log_of(tmp_path)
    assert workspace.result.tokens == plain.result.tokens


def test_killed_between_the_two_renames_the_last_state_is_found(tmp_path):
    straight, _ = unlearn()
    with pytest.raises(KeyboardInterrupt):
        unlearn(folder=tmp_path, controls=[StopAt(3)])
    os.replace(tmp_path / "checkpoint", tmp_path / ".checkpoint.old.tmp")
    resumed, workspace = unlearn(folder=tmp_path, controls=[StopAt(-1)])
    assert workspace.result.steps == 6
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_half_written_checkpoint_and_log_line_do_not_count(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        unlearn(folder=tmp_path, controls=[StopAt(4)])
    (tmp_path / ".checkpoint.99.tmp").mkdir()
    (tmp_path / ".checkpoint.99.tmp" / "weights.safetensors").write_bytes(b"half")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "terms": {}}\n{"step": 6, "terms": {"forg')  # logged, but not saved
    resumed, _ = unlearn(folder=tmp_path, controls=[StopAt(-1)])
    straight, workspace = unlearn()
    assert fingerprint(resumed.model) == fingerprint(straight.model)
    assert log_of(tmp_path) == workspace.result.history
    assert not list(tmp_path.glob(".*.tmp"))


def test_nothing_is_pickled(tmp_path):
    unlearn(folder=tmp_path)
    files = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {".json", ".jsonl", ".safetensors"}


# Broken losses ----------------------------------------------------------------------------------------


def breaking(at, value):
    """NPO whose loss is not finite from its `at`-th step on."""
    cls = type(make_method("npo"))

    class Breaking(cls):
        calls = 0

        def loss(self, forget):
            type(self).calls += 1
            rows = super().loss(forget)
            return rows * value if type(self).calls >= at else rows

    return Breaking()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_stops_at_the_last_good_state(tmp_path, value, capsys):
    result, workspace = unlearn(folder=tmp_path, method=breaking(4, value))
    assert workspace.result.status == "diverged"
    assert workspace.result.steps == 3
    assert "step 4" in workspace.result.notes[0]
    assert "non-finite" in capsys.readouterr().err
    good, _ = unlearn(controls=[EndAt(3)])
    assert fingerprint(result.model) == fingerprint(good.model)
    assert all(p.isfinite().all() for p in result.model.parameters())
    saved = load_file(tmp_path / "checkpoint" / "weights.safetensors")
    assert all(t.isfinite().all() for t in saved.values())
    assert [entry["step"] for entry in log_of(tmp_path)] == [1, 2, 3]


class EndAt(TrainingControl):
    def __init__(self, step):
        self.step = step

    def after_step(self, step, subject):
        return step == self.step


def test_a_control_may_end_the_training():
    _, workspace = unlearn(controls=[EndAt(2), EndAt(4)])
    assert (workspace.result.status, workspace.result.steps) == ("stopped", 2)


def test_a_loss_that_does_not_reach_the_weights_is_found_at_the_first_step():
    cls = type(make_method("ga"))

    class Frozen(cls):
        def loss(self, forget):
            return super().loss(forget).detach()

    with pytest.raises(ExpungeError, match="no gradient arrives"):
        unlearn(method=Frozen())
    with pytest.raises(ExpungeError, match="no gradient arrives"):
        unlearn(method=Frozen(), lora=LoraSettings(rank=2))


def test_one_deaf_adapter_is_found():
    class Halfway(TrainingControl):
        def begin(self, subject):
            subject.model.base_model.model.model.layers[0].register_forward_hook(
                lambda *args: args[-1].detach()
            )

    with pytest.raises(ExpungeError, match=r"7 of 14 trained parts .*layers\.0"):
        unlearn(lora=LoraSettings(rank=2), controls=[Halfway()])


def test_training_that_moves_no_weight_is_an_error():
    with pytest.raises(ExpungeError, match="no weight moved"):
        unlearn(lr=1e-30, weight_decay=0.0)
    _, workspace = unlearn()
    assert workspace.facts["moved_fraction"] > 0.99


def test_too_little_disk_space_is_found_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    with pytest.raises(ExpungeError, match="MiB are free"):
        unlearn(folder=tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_no_forget_and_no_training_records_are_errors():
    with pytest.raises(DataError, match="Bring records"):
        finetune(tiny_subject(), [], settings())


# The log ----------------------------------------------------------------------------------------------


def test_log_has_one_line_per_step_with_its_terms(tmp_path):
    _, workspace = unlearn("graddiff", tmp_path, schedule="linear", warmup=0.5)
    log = log_of(tmp_path)
    assert log == workspace.result.history
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert all(set(entry["terms"]) == {"forget", "retain"} for entry in log)
    assert [round(entry["lr"] / 1e-3, 4) for entry in log] == [0, 0.3333, 0.6667, 1, 0.6667, 0.3333]
    assert [round(entry["epoch"], 4) for entry in log] == [round(i / 3, 4) for i in range(1, 7)]
    assert workspace.result.tokens > 0


def test_log_every(tmp_path):
    unlearn(folder=tmp_path, log_every=4)
    assert [entry["step"] for entry in log_of(tmp_path)] == [4, 6]


def test_tracker_that_is_not_installed_is_named_with_its_pip_line(tmp_path):
    with pytest.raises(MissingDependency, match="pip install no_such_tracker"):
        unlearn(folder=tmp_path, report_to=["no_such_tracker"])


def test_report_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    unlearn(folder=tmp_path, report_to=["tensorboard"])
    assert list(tmp_path.rglob("events.out.tfevents.*"))


# One step, many ways ----------------------------------------------------------------------------------


def test_epochs_and_steps():
    assert TrainSettings(epochs=2, batch=3).num_steps(8) == 6
    assert TrainSettings(epochs=0.1, batch=3).num_steps(8) == 1
    assert TrainSettings(epochs=2, steps=5).num_steps(8) == 5


def first_gradient(name="npo", **more):
    """The norm of the first step's gradient, and the weights after two steps."""
    result, workspace = unlearn(name, steps=2, batch=8, **more)
    return workspace.result.history[0]["grad_norm"], result


@pytest.mark.parametrize("name", ["npo", "rmu"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_gradient(name, lora):
    plain, one = first_gradient(name, lora=lora)
    recomputed, other = first_gradient(name, lora=lora, gradient_checkpointing=True)
    assert plain == pytest.approx(recomputed, rel=1e-6)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in other.model.modules())


def test_gradient_checkpointing_runs_each_block_again_in_the_backward_pass():
    runs = {}
    for recompute in (False, True):
        subject, ran = tiny_subject(), []
        subject.model.model.layers[0].self_attn.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        finetune(subject, tiny_request().retain, settings(steps=1, gradient_checkpointing=recompute))
        runs[recompute] = len(ran)
    assert runs == {False: 1, True: 2}


def test_bf16_computes_in_bfloat16_over_fp32_masters():
    exact, _ = first_gradient("graddiff")
    rough, result = first_gradient("graddiff", bf16=True)
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.05)
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_bf16_master_weights_are_warned_of_and_mostly_stand_still(capsys):
    subject, workspace = tiny_subject(), Workspace(settings(lr=1e-5, weight_decay=0.0))
    subject.model.to(torch.bfloat16)
    make_method("npo").unlearn(subject, tiny_request(), workspace)
    assert "small steps round away" in capsys.readouterr().err
    assert workspace.facts["moved_fraction"] < 0.5
    unlearn(lr=1e-5)
    assert "round away" not in capsys.readouterr().err


def test_clipping_bounds_the_step_and_only_what_is_trained_counts():
    clipped, _ = first_gradient(max_grad_norm=1e-3)
    free, _ = first_gradient(max_grad_norm=0.0)
    assert clipped == free  # the norm before clipping is logged
    subject = tiny_subject()
    selected, _ = first_gradient("rmu")
    names = make_method("rmu").selects(subject)
    assert len(names) == 1
    assert selected < free


def test_two_controls_are_both_asked_whether_to_skip():
    asked = []

    class Skips(TrainingControl):
        def skip_step(self, has_retain):
            asked.append(self)
            return True

    first, second = Skips(), Skips()
    result, workspace = unlearn(controls=[first, second], steps=2)
    assert asked == [first, second] * 2
    assert fingerprint(result.model) == fingerprint(tiny_subject().model)
    assert workspace.result.history[1]["lr"] == workspace.result.history[0]["lr"]


def test_finetune_lowers_the_loss_and_resumes(tmp_path):
    records = tiny_request().retain
    first, second = tiny_subject(), tiny_subject()
    result = finetune(first, records, settings(steps=20, lr=3e-3))
    assert result.history[-1]["terms"]["ce"] < 0.8 * result.history[0]["terms"]["ce"]
    with pytest.raises(KeyboardInterrupt):
        finetune(second, records, settings(steps=20, lr=3e-3), folder=tmp_path, controls=[StopAt(7)])
    again = tiny_subject()
    finetune(again, records, settings(steps=20, lr=3e-3), folder=tmp_path, controls=[StopAt(-1)])
    assert fingerprint(again.model) == fingerprint(first.model)


def test_loading_where_there_is_no_checkpoint(tmp_path):
    subject = tiny_subject()
    optimizer = torch.optim.AdamW(subject.model.parameters())
    assert load_checkpoint(Path(tmp_path) / "checkpoint", subject.model, optimizer) is None
