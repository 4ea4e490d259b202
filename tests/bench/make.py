"""The models that the comparison runs on, in our checkpoint format: `make.py OUT` writes OUT/llada, of LLaDA's kind with
random weights, for speed alone (unless it is there), and OUT/starter, the built-in model as a folder for `loop.py`."""

import json
import shutil
import struct
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/golden/llada"
SHAPE = {"d_model": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "mlp_hidden_size": 2048}
VOCABULARY = 32_000


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for tensor in tensors.values():
            file.write(tensor.numpy().tobytes())
    partial.rename(path)


def llada(folder):
    """Weights that keep the residual stream near unit size and make logits a few units apart, as a trained model's are:
    with logits all alike the two sides would break ties and not compare."""
    d, mlp = SHAPE["d_model"], SHAPE["mlp_hidden_size"]
    random = torch.Generator().manual_seed(1)

    def matrix(rows, columns, scale=1.0):
        return torch.randn(rows, columns, generator=random) * (scale / columns**0.5)

    tensors = {"model.transformer.wte.weight": torch.randn(VOCABULARY, d, generator=random)}
    for layer in range(SHAPE["n_layers"]):
        block = f"model.transformer.blocks.{layer}."
        for name in ("q_proj", "k_proj", "v_proj"):
            tensors[block + name + ".weight"] = matrix(d, d)
        tensors[block + "attn_out.weight"] = matrix(d, d, 0.5)
        for name in ("ff_proj", "up_proj"):
            tensors[block + name + ".weight"] = matrix(mlp, d)
        tensors[block + "ff_out.weight"] = matrix(d, mlp, 0.5)
        for name in ("attn_norm", "ff_norm"):
            tensors[block + name + ".weight"] = torch.ones(d)
    tensors["model.transformer.ln_f.weight"] = torch.ones(d)
    tensors["model.transformer.ff_out.weight"] = matrix(VOCABULARY, d, 3.0)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((TINY / "config.json").read_text())
    config |= SHAPE | {"vocab_size": VOCABULARY, "embedding_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    # Prompts are sent as ids, so any tokenizer will do.
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TINY / name, folder / name)
    write_safetensors(folder / "model.safetensors", tensors)


def starter(folder):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests/bench/starter.json", folder / "config.json")
    shutil.copy(ROOT / "src/starter/model.safetensors", folder / "model.safetensors")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    starter(out / "starter")
    if not (out / "llada/model.safetensors").exists():
        llada(out / "llada")
