"""Pictures of some prompts at each validation, drawn by the prior in training and a finished decoder.

The prompts' texts come from the cache (`precompute --prompts`); what is not there is encoded once, before
training, by the base's text encoder, the only place in the trainers where CLIP is loaded. Embeddings are
sampled as `KandinskyV22PriorPipeline` does, pictures drawn by the stock `KandinskyV22Pipeline`, with the same
noise each time. The decoder is loaded when it is first needed, and is on the device only while it draws.

Legend: P prompts, I pictures of each, N text rows, D embedding width.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data_tools import models
from data_tools.cache.manifest import Cache
from data_tools.cache.mixture import Reader
from data_tools.cache.store import open_store
from data_tools.errors import UserError
from train.batches import Batch, null_conditions, tensors, to_device
from train.compatibility import check_same_clip, check_widths
from train.draws import Purpose
from train.export import Base
from train.load import load_model, required
from train.options import TrainOptions
from train.picture_grid import picture_grid
from train.ranks import say_once_a_node
from train.sampler import GUIDANCE, NUM_STEPS, TEXT, make_generators
from train.task import Task
from train.validation import evaluating
from train.writing import writing

MAX_CACHED = 16
"Prompts that are drawn where none were asked for."
SAMPLED_ROWS = 32
"Embeddings sampled at a time."
DECODER = ("unet", "scheduler", "movq")
ENCODER = ("text_encoder", "tokenizer")
MULTIPLE = 64
"Of pixels: the pipeline draws other sizes larger than asked for."
FLAG = "--decoder-model"
CASTS: dict[str, Callable[[Any], Any]] = {"fp16": nn.Module.half, "bf16": nn.Module.bfloat16}
"Half precision of the run → the decoder's; diffusers' own `to` warns of what does not concern us."


@dataclass(frozen=True)
class PreviewPlan:
    """What is to be drawn, and by what; everything about it has been checked."""

    texts: dict[str, Batch | None]
    "Each prompt → its text condition from the cache, without a batch dimension; None: to be encoded."
    decoder: Path
    "Folder with unet, scheduler and movq."
    resolution: int
    "Pixels a side."


def plan_previews(options: TrainOptions, reader: Reader, base: Base) -> PreviewPlan | None:
    """None if no pictures are asked for. Raises `UserError` for what could not be drawn."""
    decoder_model, resolution = options.decoder_model, options.resolution
    assert resolution is not None, "the flag has a default"
    if not options.validation_prompts and not decoder_model:
        return None
    if resolution % MULTIPLE:
        raise UserError(f"--resolution: {resolution} px, wanted a multiple of {MULTIPLE} for pictures")
    cached = reader.prompts("text")
    prompts = list(dict.fromkeys(prompt.strip() for prompt in options.validation_prompts))
    if not prompts:
        prompts = list(cached)[:MAX_CACHED]
        if not prompts:
            say_once_a_node(f"{FLAG}: draws nothing: no --validation-prompts, and none in the cache")
            return None
        if len(cached) > MAX_CACHED:
            say_once_a_node(f"of the {len(cached)} prompts in the cache the first {MAX_CACHED} are drawn")
    texts = {p: tensors(reader, "text", cached[p]) if p in cached else None for p in prompts}
    unknown = next((prompt for prompt, text in texts.items() if text is None), None)
    if unknown is not None:
        try:
            models.local_folder(base.name, ENCODER, flag=base.flag)
        except UserError as err:
            raise UserError(
                f"--validation-prompts: {unknown!r} is not in the cache, and cannot be encoded: {err}; add "
                "it to the cache with precompute --prompts FILE"
            ) from None
    return PreviewPlan(texts, _decoder(options, reader, decoder_model, resolution), resolution)


def _decoder(options: TrainOptions, reader: Reader, name: str | None, resolution: int) -> Path:
    """The decoder's folder. Raises `UserError` for one that is not to be had or is no match."""
    import diffusers

    name = name or _recorded_decoder(options.places[0].place, resolution)
    folder = models.local_folder(name, DECODER, flag=FLAG)
    config = models.config(folder / "unet", flag=FLAG)
    check_widths(
        reader,
        {"image_embeds": required(config, "encoder_hid_dim", folder / "unet", FLAG)},
        f"{FLAG}: {name}",
    )
    check_same_clip(folder, reader, flag=FLAG)
    takes = required(config, "in_channels", folder / "unet", FLAG)
    draws = required(models.config(folder / "movq", flag=FLAG), "latent_channels", folder / "movq", FLAG)
    if takes != draws:
        raise UserError(
            f"{FLAG}: {name} takes {takes} input channels, wanted {draws}: inpainting and ControlNet UNets "
            "do not draw from text alone"
        )
    scheduler = models.config(folder / "scheduler", flag=FLAG).get("_class_name", "DDPMScheduler")
    if getattr(diffusers, scheduler, None) is None:
        raise UserError(f"{FLAG}: {name} has the scheduler {scheduler}, wanted one that diffusers has")
    for component in ("unet", "movq"):
        models.weight_files(folder / component, flag=FLAG)
    return folder


