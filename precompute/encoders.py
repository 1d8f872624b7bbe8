"""The frozen encoders: what each makes, what decides its identity, how it is called.

An encoder is described before it is loaded: `column` needs only the files' hashes and configs, so a run
that has nothing to do, or that meets another identity, loads no weights. The calls are those of the
reference scripts and pipelines; where they matter the reason stands beside them.

Pictures travel as bytes, (H, W, 3) uint8, a quarter of what their floats are; on the device a table of the
256 levels of each channel makes them the floats that numpy would have made. On CUDA a call of an encoder
returns at once: its rows are on their way to pinned memory while the next call is made ready.

Shapes: B pictures or captions, D embedding, N tokens, C latent channels, H, W pixels, R resolution.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_tools import crops, models
from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.identity import digest, hash_files
from data_tools.errors import UserError
from precompute.device import load, to_device, to_host, use_xformers
from precompute.identity import declared, of_encoder, of_pictures, settings
from precompute.options import EncoderOptions, RunOptions

Pixels = NDArray[np.uint8]
"One picture, (H, W, 3)."

Rows = Callable[[], list[Row]]
"Waits for a call's rows, one for each picture or caption."


class ImageEncoder:
    """CLIP vision with projection: `image_embeds (D,)`, raw, of the picture as the processor crops it."""

    def __init__(self, repo: Path, options: EncoderOptions) -> None:
        self.folder, self.options = repo / "image_encoder", options
        self.processor_folder = repo / "image_processor"
        self.model: Any = None

    @cached_property
    def column(self) -> Column:
        config = models.config(self.folder, flag="--prior-model")
        processor = models.config(self.processor_folder, flag="--prior-model")
        identity = {
            **of_encoder(self.folder, "--prior-model", self.options),
            "image_processor": digest(settings(processor)),
            "image_processor_backend": "pil",
            **of_pictures(self.options),
        }
        field = Field("image_embeds", self.options.dtype, (config["projection_dim"],))
        return declared("image", (field,), identity, self.options.prior_record)

    def load(self) -> None:
        """Once; a second call does nothing."""
        if self.model is not None:
            return
        from transformers import CLIPVisionModelWithProjection

        self.model = load(CLIPVisionModelWithProjection, self.folder, "--prior-model", self.options)
        if self.options.compile:
            self.model.compile()
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
        as_is = {"do_resize": False, "do_center_crop": False}
        self._levels = self._processed(Image.fromarray(levels), as_is).reshape(3, 256)

    @cached_property
    def _processor(self) -> Any:
        import transformers

        # transformers 5 made CLIPImageProcessor the torchvision one, with other pixels; theirs was PIL
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        return processor.from_pretrained(self.processor_folder)

    def _processed(self, image: Image.Image, without: dict[str, bool]) -> NDArray[Any]:
        """(3, H, W) as the processor makes it without some of its steps."""
        values: NDArray[Any] = self._processor(images=image, return_tensors="np", **without).pixel_values[0]
        return values

    def prepare(self, image: Image.Image) -> Pixels:
        """An RGB picture resized and cropped; the rest of the processor's work is a table (`load`)."""
        if self._short_side is not None:
            return crops.short_side(image, *self._short_side)
        pixels = self._processed(image, {"do_rescale": False, "do_normalize": False})
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    @cached_property
    def _short_side(self) -> tuple[int, int] | None:
        """Side and crop, if the processor resizes by the shorter side and crops that, as CLIP's do."""
        about, bicubic = self._processor, Image.Resampling.BICUBIC
        size, crop = dict(about.size or {}), dict(about.crop_size or {})
        steps = about.do_resize and about.do_center_crop and about.resample == bicubic
        if not steps or {*size} != {"shortest_edge"} or crop.get("height") != crop.get("width"):
            return None
        side, crop = size["shortest_edge"], crop["height"]
        return (side, crop) if crop <= side else None

    def start(self, pictures: Sequence[Pixels]) -> Rows:
        """A row for each picture; all of one shape."""
        return self._start(self.pixel_values(pictures))

    def pixel_values(self, pictures: Sequence[Pixels]) -> torch.Tensor:
        """What the model takes, (B, 3, H, W): the processor's own values."""
        return _levelled(pictures, self._levels, self.model)

    def _start(self, pixel_values: torch.Tensor) -> Rows:
        embeds = to_host(self.model(pixel_values=pixel_values).image_embeds, self.options.dtype)  # (B, D)
        return lambda: [{"image_embeds": row} for row in embeds()]

    def null(self) -> Row:
        """The pipelines' unconditional image: an all-zero *normalised* picture, not a zero embedding."""
        size = self.model.config.image_size
        return self._start(to_device(self.model, np.zeros((1, 3, size, size), np.float32)))()[0]


