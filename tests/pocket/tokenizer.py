"""A byte-level BPE of about a thousand tokens, in CLIP's own file layout."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from tests.pocket.captions import CAPTIONS

VOCAB_SIZE = 1000
MAX_LENGTH = 77
BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
END_OF_WORD = "</w>"
# CLIP cuts a text into contractions, runs of letters, single digits and runs of anything else.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def pocket_tokenizer(captions: Iterable[str] = CAPTIONS) -> CLIPTokenizer:
    """A `CLIPTokenizer` trained on `captions`: any script, 77 tokens long, EOS = pad = the highest id."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(Path(folder), captions)
        return CLIPTokenizer.from_pretrained(folder)


def write_tokenizer_files(folder: Path, captions: Iterable[str]) -> None:
    """The four files of the published repository's `tokenizer/`, which transformers 4 and 5 both load."""
    merges = _learn_merges(captions)
    letters = _byte_letters()
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    special = {
        name: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", BOS), ("eos_token", EOS), ("unk_token", EOS))
    }
    config = {
        "add_prefix_space": False,
        **special,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "pad_token": EOS,
        "padding_side": "right",
        "tokenizer_class": "CLIPTokenizer",
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", vocab)
    _write_json(folder / "special_tokens_map.json", {**special, "pad_token": EOS})
    _write_json(folder / "tokenizer_config.json", config)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _learn_merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """The merges of a BPE trained on `captions`, most frequent first, the same ones in every process."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = _byte_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        end_of_word_suffix=END_OF_WORD,
        initial_alphabet=letters,
        # Ids break ties between equal counts; letters not named here get theirs in hash order: new every run.
        special_tokens=[*letters, *(letter + END_OF_WORD for letter in letters)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in pairs]


def _byte_letters() -> list[str]:
    """The 256 printable characters that stand for bytes."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
