"""The server against the plain PyTorch loop on the same prompts: all sides in turn, three times; medians and ratios.

    compare.py LACUNA MODELS [--rounds 3] [--only NAME] [--threads N] [--weights f32,bf16,int8] [--dtype f32,bf16]
               [--softmax f64|model] [--json FILE] [-- flags of `lacuna serve`]

The loop runs one prompt after another, as its authors do, in each of the types of --dtype; the server gets the prompts
from so many clients, over HTTP, with each of --weights. What is compared is completions a second. Tokens must be the same
ones (up to the end of the text, where the server stops early) when both compute in f32; if any differ, the exit status is
1.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CAPTIONS = [
    "a red circle",
    "a large purple triangle",
    "three green squares",
    "a yellow circle above a green triangle",
    "a blue cross left of a red square",
    "a small orange circle",
    "two purple crosses",
    "a green circle below a yellow square",
]


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def ids(draw, n):
    """Ids of no meaning, none of them special in the tiny tokenizer."""
    return [draw.randrange(300, 32_000) for _ in range(n)]


def llada_text(draw, prompt, tokens):
    sizes = {"max_tokens": tokens, "steps": tokens // 2, "block_length": 32}
    return "/generate/text", {"prompt_token_ids": ids(draw, prompt), "temperature": 0, "seed": 1, **sizes}


def starter_text(draw):
    x, y = draw.randrange(2, 50), draw.randrange(2, 50)
    question = f"Tom has {x} apples. He buys {y} more. How many apples does he have now?"
    sizes = {"max_tokens": 32, "steps": 16, "block_length": 8}
    return "/generate/text", {"prompt": question, "temperature": 0, "seed": 1, **sizes}


def starter_image(caption):
    how = {"steps": 64, "guidance_scale": 1.0, "temperature": 0, "schedule": "cosine", "sampler": {"kind": "maskgit"}}
    return "/generate/image", {"prompt": caption, "seed": 1, **how}


def scenarios():
    """Name, model, clients, requests. Requests for many clients differ in length, as those of people do."""
    draw = random.Random(1)
    mixed = [(64, 64), (32, 32), (96, 64), (48, 96), (80, 32), (64, 96), (128, 64), (40, 32)]
    yield "llada 1", "llada", 1, [llada_text(draw, 64, 64) for _ in range(3)]
    yield "llada 8 mixed", "llada", 8, [llada_text(draw, *sizes) for sizes in mixed]
    yield "starter text 1", "starter", 1, [starter_text(draw) for _ in range(16)]
    yield "starter text 32", "starter", 32, [starter_text(draw) for _ in range(64)]
    yield "starter images 8", "starter", 8, [starter_image(caption) for caption in CAPTIONS]


class Server:
    def __init__(self, lacuna, model, weights, threads, flags):
        self.data = tempfile.TemporaryDirectory()
        command = [lacuna, "serve", "--port", "0", "--data-dir", self.data.name, "--model", model]
        command += ["--weights", weights, "--log", "warn", *flags]
        command += ["--threads", str(threads)] if threads else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split()[0]
                self.ends = ask(self.url + "/info")["model"]["eos_ids"]
                return
        raise SystemExit("the server ended without listening")

    def run(self, requests, clients):
        """Seconds that all took, and the answers."""

        def send(request):
            path, body = request
            wanted = "codes" if path.endswith("image") else "token_ids"
            return ask(self.url + path, {**body, "return": [wanted], "store": False})

        with ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            answers = list(pool.map(send, requests))
            return time.perf_counter() - start, answers

    def prompts(self, requests, facts):
        """The requests as the loop takes them: the ids of a prompt are what the log has of it."""
        prompts = []
        for path, body in requests:
            # As few steps as possible: what is wanted is the prompt.
            text = path.endswith("text")
            steps = body["max_tokens"] // body["block_length"] if text else 1
            answer = ask(self.url + path, {**body, "steps": steps, "store": True})
            made = (answer["completions"] if text else answer["images"])[0]["id"]
            seen = ask(f"{self.url}/completions/{made}")["prompt_token_ids"]
            if text:
                prompts.append({"ids": seen, **{k: body[k] for k in ("max_tokens", "steps", "block_length")}})
            else:
                frame = {k: facts[k] for k in ("after", "empty", "cells")}
                prompts.append({"before": seen, **frame, **{k: body[k] for k in ("steps", "guidance_scale")}})
        return prompts

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.data.cleanup()


def loop(args, folder, dtype, prompts):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(prompts, file)
        file.flush()
        command = [sys.executable, HERE / "loop.py", folder, file.name, "--dtype", dtype]
        command += ["--softmax", args.softmax, *(["--threads", str(args.threads)] if args.threads else [])]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def same(answers, completions, ends):
    """How many of the answers are the loop's, which does not stop at the end of a text."""
    count = 0
    for answer, completion in zip(answers, completions):
        theirs = completion["tokens"]
        if "images" in answer:
            ours = answer["images"][0]["codes"]
        else:
            ours = answer["completions"][0]["token_ids"]
            theirs = theirs[: next((at for at, token in enumerate(theirs) if token in ends), None)]
        count += ours == theirs
    return count


