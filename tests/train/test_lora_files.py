"""What a LoRA run leaves behind loads in stock diffusers, exactly; a continuation trains the same weights."""

import json
import re
import shutil
import sys

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.train import runs
from tests.train.lora_by_hand import add_by_hand
from train.lora import FILE

RANK, ALPHA = 3, 6
LORA = ("--lora-rank", str(RANK), "--lora-alpha", str(ALPHA))
CLASSES = {"prior": diffusers.PriorTransformer, "decoder": diffusers.UNet2DConditionModel}
# dropout, to see that none of it is left in what is loaded; a rate at which three steps are seen
FLAGS = (*LORA, "--lora-dropout", "0.2", "--learning-rate", "3e-2", "--checkpointing-steps", "2")


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """Output folders of a LoRA run of each trainer. Not to be written to."""
    folder = tmp_path_factory.mktemp("lora")
    return {kind: runs.train(kind, cache, folder / kind, *FLAGS) for kind in runs.KINDS}


def model_of(kind, folder):
    return CLASSES[kind].from_pretrained(folder, subfolder=runs.TRAINED[kind])


@torch.no_grad()
def output_of(kind, model):
    """Of the stock forward, for always the same inputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    if kind == "prior":
        text = {"proj_embedding": random(2, 64), "encoder_hidden_states": random(2, 77, 64)}
        text["attention_mask"] = torch.ones(2, 77, dtype=torch.bool)
        return model(random(2, 64), 300, **text).predicted_image_embedding
    return model(random(2, 4, 8, 8), 300, None, added_cond_kwargs={"image_embeds": random(2, 64)}).sample


def test_saved_lora_is_read_back_exactly(kind, cache, pocket, trained, tmp_path):
    task = runs.prepared(kind, cache, tmp_path / "out", *LORA)[0]
    task.adapter.load_state_dict(load_file(trained[kind] / FILE))
    loaded = model_of(kind, pocket / kind)
    base = output_of(kind, loaded)
    loaded.load_lora_adapter(str(trained[kind]), prefix=None, weight_name=FILE)
    # both with dropout switched on: the run's options have none here, and the file brings none
    found, wanted = output_of(kind, loaded.train()), output_of(kind, task.model.train())
    assert torch.equal(found, wanted)
    assert (found - base).abs().max() > 1e-3
    tensors = {n.replace(".default_0", ""): t for n, t in loaded.state_dict().items() if ".lora_" in n}
    assert runs.same_tensors(tensors, load_file(trained[kind] / FILE))


def test_whole_pipeline_holds_the_base_with_the_lora_merged_in(kind, pocket, trained):
    lora = runs.weights(trained[kind])
    merged = runs.weights(trained[kind] / runs.TRAINED[kind])
    base = runs.weights(pocket / kind / runs.TRAINED[kind])
    assert merged.keys() == base.keys()
    for name, tensor in base.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in lora and name != layer:
            update = lora[f"{layer}.lora_B.weight"] @ lora[f"{layer}.lora_A.weight"] * (ALPHA / RANK)
            assert update.abs().max() > 0
            torch.testing.assert_close(merged[name], tensor + update)
        else:
            assert torch.equal(merged[name], tensor), name


def test_code_in_the_readme_loads_either(kind, trained, monkeypatch):
    monkeypatch.chdir(trained[kind])
    blocks = re.findall(r"```python\n(.*?)```", (trained[kind] / "README.md").read_text(), re.DOTALL)
    outputs = []
    for block in blocks:
        names = {}
        exec(block, names)
        outputs.append(output_of(kind, getattr(names["pipeline"], runs.TRAINED[kind])))
    whole, alone = outputs
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_checkpoints_hold_the_lora_and_its_optimizer_alone(kind, pocket, trained):
    checkpoint, name = trained[kind] / "checkpoint-2", runs.TRAINED[kind]
    files = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert files == {"state.json", "optimizer.safetensors", f"{name}/{FILE}"}
    layers = {n.rpartition(".lora_")[0] for n in load_file(checkpoint / name / FILE)}
    state = load_file(checkpoint / "optimizer.safetensors")
    assert {n.rpartition(".lora_")[0].removeprefix("prior.") for n in state} == layers
    loaded = model_of(kind, pocket / kind)
    loaded.load_lora_adapter(str(checkpoint / name), prefix=None, weight_name=FILE)


def test_file_says_rank_and_alpha_and_is_the_same_each_time(trained, cache, tmp_path):
    with safe_open(trained["prior"] / FILE, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (said["r"], said["lora_alpha"]) == (RANK, ALPHA)
    # nothing of this peft's own, nor the dropout
    assert set(said) == {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"}
    again = runs.train("prior", cache, tmp_path / "again", *FLAGS)
    assert (again / FILE).read_bytes() == (trained["prior"] / FILE).read_bytes()


def test_lora_by_hand_agrees(kind, pocket, trained):
    by_hand = model_of(kind, pocket / kind)
    add_by_hand(by_hand, load_file(trained[kind] / FILE), scale=ALPHA / RANK)
    loaded = model_of(kind, pocket / kind)
    loaded.load_lora_adapter(str(trained[kind]), prefix=None, weight_name=FILE)
    torch.testing.assert_close(output_of(kind, loaded), output_of(kind, by_hand), rtol=1e-4, atol=1e-5)


def refused(kind, cache, output, *flags):
    ended = runs.program(kind, *runs.arguments(cache, output, *flags))
    assert (ended.code, len(ended.lines)) == (2, 1), ended
    return ended.lines[0]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "--lora-rank: missing, but {last} holds a LoRA of rank 3; give that, "),
        ((*LORA, "--lora-rank", "4"), "--lora-rank: 4, but {last} was trained with 3; give that, "),
        (LORA[:2], "--lora-alpha: 3, but {last} was trained with 6; give that, "),
        (
            (*LORA, "--lora-targets", "to_q,to_v"),
            "--lora-targets: to_q, to_v, but {last} was trained with to_k, to_out.0, to_q, to_v; give that, ",
        ),
    ],
)
def test_lora_is_continued_as_what_it_is(flags, line, cache, trained):
    before = (trained["prior"] / "run.json").read_bytes()
    said = refused("prior", cache, trained["prior"], *flags, "--max-train-steps", "5")
    assert said == line.format(last=trained["prior"] / "checkpoint-3") + "or another --output-dir"
    assert (trained["prior"] / "run.json").read_bytes() == before


def test_lora_is_continued_whatever_its_targets_are_called(cache, trained, tmp_path):
    output = shutil.copytree(trained["prior"], tmp_path / "out")
    targets = ("--lora-targets", "to_v, to_out.0,to_k,to_q")
    old_flag = ("--rank", str(RANK))  # of the reference's LoRA scripts
    runs.train("prior", cache, output, *FLAGS[2:], *old_flag, *targets, "--max-train-steps", "4")
    assert [line["step"] for line in runs.metrics(output)] == [1, 2, 3, 4]


def test_full_run_is_not_continued_as_a_lora(kind, cache, finished):
    line = refused(kind, cache, finished[kind], *runs.STANDARD, "--max-train-steps", "7", *LORA)
    last = finished[kind] / "checkpoint-6"
    assert line == (
        f"--lora-rank: 3, but {last} is of a run that trains all weights; leave it out, or give another "
        "--output-dir"
    )


def test_damaged_lora_checkpoint_is_one_line(cache, trained, tmp_path):
    output = shutil.copytree(trained["prior"], tmp_path / "out")
    whole = load_file(output / "checkpoint-2" / "prior" / FILE)
    (output / "checkpoint-3" / "prior" / FILE).unlink()
    ended = runs.program("prior", *runs.arguments(cache, output, *FLAGS, "--max-train-steps", "4"))
    assert (ended.code, len(ended.lines)) == (1, 1), ended
    assert ended.lines[0].endswith(
        f"is damaged: {min(whole)} is missing, wanted {tuple(whole[min(whole)].shape)}"
    )


@pytest.mark.parametrize(
    "flag", [("--lora-alpha", "4"), ("--lora-dropout", "0.1"), ("--lora-targets", "to_q")]
)
def test_flags_of_a_lora_without_a_rank(flag, cache, tmp_path):
    line = refused("prior", cache, tmp_path / "out", *flag)
    assert line == f"{flag[0]}: given without --lora-rank, which it belongs to"


def test_targets_that_are_no_layers(cache, tmp_path):
    line = refused("prior", cache, tmp_path / "out", *LORA, "--lora-targets", "to_q,to_out")
    assert line.startswith(
        "--lora-targets: to_out: transformer_blocks.0.attn1.to_out is a ModuleList, wanted "
    )
    line = refused("prior", cache, tmp_path / "out", *LORA, "--lora-targets", "to_q,")
    assert line.startswith("--lora-targets: PriorTransformer has no layer ''; wanted ")
    line = refused("prior", cache, tmp_path / "out", *LORA, "--lora-targets", "to_q,add_k_proj")
    assert line.startswith("--lora-targets: PriorTransformer has no layer 'add_k_proj'; wanted ")
    assert not (tmp_path / "out").exists()


def test_without_peft(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    line = refused("prior", cache, tmp_path / "out", *LORA)
    assert line == "--lora-rank: needs the library peft: pip install 'kandinsky-cache[lora]'"
    assert not (tmp_path / "out").exists()
