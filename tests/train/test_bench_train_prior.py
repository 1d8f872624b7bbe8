"""`make bench-train-prior` and `make bench-train-prior-gpu`: they run, and compare like with like."""

import json
import time

import pytest
import torch
from click.testing import CliRunner

from data_tools.errors import UserError
from tests.benchmarks import noise_draws, train_prior_gpu
from tests.benchmarks import precompute_data as captions
from tests.benchmarks import train_prior as bench_train_prior
from tests.benchmarks import train_prior_data as data
from tests.benchmarks import train_prior_gpu_measure as gpu
from tests.benchmarks import train_prior_loop as loop
from tests.benchmarks import train_prior_memory as memory
from tests.benchmarks import train_prior_models as models
from tests.benchmarks.train_prior_sides import Cached
from tests.online import online_prior_loss
from train.draws import Draws

PLAN = bench_train_prior.SMALL


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> bench_train_prior.Bench:
    folder = tmp_path_factory.mktemp("bench")
    data.write(folder, PLAN.chosen, PLAN.samples, PLAN.side)
    return bench_train_prior.Bench(PLAN, folder, rounds=1)


def _cells(lines: list[str]) -> dict[str, list[str]]:
    """First cell → the others, of the rows of a table."""
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


def test_the_small_models_have_the_published_proportions_of_flops():
    published, small = models.flops(models.PUBLISHED), models.flops(models.PROPORTIONAL)
    assert list(published.values()) == pytest.approx([0.098e12, 0.967e12, 0.165e12], rel=0.01)
    for name, value in small.items():
        assert value / small["vision"] == pytest.approx(published[name] / published["vision"], rel=0.01)
    ratio = models.online_flops(models.PROPORTIONAL) / models.cached_flops(models.PROPORTIONAL, 20, 1)
    assert ratio == pytest.approx(10.7, rel=0.05)  # of the published ones


def test_both_sides_train_the_same_loss(bench):
    cached = bench.cached(PLAN.samples)
    online = bench.online(PLAN.samples)
    online.models.prior.load_state_dict(cached.task.model.state_dict())
    ((batch, positions),) = cached.read(0)
    sampling = cached.batches.sampling
    order = sampling.samples(sampling.order.share(0, range(PLAN.samples))).tolist()
    drawn = cached._draws(0, positions)
    draws = Draws(drawn.noise, drawn.timesteps, torch.arange(PLAN.samples) % 3 == 0)
    with torch.no_grad():
        ours = cached.loss(cached.task.module, batch, cached.null, draws)
        texts = [online.captions[i] for i in order]
        theirs = online_prior_loss(online.models, online.decoded(order), texts, draws)
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-2)  # the cache is in half precision
    assert len(set(map(str, theirs.tolist()))) == PLAN.samples


def test_an_update_is_the_same_however_its_samples_are_cut_into_rounds(bench):
    after = []
    for flags in (("--train-batch-size", 4), ("--train-batch-size", 2, "--gradient-accumulation-steps", 2)):
        side = Cached.open(bench.cache, bench.repo, *flags)
        before = torch.nn.utils.parameters_to_vector(side.parameters).detach()
        side.update(0, side.preload(0, 1)[0])
        after.append(torch.nn.utils.parameters_to_vector(side.parameters).detach() - before)
    assert after[0].norm() > 0
    assert (after[0] - after[1]).norm() < 0.01 * after[0].norm()


def test_the_tables_of_steps_say_what_was_measured(bench):
    cached, online, lines = bench_train_prior.best_sizes(bench)
    sizes = _cells([*lines])
    assert cached in PLAN.cached_sizes
    assert online in PLAN.online_sizes
    assert sorted(map(int, sizes)) == sorted({*PLAN.cached_sizes, *PLAN.online_sizes})
    lines = [*bench_train_prior.steps(bench, cached, online)]
    found = _cells(lines)
    names = [*found]
    rates = [float(found[name][1].replace(",", "")) for name in names]
    assert [found[name][0] for name in names] == [str(each) for each in (cached, cached, online, online)]
    assert float(found[names[2]][4].split("x")[0]) == pytest.approx(rates[0] / rates[2], rel=0.02)
    assert f"{4 * rates[1] / rates[0]:.1f}"[0] == lines[-1].split("draws: ")[1][0]
    assert "(8 wanted" in found[names[2]][4]
    assert "(2.5 wanted" in lines[-1]