def compare(args, name, model, clients, requests):
    """One result for every pair of the server's weights and the loop's type."""
    folder = args.models / model
    facts = json.loads((folder / "config.json").read_text())
    served = "starter" if model == "starter" else str(folder)
    servers, loops = {}, {dtype: [] for dtype in args.dtype}
    try:
        for weights in args.weights:
            servers[weights] = Server(args.lacuna, served, weights, args.threads, args.flags)
        prompts = servers[args.weights[0]].prompts(requests, facts)
        runs = {weights: [] for weights in servers}
        for server in servers.values():
            server.run(requests[:1], 1)
        for _ in range(args.rounds):
            for dtype, rounds in loops.items():
                rounds.append(loop(args, folder, dtype, prompts))
            for weights, server in servers.items():
                runs[weights].append(server.run(requests, clients))
        ends = next(iter(servers.values())).ends
    finally:
        for server in servers.values():
            server.stop()
    return [result(name, clients, weights, dtype, runs[weights], loops[dtype], ends)
            for weights in args.weights for dtype in args.dtype]


def result(name, clients, weights, dtype, runs, loops, ends):
    rounds = [{"lacuna_s": seconds, "torch_s": reference["seconds"],
               "same": same(answers, reference["completions"], ends)}
              for (seconds, answers), reference in zip(runs, loops)]
    n = len(runs[0][1])
    median = lambda key: statistics.median(one[key] for one in rounds)
    ratios = [one["torch_s"] / one["lacuna_s"] for one in rounds]
    return {"name": name, "clients": clients, "completions": n, "weights": weights, "dtype": dtype,
            "torch": loops[0]["torch"], "threads": loops[0]["threads"], "rounds": rounds,
            "lacuna_per_s": n / median("lacuna_s"), "torch_per_s": n / median("torch_s"),
            "ratio": statistics.median(ratios), "ratios": ratios, "same": min(one["same"] for one in rounds)}


def several(*known):
    """A list with commas of some of `known`."""

    def parse(text):
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
        return text.split(",")

    return parse


def main():
    parser = argparse.ArgumentParser(epilog="Flags of `lacuna serve` follow --.")
    parser.add_argument("lacuna")
    parser.add_argument("models", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="scenarios whose name begins so")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", type=several("f32", "bf16", "int8"), default=["f32"], help="the server's")
    parser.add_argument("--dtype", type=several("f32", "bf16"), default=["f32"], help="the loop's")
    parser.add_argument("--softmax", choices=["f64", "model"], default="f64")
    parser.add_argument("--json", type=Path)
    # What follows -- is the server's: argparse would not take it after options.
    ours = sys.argv[1:]
    at = ours.index("--") if "--" in ours else len(ours)
    args = parser.parse_args(ours[:at])
    args.flags = ours[at + 1 :]
    results = []
    row = "{:<18} {:>7} {:>7} {:>6} {:>9} {:>9} {:>7}   {:<20} {:>9}"
    print(row.format("scenario", "clients", "weights", "torch", "lacuna /s", "torch /s", "ratio", "of single rounds",
                     "identical"))
    for name, model, clients, requests in scenarios():
        if args.only and not name.startswith(args.only):
            continue
        for one in compare(args, name, model, clients, requests):
            results.append(one)
            spread = " ".join(f"{ratio:.2f}" for ratio in one["ratios"])
            print(row.format(name, clients, one["weights"], one["dtype"], f"{one['lacuna_per_s']:.2f}",
                             f"{one['torch_per_s']:.2f}", f"{one['ratio']:.2f}", spread,
                             f"{one['same']}/{one['completions']}"), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    exact = [one for one in results if one["weights"] == one["dtype"] == "f32"]
    if any(one["same"] < one["completions"] for one in exact):
        raise SystemExit("not all completions are identical; a near tie may fall otherwise on another machine")


if __name__ == "__main__":
    main()
