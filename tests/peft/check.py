"""Adapters against the real `peft` package, on a module with LLaDA's names and this server's forward pass.

    check.py make FOLDER          writes a base model and an adapter of every kind, both with PEFT, to FOLDER/KIND
    check.py logits FOLDER...     loads each FOLDER/adapter with PEFT onto FOLDER/model.safetensors
    check.py names FOLDER...      loads each FOLDER/adapter with PEFT onto modules called as in FOLDER/model.safetensors

The first two write the logits of FOLDER/ids.json to FOLDER/logits.json; tests/peft/mod.rs compares them with the
server's. The last is for checkpoints: a tensor of theirs is called as the official class calls the module that has it.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG = {
    "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 24, "embedding_size": 40,
    "max_sequence_length": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "weight_tying": False,
}
IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [39], [2, 7, 18, 28]]
EVERYTHING = r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"
KINDS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "rslora": dict(r=3, lora_alpha=7, use_rslora=True, target_modules=EVERYTHING),
    "patterns": dict(
        r=4, lora_alpha=8, target_modules=EVERYTHING,
        rank_pattern={"blocks.0.q_proj": 2, "ff_proj": 1}, alpha_pattern={"k_proj": 3, "blocks.0.q_proj": 5},
    ),
    "layers": dict(r=2, lora_alpha=6, target_modules=["k_proj", "up_proj"], layers_to_transform=[1], layers_pattern="blocks"),
    "bf16": dict(r=4, lora_alpha=4, target_modules=EVERYTHING),
}


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config["d_model"]))
        self.eps = config["rms_norm_eps"]

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, theta):  # (heads, positions, width), halves rotated against each other
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        d, ff = config["d_model"], config["mlp_hidden_size"]
        kv = d // config["n_heads"] * config["n_kv_heads"]
        self.attn_norm, self.ff_norm = Norm(config), Norm(config)
        for name, (i, o) in {
            "q_proj": (d, d), "k_proj": (d, kv), "v_proj": (d, kv), "attn_out": (d, d),
            "ff_proj": (d, ff), "up_proj": (d, ff), "ff_out": (ff, d),
        }.items():
            setattr(self, name, nn.Linear(i, o, bias=False))

    def forward(self, x):  # (positions, d_model); every position sees all
        heads, kv_heads = self.config["n_heads"], self.config["n_kv_heads"]
        h = self.attn_norm(x)

        def split(y, n):
            return y.view(len(x), n, -1).transpose(0, 1)

        q = rotate(split(self.q_proj(h), heads), self.config["rope_theta"])
        k = rotate(split(self.k_proj(h), kv_heads), self.config["rope_theta"])
        k, v = (y.repeat_interleave(heads // kv_heads, 0) for y in (k, split(self.v_proj(h), kv_heads)))
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.attn_out((scores @ v).transpose(0, 1).reshape(len(x), -1))
        h = self.ff_norm(x)
        return x + self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))


class Llada(nn.Module):
    """`model.transformer.…`, as in LLaDA's checkpoints."""

    def __init__(self, config):
        super().__init__()
        d, vocab = config["d_model"], config["embedding_size"]
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocab, d),
            "blocks": nn.ModuleList([Block(config) for _ in range(config["n_layers"])]),
            "ln_f": Norm(config),
            "ff_out": nn.Linear(d, vocab, bias=False),
        })

    def forward(self, ids):
        parts = self.model.transformer
        x = parts["wte"](ids)
        for block in parts["blocks"]:
            x = block(x)
        return parts["ff_out"](parts["ln_f"](x))


def logits(folder, model):
    model.eval()
    with torch.no_grad():
        rows = [model(torch.tensor(ids)).tolist() for ids in json.loads((folder / "ids.json").read_text())]
    (folder / "logits.json").write_text(json.dumps([[[float(f"{x:.7g}") for x in r] for r in row] for row in rows]))


def adapt(model, folder):
    model = PeftModel.from_pretrained(model, str(folder / "adapter"))
    # PEFT only warns of what it ignores or misses; here every tensor must have arrived, and no other be there.
    file, loaded = load_file(folder / "adapter" / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    assert set(file) == set(loaded), set(file) ^ set(loaded)
    assert all(torch.equal(file[name].float(), loaded[name].float()) for name in file)
    return model


def names(folder):
    model = nn.Module()
    for name, tensor in load_file(folder / "model.safetensors").items():
        path, kind = name.rsplit(".", 1)
        if kind != "weight" or tensor.dim() != 2:
            continue
        *above, last = path.split(".")
        parent = model
        for part in above:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, nn.Linear(tensor.shape[1], tensor.shape[0], bias=False))
    adapt(model, folder)


def load(folder):
    model = Llada(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    before = model.model.transformer["blocks"][0].q_proj.weight.clone()
    model = adapt(model, folder)
    base = model.base_model.model.model.transformer["blocks"][0].q_proj
    assert torch.equal(before, getattr(base, "base_layer", base).weight)
    return model


def make(folder, kind):
    torch.manual_seed(sorted(KINDS).index(kind))
    folder.mkdir(parents=True, exist_ok=True)
    model = Llada(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "ids.json").write_text(json.dumps(IDS))
    model = get_peft_model(model, LoraConfig(init_lora_weights=False, **KINDS[kind]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
            if kind == "bf16":
                parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(folder / "adapter"))
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    logits(folder, load(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders = [Path(folder) for folder in sys.argv[2:]]
    if sys.argv[1] == "make":
        for kind in KINDS:
            make(folders[0] / kind, kind)
    elif sys.argv[1] == "names":
        for folder in folders:
            names(folder)
    else:
        for folder in folders:
            logits(folder, load(folder))
