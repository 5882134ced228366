"""The first part of the training: an autoencoder in FLUX's form, pixels to 16 channels at an eighth of the size."""

import copy
import json
import math
import random
import time

import torch
from diffusers import AutoencoderKL

import parallel
import scenes

WIDTH = 48
SIZES = [(64, 64), (64, 64), (64, 64), (96, 64), (64, 96), (128, 128)]
PIXELS_PER_STEP = 24 * 64 * 64
LEARNING_RATE = 2e-3
# In the second half of the training an outline's pixels count so many times more than those of flat areas.
OUTLINE_WEIGHT = 6.0
# Weight of the Kullback-Leibler term beside the mean absolute error, both per element.
KL_WEIGHT = 6e-4


def new_autoencoder():
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(WIDTH,) * 4, layers_per_block=0,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8,
        use_quant_conv=False, use_post_quant_conv=False, sample_size=128, scaling_factor=1.0, shift_factor=0.0)


def outline_weights(pixels):
    """[batch, 1, height, width], mean 1: heavy within a pixel of where colours change."""
    step_x = (pixels[..., :, 1:] - pixels[..., :, :-1]).abs().amax(1, keepdim=True)
    step_y = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().amax(1, keepdim=True)
    change = torch.nn.functional.pad(step_x, (0, 1, 0, 0)) + torch.nn.functional.pad(step_y, (0, 0, 0, 1))
    weights = 1 + OUTLINE_WEIGHT * torch.nn.functional.max_pool2d((change > 0.05).float(), 3, 1, 1)
    return weights / weights.mean()


def batch_of_pictures(rng, textures, size, count):
    """Training pictures of one size, held-out combinations left out."""
    return scenes.paint(rng, [scenes.draw_scene(rng, *size) for _ in range(count)], textures)[0]


def train_autoencoder(rank, workers, steps, seed, folder):
    """Trains and writes `folder`; its configuration states the latents' mean and spread as FLUX's does."""
    torch.manual_seed(seed)
    textures = scenes.distance_textures()
    model = new_autoencoder().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    # The same weights everywhere, other pictures for each worker.
    torch.manual_seed(1000 * seed + rank)
    rng, size_rng = random.Random(1000 * seed + rank), random.Random(seed)
    started, log = time.time(), []
    for step in range(steps):
        # Two rounds: the second begins again at the full rate.
        half = step * 2 // steps
        part = (step * 2 - half * steps) / steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * part))
        size = size_rng.choice(SIZES)
        pixels = batch_of_pictures(rng, textures, size, PIXELS_PER_STEP // (size[0] * size[1] * workers))
        pixels = pixels.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(pixels).latent_dist
            decoded = model.decode(latents.sample()).sample
        error = (decoded.float() - pixels).abs()
        error = (error * outline_weights(pixels)).mean() if half else error.mean()
        divergence = latents.kl().mean() / latents.mean[0].numel()
        loss = error + KL_WEIGHT * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(model)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.995, (step + 1) / (step + 10))
            for slow, fast in zip(average.parameters(), model.parameters()):
                slow.lerp_(fast, 1 - decay)
        if rank == 0 and (step % 100 == 99 or step == steps - 1):
            entry = {"step": step + 1, "error": round(error.item(), 5), "divergence": round(divergence.item(), 3),
                     "seconds": round(time.time() - started)}
            log.append(entry)
            print(json.dumps(entry), flush=True)
    if rank > 0:
        return
    with torch.no_grad():
        latents = torch.cat([
            average.encode(batch_of_pictures(rng, textures, size, 32)).latent_dist.mode().flatten()
            for size in sorted(set(SIZES)) for _ in range(4)])
    average.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    average.to(memory_format=torch.contiguous_format).save_pretrained(folder)
    (folder.parent / "autoencoder-log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
