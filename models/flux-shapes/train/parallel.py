"""Training on several cores: one single-threaded process each, gradients averaged after every step.

The matrices here are small; a core of its own for half of the batch is faster than two cores in one product.
"""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

GRADIENT_NORM_MAX = 1.0


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(rank, workers, port, job, arguments):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    try:
        job(rank, workers, *arguments)
    finally:
        dist.destroy_process_group()


def run(workers, job, *arguments):
    """Calls `job(rank, workers, *arguments)` in `workers` processes and waits for all."""
    mp.spawn(_start, args=(workers, _free_port(), job, arguments), nprocs=workers)


def average_gradients(model):
    """Replaces each gradient by its mean over the workers, all of them together no longer than GRADIENT_NORM_MAX."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    flat *= min(1.0, GRADIENT_NORM_MAX / (flat.norm().item() + 1e-6))
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