def test_the_whole_command_is_held_against_its_bare_update(bench):
    ((rate, bare),) = loop.compare(bench.cache, bench.repo, 4, 1, "--use-ema")
    assert min(rate, bare) > 0
    assert not bench.cache.with_name("run").exists()


def test_peak_memory_is_that_of_a_process_which_trains(bench):
    given = ("online", bench.folder / "models", bench.folder / "pictures", 2)
    assert 100e6 < memory.peak(*given) < 4e9


def test_variance_and_cost_of_several_draws_are_printed(pocket, cache, tmp_path):
    (tmp_path / "models").symlink_to(pocket)
    (tmp_path / "cache").symlink_to(cache)
    lines = [*noise_draws.report(tmp_path, steps=2, batches=2)]
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[1] for row in found] == ["1", "2", "4", "8"] * 2
    assert float(found[0][-1]) == 1.0


def test_the_gpu_measurement_runs_small_on_the_cpu(tmp_path):
    report = tmp_path / "numbers.json"
    flags = ["--device", "cpu", "--small", "--precision", "fp32", "--batch-sizes", "2,4", "--samples", "8"]
    flags += ["--seconds", "0.05", "--minutes", "0", "--folder", str(tmp_path), "--json", str(report)]
    flags += ["--variant", "--compile"]
    result = CliRunner().invoke(train_prior_gpu.main, flags, standalone_mode=False, catch_exceptions=False)
    found = json.loads(report.read_text())
    assert found["matrix_flops"] > 0
    assert [*found["cached"]] == ["2x1, 1", "4x1, 1", "1x4, 1", "2x1, 4", "4x1, 4"]
    assert [*found["online"]] == ["2x1", "4x1", "1x4", "files"]
    for made in (*found["cached"].values(), *found["online"].values()):
        assert made["seconds"] > 0
        assert made["flops"] > 0
    best = [
        max(found[side][size]["samples"] / found[side][size]["seconds"] for size in sizes)
        for side, sizes in (("cached", ("2x1, 1", "4x1, 1")), ("online", ("2x1", "4x1")))
    ]
    assert found["times"] == pytest.approx(best[0] / best[1])
    assert {"4", "4 --compile"} <= found["command"].keys()
    assert {*found["command"].values()} == {"no time left"}
    encoding = sum(1221 / rate for rate in found["encoders"].values())
    recipe = found["recipe"]
    assert recipe["the reference, pixels on the GPU"] == pytest.approx(
        15000 * found["online"]["1x4"]["seconds"]
    )
    ours = recipe["from the cache, batch 1 × 4"]
    assert ours == pytest.approx(15000 * found["cached"]["1x4, 1"]["seconds"] + encoding)
    for title in recipe:
        assert f"| {title} | " in result.output
    assert [path.name for path in tmp_path.iterdir()] == [report.name]  # weights and data are gone


def test_a_command_is_measured_by_its_metrics_and_ended(tmp_path):
    texts = tuple(captions.captions(8))
    bench = gpu.Bench(tmp_path, models.TINY, torch.device("cpu"), "fp32", texts, seconds=0.05)
    bench.write(side=64)
    ends = time.perf_counter() + 100
    rate = gpu.command_rate(bench, loop.flags(bench.repo, 4), updates=2, lines=2, ends=ends)
    assert isinstance(rate, float)
    assert rate > 0
    assert not (bench.folder / "run-0" / "loss.png").exists()  # it was not left to finish
    said = gpu.command_rate(bench, ["--no-such-flag"], updates=2, lines=2, ends=ends)
    assert isinstance(said, str)
    assert "--no-such-flag" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_measurement_says_so():
    with pytest.raises(UserError, match=r"^--device: cuda: there is no CUDA GPU"):
        CliRunner().invoke(train_prior_gpu.main, [], standalone_mode=False, catch_exceptions=False)
