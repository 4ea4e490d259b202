"""Masked diffusion as its authors run it: the plain PyTorch loop that the server is compared with (`tests/bench/run`).

Written from the published algorithms (LLaDA's `generate`, MMaDA's `t2i_generate`): one prompt at a time, every step a
forward of the whole canvas, logits of every position over the whole vocabulary, confidence by a softmax in f64
(`--softmax model`: in the model's own type, as LLaDA has it), guidance as a batch of two. No caches, no batching of
requests, and nothing left out that its authors compute. Temperature 0, so that two programs can be compared token by
token.

    loop.py MODEL PROMPTS [--dtype f32|bf16] [--threads N] [--softmax f64|model]

MODEL is a folder with config.json and model.safetensors under LLaDA's names; PROMPTS is a JSON list of
{"ids", "max_tokens", "steps", "block_length"} for texts and
{"before", "after", "empty", "cells", "steps", "guidance_scale"} for images, which are ids as the model sees them.
Prints {"torch", "threads", "seconds", "completions": [{"tokens", "seconds"}]}; the clock starts after one prompt.
"""

import argparse
import json
import math
import struct
import time
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_safetensors(path):
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + size + at for at in entry["data_offsets"])
        dtype = STORED[entry["dtype"]]
        count = (end - start) // torch.empty(0, dtype=dtype).element_size()
        tensors[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(entry["shape"])
    return tensors


def attend(q, k, v, mask):
    fused = getattr(F, "scaled_dot_product_attention", None)
    if fused is not None:
        return fused(q, k, v, attn_mask=mask)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v


class Model:
    """LLaDA's transformer: RMSNorm, rotary attention, SwiGLU; bidirectional."""

    def __init__(self, folder, dtype):
        self.config = json.loads((folder / "config.json").read_text())
        tensors = read_safetensors(folder / "model.safetensors")
        self.weights = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        self.dtype = dtype
        self.mask = self.config["mask_token_id"]
        self.eps = self.config.get("rms_norm_eps", 1e-5)
        heads = self.config["n_heads"]
        self.heads, self.head_dim = heads, self.config["d_model"] // heads
        self.kv_heads = self.config.get("n_kv_heads") or heads
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        frequencies = 1.0 / (self.config.get("rope_theta", 10000.0) ** steps)
        angles = torch.arange(self.config["max_sequence_length"])[:, None] * frequencies
        self.cos, self.sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))

    def norm(self, x, name):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weights[name + ".weight"] * wide.to(self.dtype)

    def linear(self, x, name):
        return F.linear(x, self.weights[name + ".weight"])

    def rotate(self, x, cos, sin):
        wide = x.float()
        left, right = wide.chunk(2, -1)
        return (wide * cos + torch.cat((-right, left), -1) * sin).to(self.dtype)

    def forward(self, ids, padding=None):
        """Logits (batch, length, vocabulary) of `ids` (batch, length), of which `padding` (batch) are padding, left."""
        batch, length = ids.shape
        positions, mask = torch.arange(length).expand(batch, length), None
        if padding is not None and padding.any():
            positions = (positions - padding[:, None]).clamp(min=0)
            hidden = torch.arange(length)[None] < padding[:, None]
            mask = torch.zeros(batch, 1, 1, length, dtype=self.dtype)
            mask.masked_fill_(hidden[:, None, None, :], float("-inf"))
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]

        def split(x, heads):
            return x.view(batch, length, heads, self.head_dim).transpose(1, 2)

        x = self.weights["model.transformer.wte.weight"][ids]
        for layer in range(self.config["n_layers"]):
            block = f"model.transformer.blocks.{layer}."
            h = self.norm(x, block + "attn_norm")
            q = self.rotate(split(self.linear(h, block + "q_proj"), self.heads), cos, sin)
            k = self.rotate(split(self.linear(h, block + "k_proj"), self.kv_heads), cos, sin)
            v = split(self.linear(h, block + "v_proj"), self.kv_heads)
            if self.kv_heads != self.heads:
                k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
            mixed = attend(q, k, v, mask).transpose(1, 2).reshape(batch, length, -1)
            x = x + self.linear(mixed, block + "attn_out")
            h = self.norm(x, block + "ff_norm")
            gate = F.silu(self.linear(h, block + "ff_proj"))
            x = x + self.linear(gate * self.linear(h, block + "up_proj"), block + "ff_out")
        x = self.norm(x, "model.transformer.ln_f")
        tied = self.config.get("weight_tying", False)
        return self.linear(x, "model.transformer." + ("wte" if tied else "ff_out"))