class LatentsEncoder:
    """MoVQ: `latents (C, h, w)` of the centre square, or of a bucket, neither quantised nor scaled."""

    def __init__(self, repo: Path, options: EncoderOptions, resolution: int) -> None:
        self.folder, self.options, self.resolution = repo / "movq", options, resolution
        self.sizes = crops.bucket_sizes(resolution) if options.buckets else ((resolution, resolution),)
        self.model: Any = None

    @cached_property
    def column(self) -> Column:
        config = models.config(self.folder, flag="--decoder-model")
        side = self.resolution // 2 ** (len(config["block_out_channels"]) - 1)
        cropped = {"crop": "center square"}
        if self.options.buckets:
            cropped = {"crop": "center bucket", "buckets": " ".join(f"{w}x{h}" for w, h in self.sizes)}
        identity = {
            **of_encoder(self.folder, "--decoder-model", self.options),
            "resolution": self.resolution,
            **cropped,
            "resampling": "PIL bicubic, reducing_gap=1",
            **of_pictures(self.options),
        }
        shape = ("h", "w") if self.options.buckets else (side, side)
        field = Field("latents", self.options.dtype, (config["vq_embed_dim"], *shape))
        return declared(f"latents@{self.resolution}", (field,), identity, self.options.decoder_record)

    def load(self) -> None:
        """Once; a second call does nothing."""
        if self.model is not None:
            return
        from diffusers import VQModel

        self.model = load(VQModel, self.folder, "--decoder-model", self.options)
        self.model.to(memory_format=torch.channels_last)
        if self.options.attention == "xformers":
            use_xformers(self.model)
        if self.options.compile:
            self.model.encoder.compile()

    def prepare(self, image: Image.Image) -> Pixels:
        """An RGB picture cropped and resized to the square or to its bucket."""
        return crops.cover(image, crops.nearest(image.size, self.sizes))

    def start(self, pictures: Sequence[Pixels]) -> Rows:
        """A row for each picture; all of one shape."""
        encoded = self.model.encode(self.pixel_values(pictures))
        latents = to_host(encoded.latents, self.options.dtype)  # (B, C, h, w)
        return lambda: [{"latents": row} for row in latents()]

    def pixel_values(self, pictures: Sequence[Pixels]) -> torch.Tensor:
        """What the model takes, (B, 3, H, W) in -1 … 1."""
        return _levelled(pictures, np.stack([crops.LEVELS] * 3), self.model)


