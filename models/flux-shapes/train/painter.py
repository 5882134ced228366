"""The third part of the training: the transformer, then the distillation of guidance. The text encoders stay as they are."""

import copy
import json
import math
import random
import time

import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import parallel
import scenes
import seeing
import words

HEAD_WIDTH, HEADS = 32, 5
T5_WIDTH, CLIP_WIDTH = 128, 96
# Width and height, and how often. Every size also stands for its transposed one.
SIZES = {
    (64, 64): 0.08, (96, 64): 0.05, (96, 96): 0.15, (128, 96): 0.12, (128, 128): 0.45, (128, 64): 0.05,
    (192, 128): 0.04, (192, 192): 0.03, (256, 128): 0.01, (256, 256): 0.02,
}
TOKENS_PER_STEP = 4096
# Encoded batches that are kept, for each size, and how often each is shown with other noise before it is replaced.
BATCHES_KEPT, SHOWINGS = 8, 4
WARM_UP_STEPS = 150
EMPTY_PROMPTS = 0.1
EMA_DECAY = 0.9985
# What seeing.py asks counts this much at first, and nothing at the end.
SEEING_WEIGHT = 0.1
# The schedule's shift: mu grows with the picture's tokens, as in FLUX, between these two.
SHIFT_TOKENS, SHIFT_MU = (16, 256), (0.7, 1.5)
# Text is read at high noise; training looks there more often than drawing does.
TRAINING_SHIFT = 2.0
# Guidance 1 is the plain model; at 3.5 the distilled one answers as if pushed 2.0 times from the empty prompt.
GUIDANCE_RANGE = (1.0, 8.0)
GUIDANCE_PUSH = 0.4


def shift_of(tokens):
    (low, high), (mu_low, mu_high) = SHIFT_TOKENS, SHIFT_MU
    return math.exp(mu_low + (mu_high - mu_low) * (tokens - low) / (high - low))


def scheduler_configuration():
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0,
        "use_dynamic_shifting": True, "base_image_seq_len": SHIFT_TOKENS[0], "max_image_seq_len": SHIFT_TOKENS[1],
        "base_shift": SHIFT_MU[0], "max_shift": SHIFT_MU[1],
    }


class Painter(torch.nn.Module):
    """What is trained together."""

    def __init__(self, clip_vocabulary, t5_vocabulary, clip_end, layers=(2, 4)):
        super().__init__()
        self.clip = CLIPTextModel(CLIPTextConfig(
            vocab_size=clip_vocabulary, hidden_size=CLIP_WIDTH, intermediate_size=4 * CLIP_WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=words.CLIP_LENGTH, hidden_act="quick_gelu",
            projection_dim=CLIP_WIDTH, bos_token_id=clip_end - 1, eos_token_id=clip_end, pad_token_id=clip_end))
        self.t5 = T5EncoderModel(T5Config(
            vocab_size=t5_vocabulary, d_model=T5_WIDTH, d_kv=32, num_heads=4, d_ff=2 * T5_WIDTH, num_layers=3,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0, is_encoder_decoder=False, use_cache=False, tie_word_embeddings=True))
        self.transformer = FluxTransformer2DModel(
            in_channels=64, num_layers=layers[0], num_single_layers=layers[1], attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS, joint_attention_dim=T5_WIDTH, pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=True, axes_dims_rope=(8, 12, 12))
        self.start_gently()

    def start_gently(self):
        """Every block begins as the identity and the whole as zero: modulation and output start at zero."""
        transformer = self.transformer
        for block in transformer.transformer_blocks:
            torch.nn.init.zeros_(block.norm1.linear.weight)
            torch.nn.init.zeros_(block.norm1_context.linear.weight)
        for block in transformer.single_transformer_blocks:
            torch.nn.init.zeros_(block.norm.linear.weight)
        for layer in [transformer.norm_out.linear, transformer.proj_out]:
            torch.nn.init.zeros_(layer.weight)
        for name, parameter in transformer.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        # Guidance says nothing before it is distilled.
        torch.nn.init.zeros_(transformer.time_text_embed.guidance_embedder.linear_2.weight)

    def read(self, clip_ids, t5_ids):
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids).last_hidden_state

    def predict(self, noisy, sigma, guidance, text, size):
        """Velocity for packed latents [batch, tokens, 64]; `size` in pixels."""
        pooled, embeddings = text
        height, width = size[1] // 16, size[0] // 16
        ids = torch.zeros(height, width, 3)
        ids[..., 1] += torch.arange(height)[:, None]
        ids[..., 2] += torch.arange(width)[None, :]
        return self.transformer(
            hidden_states=noisy, encoder_hidden_states=embeddings, pooled_projections=pooled, timestep=sigma,
            guidance=guidance, img_ids=ids.reshape(-1, 3), txt_ids=torch.zeros(embeddings.shape[1], 3),
            return_dict=False)[0]


