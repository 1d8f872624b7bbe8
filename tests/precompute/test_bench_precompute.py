"""`make bench-precompute` and `make bench-precompute-gpu`: they run, and compare like with like."""

import json

import pytest
import torch
from click.testing import CliRunner

from data_tools.errors import UserError
from tests.benchmarks import precompute as bench_precompute
from tests.benchmarks import precompute_bare as bare
from tests.benchmarks import precompute_data as data
from tests.benchmarks import precompute_gpu
from tests.benchmarks import precompute_models as models


def test_the_small_encoders_have_the_published_proportions_of_flops():
    published, small = models.flops(models.PUBLISHED), models.flops(models.PROPORTIONAL)
    assert list(published.values()) == pytest.approx([0.967e12, 0.098e12, 2.50e12], rel=0.01)
    for full, scaled in zip(published.values(), small.values()):
        assert scaled / small["image"] == pytest.approx(full / published["image"], rel=0.02)


def test_captions_are_of_20_tokens_on_average_and_all_different(tmp_path):
    captions = data.captions(2048)
    assert len(set(captions)) == 2048
    models.write_models(tmp_path, models.TINY, captions)
    lengths = [len(ids) for ids in bare.tokenize(tmp_path, captions)]
    assert sum(lengths) / len(lengths) == pytest.approx(data.MEAN_TOKENS, abs=0.5)
    assert min(lengths) < 8
    assert max(lengths) > 60


def test_bare_batches_hold_every_caption_once_at_its_own_length():
    settings = bare.Settings("cpu", torch.float32, batch_size=2, part_size=50)
    captions = [[number] * (1 + number % 40) for number in range(120)]
    batches = bare.by_length(captions, settings)
    assert sorted(ids for batch in batches for ids in batch) == sorted(captions)
    assert all(len({len(ids) for ids in batch}) == 1 for batch in batches)
    assert max(sum(map(len, batch)) for batch in batches) <= 2 * bare.MAX_LENGTH


def test_both_sides_make_the_same_and_are_timed(tmp_path):
    bench = bench_precompute.Bench.write(tmp_path, models.TINY, pictures=12, captions=24)
    errors = bench_precompute.compare(bench, 12)
    assert [*errors] == ["image_embeds", "prompt_embeds", "latents", "text_encoder_hidden_states"]
    assert max(errors.values()) <= bench_precompute.TOLERANCE
    cells = bench_precompute.measure(bench, bench.whole, 12, rounds=1).strip("| ").split(" | ")
    found = dict(zip(bench_precompute.HEADS, cells))
    assert len(cells) == len(bench_precompute.HEADS)
    assert (found["columns"], found["samples"]) == ("whole", "12")
    bare_rate, ours, theirs = (float(found[name]) for name in bench_precompute.HEADS if name.endswith("/s"))
    assert min(bare_rate, ours, theirs) > 0
    assert float(found["of bare"]) == pytest.approx(ours / bare_rate, abs=0.02)
    assert float(found["ratio"].rstrip("x")) == pytest.approx(ours / theirs, rel=0.1)


def test_the_gpu_measurement_runs_small_on_the_cpu(tmp_path):
    flags = ["--device", "cpu", "--small", "--precision", "fp32", "--samples", "12", "--batch-size", "4"]
    report = tmp_path / "numbers.json"
    flags += ["--workers", "2", "--folder", str(tmp_path), "--json", str(report)]
    result = CliRunner().invoke(precompute_gpu.main, flags, standalone_mode=False, catch_exceptions=False)
    found, columns = json.loads(report.read_text()), ["image", "text", "latents@64"]
    assert found["matrix_flops"] > 0
    assert found["decoding_per_second"] > 0
    assert [*found["alone"]] == columns
    assert [*found["command"]] == [*columns, "whole"]
    for each in found["alone"].values():
        assert each["samples_per_second"] > 0
        assert 0 < each["flops"] < 1e13
    for each in found["command"].values():
        assert each["samples_per_second"] > 0
        assert each["of_bare"] > 0
        assert 0 <= each["waited_for_pictures"] <= 1
    assert (
        found["command"]["whole"]["samples_per_second"] < found["alone"]["latents@64"]["samples_per_second"]
    )
    for name in [*columns, "whole"]:
        assert f"| {name} | " in result.output
    assert [path.name for path in tmp_path.iterdir()] == [report.name]  # weights and data are gone


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_measurement_says_so():
    with pytest.raises(UserError, match=r"^--device: cuda: there is no CUDA GPU"):
        CliRunner().invoke(precompute_gpu.main, [], standalone_mode=False, catch_exceptions=False)
