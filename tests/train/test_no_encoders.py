"""Training loads no encoder: not its weights, not its class, not the module that defines it."""

from tests.train import runs

WATCHED = """
import gc, sys
from train import decoder, prior, step as steps

alive = set()
step = steps.Step.take

def watched(self, *arguments):
    step(self, *arguments)
    look()

def look():
    import torch
    alive.update(type(o).__name__ for o in gc.get_objects() if issubclass(type(o), torch.nn.Module))
    clip = [name for name in sys.modules if name.startswith("transformers.models.clip.")]
    assert not any("modeling" in name or "tokenization" in name for name in clip), clip
    assert not [name for name in alive if "CLIP" in name or "VQ" in name], alive

def train(main, arguments):
    sys.argv = ["train", *arguments]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, end.code
    look()

steps.Step.take = watched
first, second = (command.split("\\n") for command in sys.argv[1:])
train(prior.main, first)
train(decoder.main, second)
assert {"CausalPrior", "PriorTransformer", "UNet2DConditionModel"} <= alive, alive
print("no encoder seen")
"""


def test_no_encoder_is_imported_or_alive_from_the_first_line_to_the_export(cache, tmp_path):
    commands = ["\n".join(runs.arguments(cache, tmp_path / k, "--max-train-steps", "1")) for k in runs.KINDS]
    done = runs.script(WATCHED, *commands)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no encoder seen\n")
    for kind in runs.KINDS:
        assert (tmp_path / kind / "model_index.json").is_file()