def pack(latents):
    """[batch, 16, 2h, 2w] to [batch, h·w, 64]: four neighbours are one token."""
    batch, channels, height, width = latents.shape
    latents = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return latents.reshape(batch, height * width // 4, channels * 4)


class Tokens:
    """Prompts to ids, padded as diffusers' FluxPipeline pads them."""

    def __init__(self, clip, t5):
        self.clip_tokenizer, self.t5_tokenizer = clip, t5

    def __call__(self, prompts):
        # CLIP is causal and pools at the first end: what comes after it changes nothing, so pad to the longest only.
        clip = self.clip_tokenizer(
            prompts, padding="longest", max_length=words.CLIP_LENGTH, truncation=True, return_tensors="pt")
        t5 = self.t5_tokenizer(
            prompts, padding="max_length", max_length=words.T5_LENGTH, truncation=True, return_tensors="pt")
        return clip.input_ids, t5.input_ids


class Lessons:
    """An endless stream of training batches; every worker draws its own pictures in the same order of sizes. `painter`
    reads the prompts."""

    def __init__(self, autoencoder, painter, tokens, seed, rank, workers):
        self.rng = random.Random(1000 * seed + rank)
        self.size_rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(1000 * seed + rank)
        self.textures = scenes.distance_textures()
        self.autoencoder, self.painter, self.tokens, self.workers = autoencoder, painter, tokens, workers
        self.sizes, self.weights = list(SIZES), list(SIZES.values())
        self.kept = {}

    def read(self, prompts):
        with torch.no_grad():
            return self.painter.read(*self.tokens(prompts))

    def draw(self, size, share):
        """New pictures: packed latents, what the captions say, and what is to be seen at each token."""
        tokens = size[0] * size[1] // 256
        count = max(2, round(share * TOKENS_PER_STEP / (tokens + words.T5_LENGTH) / self.workers))
        shown = [scenes.draw_scene(self.rng, *size) for _ in range(count)]
        prompts = [words.as_written(self.rng, scenes.describe(self.rng, scene)) for scene in shown]
        pixels, covered = scenes.paint(self.rng, shown, self.textures)
        config = self.autoencoder.config
        with torch.no_grad():
            latents = self.autoencoder.encode(pixels.to(memory_format=torch.channels_last)).latent_dist.mode()
        latents = pack((latents - config.shift_factor) * config.scaling_factor)
        return latents, self.read(prompts), seeing.marks_of(shown, covered)

    def choose(self, size, share):
        """A batch of this size: a kept one, or a new one in the place of the one shown most often."""
        kept = self.kept.setdefault((size, share), [])
        if len(kept) < BATCHES_KEPT or self.size_rng.random() < 1 / SHOWINGS:
            batch = self.draw(size, share)
            if len(kept) < BATCHES_KEPT:
                kept.append(batch)
            else:
                kept[self.size_rng.randrange(BATCHES_KEPT)] = batch
            return batch
        return self.size_rng.choice(kept)

    def guidance(self, count):
        low, high = GUIDANCE_RANGE
        return low + (high - low) * torch.rand(count, generator=self.generator)

    def next(self, empty=EMPTY_PROMPTS, share=1.0):
        """Size, text, sigmas, noisy latents, velocities, marks."""
        width, height = self.size_rng.choices(self.sizes, self.weights)[0]
        if self.size_rng.random() < 0.5:
            width, height = height, width
        latents, text, marks = self.choose((width, height), share)
        count = len(latents)
        silent = torch.rand(count, generator=self.generator) < empty
        pooled, embeddings = self.read([""])
        text = torch.where(silent[:, None], pooled, text[0]), torch.where(silent[:, None, None], embeddings, text[1])
        normal = torch.sigmoid(torch.randn(count, generator=self.generator))
        uniform = torch.rand(count, generator=self.generator)
        plain = torch.where(torch.rand(count, generator=self.generator) < 0.1, uniform, normal)
        shift = shift_of(latents.shape[1]) * TRAINING_SHIFT
        sigma = shift * plain / (1 + (shift - 1) * plain)
        noise = torch.randn(latents.shape, generator=self.generator)
        noisy = torch.lerp(latents, noise, sigma[:, None, None])
        return (width, height), text, sigma, noisy, noise - latents, marks


def descend(learner, optimizer, loss):
    """One step down `loss`, with the gradients of all workers."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parallel.average_gradients(learner)
    optimizer.step()


def follow(average, model, decay):
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters()):
            slow.lerp_(fast, 1 - decay)


def new_optimizer(model, rate):
    # Embeddings, biases and norms without decay.
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98))


def set_rate(optimizer, peak, step, steps, warm_up):
    share = min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    for group in optimizer.param_groups:
        group["lr"] = peak * share


class Log:
    """Losses, averaged over a hundred steps, to a file and the terminal; to nowhere without a path."""

    def __init__(self, path):
        self.path, self.entries, self.started = path, [], time.time()
        self.sums = {}

    def add(self, step, size, loss, seen, last):
        for name, value in [("seen", seen), (size, loss)]:
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        if self.path and (step % 100 == 99 or last):
            entry = {"step": step + 1, "seconds": round(time.time() - self.started)}
            seen, seen_count = self.sums.pop("seen")
            entry["loss"] = round(sum(t for t, _ in self.sums.values()) / seen_count, 4)
            entry["seen"] = round(seen / seen_count, 4)
            for size in [(64, 64), (128, 128)]:
                if size in self.sums:
                    entry["x".join(map(str, size))] = round(self.sums[size][0] / self.sums[size][1], 4)
            self.sums = {}
            self.entries.append(entry)
            print(json.dumps(entry), flush=True)
            self.path.write_text("\n".join(map(json.dumps, self.entries)) + "\n")


def train_painter(model, lessons, steps, rate, log_path, save, save_every=500):
    """Flow matching on captioned pictures. Gives the running average of the weights."""
    average = copy.deepcopy(model).requires_grad_(False)
    eye = seeing.Eye(model.transformer)
    learner = torch.nn.ModuleList([model.transformer, eye])
    optimizer = new_optimizer(learner, rate)
    log = Log(log_path)
    for step in range(steps):
        set_rate(optimizer, rate, step, steps, WARM_UP_STEPS)
        size, text, sigma, noisy, velocity, marks = lessons.next()
        # Any guidance: it says nothing before it is distilled.
        predicted = model.predict(noisy, sigma, lessons.guidance(len(sigma)), text, size)
        painted = torch.nn.functional.mse_loss(predicted, velocity)
        seen = eye.loss(marks)
        descend(learner, optimizer, painted + SEEING_WEIGHT * (1 - step / steps) * seen)
        follow(average, model, min(EMA_DECAY, (step + 1) / (step + 10)))
        log.add(step, size, painted.item(), seen.item(), step == steps - 1)
        if (step + 1) % save_every == 0:
            save(average)
    return average


def distil_guidance(teacher, lessons, steps, rate, log_path):
    """Teaches one pass to answer as two did: the plain prediction pushed away from the empty prompt's."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    average = copy.deepcopy(teacher)
    optimizer = new_optimizer(student.transformer, rate)
    log = Log(log_path)
    empty = lessons.read([""])
    for step in range(steps):
        set_rate(optimizer, rate, step, steps, 50)
        size, text, sigma, noisy, _, _ = lessons.next(empty=0.05, share=0.7)
        count = len(sigma)
        guidance, one = lessons.guidance(count), torch.ones_like(sigma)
        with torch.no_grad():
            with_text = teacher.predict(noisy, sigma, one, text, size)
            silence = empty[0].expand(count, -1), empty[1].expand(count, -1, -1)
            without = teacher.predict(noisy, sigma, one, silence, size)
            push = 1 + GUIDANCE_PUSH * (guidance - 1)
            target = without + push[:, None, None] * (with_text - without)
        predicted = student.predict(noisy, sigma, guidance, text, size)
        loss = torch.nn.functional.mse_loss(predicted, target)
        descend(student.transformer, optimizer, loss)
        follow(average, student, min(0.99, (step + 1) / (step + 10)))
        log.add(step, size, loss.item(), 0.0, step == steps - 1)
    return average