class TextEncoder:
    """CLIP text with projection: `prompt_embeds (D,)` and the valid `text_encoder_hidden_states (N, D)`.

    The encoder is causal and captions are padded on the right, so a caption encoded at its own length
    gives the rows it has among 77 (reference facts §4.1).
    """

    def __init__(self, repo: Path, options: EncoderOptions) -> None:
        self.folder, self.options = repo / "text_encoder", options
        self.tokenizer_folder = repo / "tokenizer"
        self.model: Any = None

    @cached_property
    def column(self) -> Column:
        config = models.config(self.folder, flag="--prior-model")
        identity = {
            **of_encoder(self.folder, "--prior-model", self.options),
            "tokenizer": digest(hash_files(self._tokenizer_files())),
        }
        fields = (
            Field("prompt_embeds", self.options.dtype, (config["projection_dim"],)),
            Field("text_encoder_hidden_states", self.options.dtype, ("n_tokens", config["hidden_size"])),
        )
        return declared("text", fields, identity, self.options.prior_record)

    def load(self) -> None:
        """Once; a second call does nothing."""
        if self.model is not None:
            return
        from transformers import CLIPTextModelWithProjection

        self.model = load(CLIPTextModelWithProjection, self.folder, "--prior-model", self.options)
        if self.options.compile:
            self.model.compile(dynamic=True)
        size, known = self.model.config.vocab_size, len(self.tokenizer)
        if known > size:
            raise UserError(
                f"--prior-model: {self.tokenizer_folder} has {known} tokens, the text encoder {size}"
            )

    def _tokenizer_files(self) -> list[Path]:
        files = [path for path in self.tokenizer_folder.iterdir() if path.is_file()]
        names = {path.name for path in files}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            wanted = "vocab.json and merges.txt, or tokenizer.json"
            raise UserError(f"--prior-model: {self.tokenizer_folder} wants {wanted}")
        return files

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.tokenizer_folder)

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Token ids of each caption, BOS and EOS included, over-long ones truncated as in the pipelines."""
        if not captions:
            return []
        return list(self.tokenizer(captions, truncation=True, max_length=self.max_length).input_ids)

    def truncates(self, caption: str) -> bool:
        return len(self.tokenizer(caption, verbose=False).input_ids) > self.max_length

    @property
    def max_length(self) -> int:
        config = models.config(self.folder, flag="--prior-model")
        return min(int(self.tokenizer.model_max_length), int(config.get("max_position_embeddings", 77)))

    def start(self, input_ids: Sequence[list[int]]) -> Rows:
        """A row for each caption, all of one length N. No attention mask, as the reference."""
        ids = torch.tensor(input_ids, device=self.model.device)  # (B, N)
        output = self.model(input_ids=ids)
        embeds = to_host(output.text_embeds, self.options.dtype)  # (B, D)
        hidden = to_host(output.last_hidden_state, self.options.dtype)  # (B, N, D), after the final norm
        return lambda: [
            {"prompt_embeds": e, "text_encoder_hidden_states": h} for e, h in zip(embeds(), hidden())
        ]

    def null(self) -> Row:
        """The pipelines' unconditional text: the empty prompt."""
        return self.start(self.tokenize([""]))()[0]


PictureEncoder = ImageEncoder | LatentsEncoder
Encoder = PictureEncoder | TextEncoder


def make_encoders(options: RunOptions) -> list[Encoder]:
    """The encoders of the columns asked for, described but not loaded. Raises `UserError`."""
    encoders: list[Encoder] = []
    for name in options.columns:
        if name == "image":
            folders = ("image_encoder", "image_processor")
            repo = models.local_folder(options.prior_model, folders, flag="--prior-model")
            encoders.append(ImageEncoder(repo, options.encoders))
        elif name == "text":
            folders = ("text_encoder", "tokenizer")
            repo = models.local_folder(options.prior_model, folders, flag="--prior-model")
            encoders.append(TextEncoder(repo, options.encoders))
        else:
            repo = models.local_folder(options.decoder_model, ("movq",), flag="--decoder-model")
            encoders.append(LatentsEncoder(repo, options.encoders, int(name.removeprefix("latents@"))))
    return encoders


def _levelled(pictures: Sequence[Pixels], levels: NDArray[np.float32], model: Any) -> torch.Tensor:
    """Pictures of one shape as (B, 3, H, W) on the model's device and in its arithmetic, channels_last.

    Each byte becomes the value that `levels` (3, 256) has for it and its channel.
    """
    table = to_device(model, levels.reshape(-1))
    batch = torch.empty((len(pictures), *pictures[0].shape), dtype=torch.uint8, pin_memory=table.is_cuda)
    np.stack(pictures, out=batch.numpy())
    batch = batch.to(table.device, non_blocking=True)
    index = batch.int() + torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=table.device)
    return table.index_select(0, index.view(-1)).view(index.shape).permute(0, 3, 1, 2)
