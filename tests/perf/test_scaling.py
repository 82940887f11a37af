"""The curves and the GPU script do the work they time, on the smallest sizes."""

from perf.world import VOCABULARY

from perf import gpu, scaling


def test_a_point_counts_what_it_reads():
    subject = scaling.make_subject(32, 64, 2, 2)
    found = scaling.point(subject, 8, 1)
    assert found["records"] == 8
    assert found["parameters"] == subject.num_parameters()
    assert found["tokens"] > found["read"] > 8 * 10
    assert all(found[name] > 0 for name in ("prepare", "train", "score"))


def test_points_are_visited_in_turn_and_the_median_is_told():
    told = iter([{"x": 5}, {"x": 1}, {"x": 7}, {"x": 2}, {"x": 6}, {"x": 30}])
    assert scaling.in_turn([lambda: next(told)] * 2, 3) == [{"x": 6}, {"x": 2}]


def test_the_gpu_script_times_equal_work_and_compares_losses(monkeypatch):
    monkeypatch.setattr(gpu, "LOSSES", 2)
    found = gpu.training(gpu.GradientDifference(), gpu.TINY, "cpu", VOCABULARY, 4, 1)
    assert found["flops"] == gpu.step_flops(
        gpu.size_of(gpu.make_llama(gpu.TINY, "cpu", VOCABULARY).model), found["tokens"]
    )
    assert found["expunge"] > 0 < found["textbook"]
    pairs = gpu.parity("cpu")
    assert len(pairs) == 2
    assert all(a == b for a, b in pairs)
    assert "at most 0.0e+00 apart" in gpu.page("a test", 1e12, {"step": found}, pairs)
