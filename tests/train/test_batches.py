"""What a training step is given: a function of (seed, step), whoever reads it and however it is cut."""

import threading

import numpy as np
import pytest
import torch

from data_tools.cache.reader import CacheReader
from data_tools.errors import DataFault
from tests.data_tools.caches import COLUMNS, D, build
from train.batches import Slice, TrainingBatches, collate, null_conditions

CPU = torch.device("cpu")
GLOBAL = 8


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A cache of known random rows: 14 samples of one to three captions."""
    root = tmp_path_factory.mktemp("small") / "cache"
    build(root)
    return root


@pytest.fixture
def reader(small):
    reader = CacheReader(small, list(COLUMNS))
    yield reader
    reader.close()


def batches(reader, share=None, seed=3, samples=None) -> TrainingBatches:
    left = np.arange(reader.num_samples) if samples is None else samples
    held_out = np.setdiff1d(np.arange(reader.num_samples), left)
    return TrainingBatches(reader, held_out, share or Slice(0, 1, GLOBAL, 1), seed, CPU)


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def joined(parts):
    """Micro-batches as one; ragged fields padded to the longest of all."""
    longest = max(part["text_encoder_hidden_states"].shape[1] for part in parts)
    padded = []
    for part in parts:
        rows = part["text_encoder_hidden_states"]
        rows = torch.nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[1]))
        padded.append({**part, "text_encoder_hidden_states": rows})
    return {key: torch.cat([part[key] for part in padded]) for key in padded[0]}


def test_batch_follows_from_seed_and_step_alone(reader, small):
    there = batches(reader)
    forwards = [there.read(step, 0) for step in range(5)]
    backwards = [batches(CacheReader(small, list(COLUMNS))).read(step, 0) for step in reversed(range(5))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards)))
    assert not same(forwards[0], forwards[1])
    assert not same(forwards[0], batches(reader, seed=4).read(0, 0))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_rounds", [1, 2])
def test_ranks_and_rounds_together_are_the_same_global_batch(reader, world_size, num_rounds):
    whole = batches(reader)
    size = GLOBAL // (world_size * num_rounds)
    shares = [Slice(rank, world_size, size, num_rounds) for rank in range(world_size)]
    assert all(share.global_batch_size == GLOBAL for share in shares)
    positions = [place for n in range(num_rounds) for share in shares for place in share.positions(n)]
    assert positions == list(range(GLOBAL))
    for step in (0, 1, 7):
        parts = [batches(reader, share).read(step, n) for n in range(num_rounds) for share in shares]
        assert same(joined(parts), whole.read(step, 0))


def test_an_epoch_shows_every_sample_once_with_a_caption_of_its_own(reader):
    steps = 7  # 7 batches of 8 are 4 epochs of 14
    there = batches(reader)
    seen = torch.cat([there.read(step, 0)["image_embeds"] for step in range(steps)])
    everything = collate(reader, {"image": reader.rows("image")[0]})["image_embeds"]
    numbers = [int((everything == row).all(1).nonzero()) for row in seen]
    assert all(sorted(numbers[i : i + 14]) == list(range(14)) for i in range(0, 56, 14))
    shown = {}
    prompts = torch.cat([there.read(step, 0)["prompt_embeds"] for step in range(steps)])
    for number, prompt in zip(numbers, prompts):
        first, count = (value[number] for value in reader.rows("text"))
        own = collate(reader, {"text": np.arange(first, first + count)})["prompt_embeds"]
        shown.setdefault(number, set()).add(int((own == prompt).all(1).nonzero()))
    assert any(len(captions) > 1 for captions in shown.values())


def test_only_the_given_samples_are_read(reader):
    samples = np.array([1, 4, 5, 9, 13])
    there = batches(reader, samples=samples)
    wanted = collate(reader, {"image": reader.rows("image", samples)[0]})["image_embeds"]
    for step in range(4):
        for row in there.read(step, 0)["image_embeds"]:
            assert (wanted == row).all(1).any()


def test_reading_ahead_yields_what_reading_directly_does(reader):
    share = Slice(1, 2, 2, 2)
    there = batches(reader, share)
    ahead = list(there.iterate(2, 9))
    direct = [(there.read(step, n), share.positions(n)) for step in range(2, 9) for n in range(2)]
    assert len(ahead) == len(direct) == 14
    for (batch, positions), (expected, numbers) in zip(ahead, direct):
        assert same(batch, expected)
        assert positions.tolist() == list(numbers)
    assert there.wait_seconds > 0


def test_text_is_padded_to_the_longest_of_the_batch_only(reader):
    batch = batches(reader).read(0, 0)
    assert batch["text_encoder_hidden_states"].shape == (GLOBAL, int(batch["n_tokens"].max()), D)
    for row, length in zip(batch["text_encoder_hidden_states"], batch["n_tokens"]):
        assert not row[length:].any()
        assert row[:length].any(1).all()


def test_error_in_the_reading_thread_reaches_the_training_thread(reader, monkeypatch):
    there = batches(reader)
    read = there.read

    def broken(step, accumulation_round):
        if step == 2:
            raise DataFault("part-000001: crc32c differs")
        return read(step, accumulation_round)

    monkeypatch.setattr(there, "read", broken)
    stream = there.iterate(0, 10)
    next(stream)
    next(stream)
    with pytest.raises(DataFault, match="crc32c"):
        next(stream)
    assert_one_thread()


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_closing_early_leaves_no_thread(reader, taken):
    stream = batches(reader).iterate(0, 1000)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert_one_thread()


def assert_one_thread():
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)],
)
def test_columns_arrive_in_their_stored_dtype(tmp_path, stored, dtype):
    made = build(tmp_path / "cache", dtype=stored)
    reader = CacheReader(tmp_path / "cache", list(COLUMNS))
    (item,) = batches(reader).iterate(0, 1)
    batch = {**item[0], **null_conditions(reader, "image", CPU)}
    assert {key: value.dtype for key, value in batch.items() if key != "n_tokens"} == dict.fromkeys(
        ("image_embeds", "prompt_embeds", "text_encoder_hidden_states", "latents"), dtype
    )
    assert item[0]["n_tokens"].dtype == torch.int64
    null = torch.from_numpy(made["image"][""][0]["image_embeds"])
    null = null.view(torch.bfloat16) if stored == "bfloat16" else null
    assert torch.equal(batch["image_embeds"], null)
    assert batch["image_embeds"].shape == (D,)  # no batch dimension
    reader.close()