class Sampler:
    """What both loops do with logits at temperature 0."""

    def __init__(self, model, softmax):
        vocabulary = model.weights["model.transformer.wte.weight"].shape[0]
        self.text = range(*model.config.get("text_ids", [0, vocabulary]))
        self.codes = range(*model.config.get("codes", [0, 0]))
        # Ids that are never drawn: as the server has it, the mask is among them.
        self.banned = model.config.get("banned_ids", [model.mask])
        self.softmax = torch.float64 if softmax == "f64" else None

    def best(self, logits, ids):
        """The likeliest id of every row and its probability, among `ids`."""
        logits = logits[:, ids.start : ids.stop]
        allowed = logits.clone()
        allowed[:, [i - ids.start for i in self.banned if i in ids]] = float("-inf")
        best = allowed.argmax(-1)
        p = F.softmax(logits.to(self.softmax) if self.softmax else logits, dim=-1)
        return best + ids.start, p.gather(-1, best[:, None])[:, 0].double()


def surest(confidence, n):
    """Indices of the `n` highest; of equals the first."""
    return torch.sort(confidence, descending=True, stable=True).indices[:n]


def text(model, sampler, prompt):
    given, length = prompt["ids"], prompt["max_tokens"]
    x = torch.tensor(given + [model.mask] * length)
    block = prompt["block_length"]
    steps = prompt["steps"] // (length // block)
    masked = torch.arange(len(x)) >= len(given)
    for end in range(len(given) + block, len(x) + 1, block):
        inside = int(masked[:end].sum())
        for step in range(steps):
            logits = model.forward(x[None])[0]
            tokens, confidence = sampler.best(logits, sampler.text)
            confidence[end:] = -math.inf
            confidence[~masked] = -math.inf
            n = inside // steps + (step < inside % steps)
            order = surest(confidence, n)
            x[order], masked[order] = tokens[order], False
    return x[len(given) :].tolist()


def image(model, sampler, prompt):
    cells, steps, w = prompt["cells"], prompt["steps"], prompt["guidance_scale"]
    after = prompt["after"]
    sides = [prompt["before"]] + ([prompt["empty"]] if w > 0 else [])
    longest = max(map(len, sides))
    padding = torch.tensor([longest - len(side) for side in sides])
    x = torch.tensor([[model.mask] * (longest - len(side)) + side + [model.mask] * cells + after for side in sides])
    grid = slice(longest, longest + cells)
    masked = torch.ones(cells, dtype=torch.bool)
    for step in range(steps):
        logits = model.forward(x, padding)[:, grid].float()
        logits = (1 + w) * logits[0] - w * logits[1] if w > 0 else logits[0]
        tokens, confidence = sampler.best(logits, sampler.codes)
        confidence[~masked] = -math.inf
        left, still = int(masked.sum()), 0
        if step + 1 < steps:
            share = torch.cos(torch.tensor((step + 1) / steps) * math.pi * 0.5)
            still = max(1, min(left - 1, int(torch.floor(cells * share))))
        order = surest(confidence, left - still)
        x[:, longest + order], masked[order] = tokens[order], False
    return (x[0, grid] - sampler.codes.start).tolist()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--softmax", choices=["f64", "model"], default="f64")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = Model(args.model, DTYPES[args.dtype])
    sampler = Sampler(model, args.softmax)
    prompts = json.loads(args.prompts.read_text())

    def run(prompt):
        return (text if "ids" in prompt else image)(model, sampler, prompt)

    with torch.inference_mode():
        run(prompts[0])
        begun, completions = time.perf_counter(), []
        for prompt in prompts:
            start = time.perf_counter()
            tokens = run(prompt)
            completions.append({"tokens": tokens, "seconds": time.perf_counter() - start})
        seconds = time.perf_counter() - begun
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": seconds}
    print(json.dumps({**facts, "completions": completions}))


if __name__ == "__main__":
    main()
