"""How much longer people wait when four times what the device can do is asked for: interactive requests alone, then beside
batch requests and rollouts, over HTTP.

    overload.py LACUNA [--seconds 20] [--rate 5] [--times 4] [-- flags of `lacuna serve`]

First the server's capacity is measured with batch requests of eight texts, then people come at --rate a second, as a
Poisson process, alone; then the same people beside batch requests of --times the capacity, of which most are refused,
and rollouts that wait at all times. Prints latencies of the people and their ratios. Load comes from this machine, too, so
that its processors have more to do than a server's would; keep --rate low.
"""

import argparse
import json
import random
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request

from compare import Server

QUESTION = "Tom has {} apples. He buys {} more. How many apples does he have now?"
GROUP = 8


def ask(url, draw, n=1, priority="interactive"):
    """The status of one request for `n` texts."""
    body = {"prompt": QUESTION.format(draw.randrange(2, 50), draw.randrange(2, 50)), "n": n, "priority": priority,
            "seed": draw.randrange(1 << 30), "temperature": 1, "store": False}
    request = urllib.request.Request(url + "/generate/text", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return 200
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


class Load:
    """Threads that ask again and again until they are told to stop; `every` is the mean pause between two requests."""

    def __init__(self, url, threads, priority, every=None):
        self.over, self.statuses = threading.Event(), []
        args = [(url, random.Random(seed), priority, every) for seed in range(threads)]
        self.threads = [threading.Thread(target=self.run, args=one) for one in args]
        for thread in self.threads:
            thread.start()

    def run(self, url, draw, priority, every):
        due = time.perf_counter()
        while not self.over.is_set():
            if every:
                due += draw.expovariate(1 / every)
                self.over.wait(max(0.0, due - time.perf_counter()))
            self.statuses.append(ask(url, draw, GROUP, priority))
            if self.statuses[-1] != 200 and not every:
                self.over.wait(0.2)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self.statuses


def people(url, rate, seconds):
    """Latencies of the people, from the moment each of them comes."""
    draw, latencies, threads = random.Random(7), [], []
    begun = due = time.perf_counter()

    def one(seed):
        start = time.perf_counter()
        status = ask(url, random.Random(seed))
        latencies.append((time.perf_counter() - start, status))

    while due - begun < seconds:
        due += draw.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(draw.randrange(1 << 30),)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if refused := [status for _, status in latencies if status != 200]:
        raise SystemExit(f"{len(refused)} interactive requests were refused: {refused[:5]}")
    return sorted(latency for latency, _ in latencies)


def main():
    parser = argparse.ArgumentParser(epilog="Flags of `lacuna serve` follow --.")
    parser.add_argument("lacuna")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=5)
    parser.add_argument("--times", type=float, default=4)
    ours = sys.argv[1:]
    at = ours.index("--") if "--" in ours else len(ours)
    args = parser.parse_args(ours[:at])
    server = Server(args.lacuna, "starter", "f32", None, ours[at + 1 :])
    url = server.url
    try:
        capacity = Load(url, 8, "batch")
        time.sleep(args.seconds / 2)
        texts = GROUP * capacity.stop().count(200) / (args.seconds / 2)
        alone = people(url, args.rate, args.seconds)
        offered = args.times * texts / GROUP
        # Enough threads that nobody who waits for an answer keeps the next from coming.
        begun, batch = time.perf_counter(), Load(url, 128, "batch", 128 / offered)
        rollouts = Load(url, 4, "rollout")
        time.sleep(1)
        beside = people(url, args.rate, args.seconds)
        statuses, asked = list(batch.statuses), time.perf_counter() - begun
        batch.stop()
        rolled = rollouts.stop()
    finally:
        server.stop()
    refused = len(statuses) - statuses.count(200)
    load = GROUP * len(statuses) / asked / texts
    print(f"capacity {texts:.0f} texts/s; then {len(statuses)} batch requests of {GROUP}, {load:.1f} times as much, {refused} "
          f"of them refused, and {len(rolled)} rollouts; {len(alone)} people alone, {len(beside)} beside them")
    for name, q in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)]:
        a, b = (statistics.quantiles(one, n=1000)[round(q * 1000) - 1] for one in (alone, beside))
        print(f"{name}: {a * 1e3:.1f} ms alone, {b * 1e3:.1f} ms beside, {b / a:.2f}x")


if __name__ == "__main__":
    main()
