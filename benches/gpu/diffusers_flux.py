"""The parts of FLUX in diffusers, for `compare.py`."""

import json
from pathlib import Path
from typing import Callable

import numpy
import torch
from checkpoint import CLIP_LENGTH, PATCH_PIXELS
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift


def load(folder: Path, device: str, dtype: torch.dtype) -> FluxPipeline:
    """Without tokenizers: `compare.py` loads those separately, so that an unreadable one stops nothing else."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=dtype, tokenizer=None, tokenizer_2=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def tokenize(folder: Path, prompt: str, length: int) -> tuple[list[int], list[int]]:
    """CLIP's ids up to the end of the text, T5's padded."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    clip_ids = clip(prompt, max_length=CLIP_LENGTH, truncation=True).input_ids
    return clip_ids, t5(prompt, padding="max_length", max_length=length, truncation=True).input_ids


class Flux:
    """A pipeline, and the sizes that follow from its configuration."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self.pipeline = load(folder, device, dtype)
        self.device, self.dtype = device, dtype
        self.clip_end = max(json.loads((folder / "tokenizer/vocab.json").read_text()).values())

    def pooled(self, clip_ids: list[int]) -> torch.Tensor:
        padded = clip_ids + [self.clip_end] * (CLIP_LENGTH - len(clip_ids))
        return self.pipeline.text_encoder(torch.tensor([padded], device=self.device)).pooler_output

    def sequence(self, t5_ids: list[int]) -> torch.Tensor:
        return self.pipeline.text_encoder_2(torch.tensor([t5_ids], device=self.device))[0]

    def image_ids(self, width: int, height: int) -> torch.Tensor:
        rows, columns = height // PATCH_PIXELS, width // PATCH_PIXELS
        ids = torch.zeros(rows, columns, 3, device=self.device)
        ids[..., 1] += torch.arange(rows, device=self.device)[:, None]
        ids[..., 2] += torch.arange(columns, device=self.device)[None, :]
        return ids.reshape(-1, 3)

    def sigmas(self, tokens: int, steps: int) -> torch.Tensor:
        """Sets the schedule, too."""
        scheduler = self.pipeline.scheduler
        config = scheduler.config
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / steps, steps), device=self.device, mu=mu)
        return scheduler.sigmas

    def velocity(self, inputs: dict[str, torch.Tensor], sigma: float, guidance: float) -> torch.Tensor:
        """`inputs`: latents, sequence, pooled, all with a batch dimension, and image_ids."""
        transformer = self.pipeline.transformer
        dtype = transformer.dtype
        count, text_tokens = inputs["latents"].shape[0], inputs["sequence"].shape[1]
        return transformer(
            hidden_states=inputs["latents"].to(dtype),
            encoder_hidden_states=inputs["sequence"].to(dtype),
            pooled_projections=inputs["pooled"].to(dtype),
            timestep=torch.full([count], sigma, device=self.device, dtype=dtype),
            guidance=torch.full([count], guidance, device=self.device, dtype=torch.float32),
            txt_ids=torch.zeros(text_tokens, 3, device=self.device, dtype=dtype),
            img_ids=inputs["image_ids"].to(dtype),
            return_dict=False,
        )[0]

    def random_inputs(self, width: int, height: int, count: int, text_tokens: int) -> dict[str, torch.Tensor]:
        config = self.pipeline.transformer.config
        tokens = (height // PATCH_PIXELS) * (width // PATCH_PIXELS)
        shapes = {
            "latents": (count, tokens, config.in_channels),
            "sequence": (count, text_tokens, config.joint_attention_dim),
            "pooled": (count, config.pooled_projection_dim),
        }
        inputs = {name: torch.randn(shape, device=self.device, dtype=self.dtype) for name, shape in shapes.items()}
        return inputs | {"image_ids": self.image_ids(width, height)}

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """From latents as the transformer returns them, with a batch dimension."""
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0]

    def image(self, width: int, height: int, steps: int, ids: tuple[list[int], list[int]]) -> None:
        """As for the pipeline's callers: from token ids to an image in memory."""
        self.pipeline(
            prompt_embeds=self.sequence(ids[1]),
            pooled_prompt_embeds=self.pooled(ids[0]),
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=3.5,
            output_type="pil",
        )

    def in_f32(self, module: torch.nn.Module, run: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """What `run` gives with the module in f32: the same weights, since every bf16 is an f32, and exact beside
        bf16. `None` where that does not fit; the module is as it was."""
        try:
            return run_in_f32(module, run)
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            module.to(self.dtype)
            if self.device != "cpu":
                torch.cuda.empty_cache()


def run_in_f32(module: torch.nn.Module, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    module.to(torch.float32)
    return run().float()