def _recorded_decoder(place: str, resolution: int) -> str:
    """The repository whose MoVQ made the cache's latents, at best those of the resolution."""
    cache = Cache.open(open_store(place))
    names = [name for name in cache.column_names() if name.startswith("latents@")]
    names.sort(key=lambda name: name != f"latents@{resolution}")
    column = cache.column(names[0]) if names else None
    return models.DECODER if column is None else models.recall(column.model, place, flag=FLAG)


class Previews:
    """Draws what `task.preview` says, with the weights that a module has at the moment.

    Encodes the prompts that are not in the cache, so it should be made before the trained model is on the
    device. Raises `UserError` if the text encoder cannot be loaded.
    """

    def __init__(
        self, task: Task, plan: PreviewPlan, reader: Reader, options: TrainOptions, accelerator: Accelerator
    ) -> None:
        assert task.make_sampler is not None, "pictures take a sampler"
        self.plan, self.options, self.accelerator = plan, options, accelerator
        device = accelerator.device
        self._sampler = task.make_sampler(device)
        self._null = null_conditions(reader, "text", device)
        self._negative = null_conditions(reader, "image", device)["image_embeds"].float()  # (D,)
        missing = [prompt for prompt, text in plan.texts.items() if text is None]
        encoded = dict(zip(missing, encode_prompts(missing, task.base, device), strict=True))
        known = {prompt: text or encoded[prompt] for prompt, text in plan.texts.items()}
        self._text = to_device(_stacked([*known.values()]), device)
        self._pipeline: Any = None

    @torch.no_grad()
    def draw(self, step: int, module: nn.Module) -> dict[str, list[Image.Image]]:
        """Prompt → its pictures, also saved as validation/step-<step>.png; {} on all but the first rank.

        All ranks call it: each samples all embeddings, so that FSDP's forwards are the same everywhere.
        Raises `DataFault` if the picture cannot be written.
        """
        images = self.options.num_validation_images
        numbers = [number for prompt in self.plan.texts for number in self.noise_numbers(prompt)]
        generators = make_generators(self.options.seed, numbers, Purpose.PREVIEW)
        with evaluating(module):
            embeds = self._sample(module, generators)  # (P · I, D)
        if not self.accelerator.is_main_process:
            return {}
        pictures = self._decode(embeds, generators)
        found = {p: pictures[i * images : (i + 1) * images] for i, p in enumerate(self.plan.texts)}
        path = self.options.output_dir / "validation" / f"step-{step:06d}.png"
        temporary = path.with_name(f".tmp-{path.name}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture_grid(found).save(temporary, format="PNG")
            temporary.replace(path)
        return found

    def noise_numbers(self, prompt: str) -> list[int]:
        """What the noise of each picture of a prompt is drawn from, wherever the prompt stands."""
        first = xxhash.xxh32_intdigest(prompt.encode())
        return [(first + image) % 2**32 for image in range(self.options.num_validation_images)]

    def _sample(self, module: nn.Module, generators: list[torch.Generator]) -> Tensor:
        """The embeddings, those of a prompt one after the other: (P · I, D)."""
        images = self.options.num_validation_images
        rows = {name: values.repeat_interleave(images, dim=0) for name, values in self._text.items()}
        made = []
        for start in range(0, len(generators), SAMPLED_ROWS):
            chosen = slice(start, start + SAMPLED_ROWS)
            batch = {name: values[chosen] for name, values in rows.items()}
            made.append(self._sampler(module, batch, self._null, generators[chosen], (GUIDANCE,))[:, 0])
        return torch.cat(made)

    def _decode(self, embeds: Tensor, generators: list[torch.Generator]) -> list[Image.Image]:
        """A picture of each embedding (P · I, D), those of one prompt at a time."""
        device, count = self.accelerator.device, self.options.num_validation_images
        if self._pipeline is None:
            self._pipeline = _load_decoder(
                self.plan.decoder, CASTS.get(self.accelerator.mixed_precision, nn.Module.float)
            )
        parts = (self._pipeline.unet, self._pipeline.movq)
        pictures: list[Image.Image] = []
        try:
            for part in parts:
                part.to(device)
            for start in range(0, len(embeds), count):
                chosen = embeds[start : start + count]  # (I, D)
                pictures += self._pipeline(
                    image_embeds=chosen,
                    negative_image_embeds=self._negative.expand_as(chosen),
                    height=self.plan.resolution,
                    width=self.plan.resolution,
                    num_inference_steps=NUM_STEPS,
                    guidance_scale=GUIDANCE,
                    generator=generators[start : start + count],
                ).images
        finally:
            for part in parts:
                part.to("cpu")
            _release(device)
        return pictures


@torch.no_grad()
def encode_prompts(prompts: Sequence[str], base: Base, device: torch.device) -> list[Batch]:
    """The text condition of each prompt, as `precompute` makes it, by the base's encoder. See `TEXT`.

    Each at its own length, without a mask: the encoder is causal. Nothing is loaded for no prompts. Raises
    `UserError` for an encoder or a tokenizer that cannot be loaded.
    """
    if not prompts:
        return []
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = base.folder / "tokenizer"
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise UserError(f"{base.flag}: {folder}: cannot be loaded: {models.first_line(err)}") from None
    encoder = load_model(CLIPTextModelWithProjection, base.folder / "text_encoder", base.flag).to(device)
    length = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt").input_ids  # (1, N)
        output = encoder(input_ids=ids.to(device))
        hidden = output.last_hidden_state[0].cpu()  # (N, D), after the final norm
        rows.append({"prompt_embeds": output.text_embeds[0].cpu(), "text_encoder_hidden_states": hidden})
    del encoder
    _release(device)
    return rows


def _load_decoder(folder: Path, cast: Callable[[Any], Any]) -> Any:
    """The stock pipeline, on the CPU. Raises `UserError`."""
    import diffusers
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline

    config = models.config(folder / "scheduler", flag=FLAG)
    pipeline = KandinskyV22Pipeline(
        unet=cast(load_model(diffusers.UNet2DConditionModel, folder / "unet", FLAG)),
        scheduler=getattr(diffusers, config.get("_class_name", "DDPMScheduler")).from_config(config),
        movq=cast(load_model(diffusers.VQModel, folder / "movq", FLAG)),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stacked(texts: list[Batch]) -> Batch:
    """The prompts as one batch in float32, padded to the longest."""
    hidden = [text["text_encoder_hidden_states"].float() for text in texts]  # (N, D) each
    embeds = torch.stack([text["prompt_embeds"].float() for text in texts])  # (P, D)
    lengths = torch.tensor([len(rows) for rows in hidden])
    return dict(zip(TEXT, (embeds, pad_sequence(hidden, batch_first=True), lengths), strict=True))


def _release(device: torch.device) -> None:
    """What has just been deleted or moved off the device is free for others."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
