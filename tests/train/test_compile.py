"""--compile: the same steps, few shapes, the same names of weights."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.train import runs
from train.prior import ROW_MULTIPLE

VALIDATION = ("--validation-fraction", "0.3", "--validation-steps", "2", "--max-train-steps", "4")


@pytest.fixture(autouse=True)
def _no_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_blocks_take_the_steps_of_eager_ones(cache, tmp_path):
    eager = runs.train("prior", cache, tmp_path / "eager", *VALIDATION)
    compiled = runs.train("prior", cache, tmp_path / "compiled", *VALIDATION, "--compile")
    for key in ("loss", "validation_loss", "grad_norm"):
        assert runs.series(compiled, key) == pytest.approx(runs.series(eager, key), rel=1e-4)
    names = runs.weights(eager / "prior").keys()
    assert runs.weights(compiled / "prior").keys() == names


def test_captions_of_any_length_come_in_few_shapes(cache, tmp_path, monkeypatch):
    counter = CompileCounter()
    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, mode, dynamic: original(self, backend=counter, dynamic=dynamic),
    )
    flags = ("--compile", "--train-batch-size", "2", "--max-train-steps", "20", "--no-group-by-length")
    runs.train("prior", cache, tmp_path / "out", *flags)
    longest = 77
    assert 1 <= counter.frame_count <= -(-longest // ROW_MULTIPLE)
