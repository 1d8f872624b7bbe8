"""What one would write without this project: a batched `datasets.map` over the frozen encoders.

Pictures are opened with PIL and converted to RGB once for both columns, CLIP's processor and the decoder
script's crop make tensors of them, captions are padded to 77 tokens, and the outputs of each batch go to .npy
files in half precision. Classes, weights, batch sizes and arithmetic are those of `precompute`; no autograd.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from diffusers import VQModel
from PIL import Image
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

# with PIL's resampling, as the published recipe had it: transformers 5 gives the plain name to torchvision's
Processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


class Alternative:
    """The frozen encoders that these columns need, and the loop over them."""

    def __init__(self, models: Path, columns: Sequence[str], batch_size: int) -> None:
        prior, self.batch_size, self.resolution = models / "prior", batch_size, 0
        self.vision: Any = None
        self.text: Any = None
        self.movq: Any = None
        if "image" in columns:
            self.processor = Processor.from_pretrained(prior / "image_processor")
            self.vision = CLIPVisionModelWithProjection.from_pretrained(prior / "image_encoder").eval()
        if "text" in columns:
            self.tokenizer = CLIPTokenizer.from_pretrained(prior / "tokenizer")
            self.text = CLIPTextModelWithProjection.from_pretrained(prior / "text_encoder").eval()
        for name in columns:
            if name.startswith("latents@"):
                self.resolution = int(name.removeprefix("latents@"))
                self.movq = VQModel.from_pretrained(models / "decoder" / "movq").eval()

    def run(self, data: Path, out: Path, count: int) -> None:
        """The first `count` samples of an ImageFolder into `out`."""
        out.mkdir(parents=True)
        with (data / "metadata.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(count), lines)]
        table = datasets.Dataset.from_dict(
            {"path": [str(data / row["file_name"]) for row in rows], "text": [row["text"] for row in rows]}
        )
        datasets.disable_progress_bars()
        table.map(
            self._batch,
            batched=True,
            batch_size=self.batch_size,
            with_indices=True,
            fn_kwargs={"out": out},
            new_fingerprint="none",  # else every weight is hashed
        )

    @torch.inference_mode()
    def _batch(self, batch: dict[str, list[str]], indices: list[int], out: Path) -> None:
        made: dict[str, torch.Tensor] = {}
        if self.text is not None:
            tokens = self.tokenizer(
                batch["text"], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
            )
            output = self.text(input_ids=tokens.input_ids)
            made["prompt_embeds"] = output.text_embeds  # (B, D)
            made["text_encoder_hidden_states"] = output.last_hidden_state  # (B, 77, D)
            made["mask"] = tokens.attention_mask.bool()  # (B, 77)
        if self.vision is not None or self.movq is not None:
            pictures = [Image.open(path).convert("RGB") for path in batch["path"]]
        if self.vision is not None:
            pixel_values = self.processor(images=pictures, return_tensors="pt").pixel_values
            made["image_embeds"] = self.vision(pixel_values=pixel_values).image_embeds  # (B, D)
        if self.movq is not None:
            squares = torch.stack([self._square(picture) for picture in pictures])  # (B, 3, R, R)
            made["latents"] = self.movq.encode(squares).latents  # (B, C, h, w)
        for name, tensor in made.items():
            if tensor.is_floating_point():
                tensor = tensor.half()
            np.save(out / f"{indices[0]:08d}.{name}.npy", tensor.numpy())

    def _square(self, image: Image.Image) -> torch.Tensor:
        """The decoder script's preparation: centre crop, bicubic, -1 … 1."""
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC, reducing_gap=1)
        pixels = np.array(image).astype(np.float32) / 127.5 - 1
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def read(out: Path, name: str) -> np.ndarray[Any, Any]:
    """Everything that was written of one output, in the order of the samples."""
    return np.concatenate([np.load(path) for path in sorted(out.glob(f"*.{name}.npy"))])
