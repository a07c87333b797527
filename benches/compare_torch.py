"""Times convolutions with this project and with PyTorch, in turn, and prints GFLOP/s and the ratio of the times.

Usage: python benches/compare_torch.py BENCH [--rounds N] [--only TEXT]
where BENCH is the program that `cargo bench --bench conv --no-run` names. Both use two threads. The times of a round are the least of
some repeats; on a busy machine PyTorch's are still far off, since its threads wait for one another by spinning.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch

DTYPES = {"f32": torch.float32, "f64": torch.float64}


def repvgg_b3(dtype):
    """The training and the deploy form of every block, each on a map of 14 x 14."""
    channels, layers = 3, []
    for out, depth in [(64, 1), (192, 4), (384, 6), (768, 16), (2560, 1)]:
        for index in range(depth):
            stride = 2 if index == 0 else 1
            layers += [(dtype, channels, 14, out, kernel, stride, 1) for kernel in (3, 1, 3)]
            channels = out
    return layers


SINGLE = [
    (640, 14, 640, 3, 1, 1),
    (2560, 7, 2560, 3, 1, 1),
    (256, 28, 256, 3, 1, 1),
    (128, 56, 128, 3, 1, 1),
    (3, 224, 64, 3, 2, 1),
    (640, 14, 640, 1, 1, 1),
    (2560, 7, 2560, 1, 1, 1),
    (1024, 14, 1024, 1, 1, 1),
    (640, 14, 640, 3, 1, 4),
    (256, 28, 256, 3, 1, 32),
    (640, 14, 640, 3, 1, 640),
    (256, 56, 256, 3, 1, 256),
    (512, 14, 512, 7, 1, 512),
    (256, 28, 256, 3, 2, 256),
    (256, 14, 256, 31, 1, 256),
]


def torch_run(layers):
    prepared = []
    for dtype, channels, size, out, kernel, stride, groups in layers:
        x = torch.randn(1, channels, size, size, dtype=DTYPES[dtype])
        weight = torch.randn(out, channels // groups, kernel, kernel, dtype=DTYPES[dtype])
        prepared.append((x, weight, stride, kernel // 2, groups))

    def once():
        start = time.perf_counter()
        for x, weight, stride, padding, groups in prepared:
            torch.nn.functional.conv2d(x, weight, None, stride, padding, 1, groups)
        return time.perf_counter() - start

    def run(repeats):
        return min(once() for _ in range(repeats))

    return run


def flops(layer):
    _, channels, size, out, kernel, stride, groups = layer
    side = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return 2 * out * (channels // groups) * kernel**2 * side**2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="time the cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(2)
    child = subprocess.Popen(
        [options.bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "RAYON_NUM_THREADS": "2"},
    )
    cases = []
    for dtype in DTYPES:
        cases.append((f"repvgg_b3, both forms, {dtype}", repvgg_b3(dtype)))
        for shape in SINGLE:
            channels, size, out, kernel, stride, groups = shape
            name = f"{dtype} [1,{channels},{size},{size}] x [{out},{channels // groups},{kernel},{kernel}] stride {stride}"
            cases.append((name, [(dtype, *shape)]))
    print(f"{'':58} {'here':>7} {'torch':>7} GFLOP/s; torch's time / time here: median (quartiles)")
    for name, layers in cases:
        if options.only not in name:
            continue
        request = ";".join(" ".join(map(str, layer)) for layer in layers)
        peer = torch_run(layers)

        def here(repeats):
            child.stdin.write(f"{repeats} {request}\n")
            return float(child.stdout.readline())

        def turn(side, repeats):
            # The other side's threads go on spinning for a while after their work; wait until they sleep.
            time.sleep(0.02)
            return side(repeats)

        with torch.inference_mode():
            turn(here, 2), turn(peer, 2)
            repeats = max(1, int(0.05 / max(turn(here, 3), turn(peer, 3))))
            times = [(turn(here, repeats), turn(peer, repeats)) for _ in range(options.rounds)]
        work = sum(map(flops, layers)) / 1e9
        low, middle, high = statistics.quantiles([theirs / ours for ours, theirs in times], n=4)
        ours, theirs = (work / statistics.median(side) for side in zip(*times))
        print(f"{name:58} {ours:7.1f} {theirs:7.1f} {middle:6.2f} ({low:.2f}-{high:.2f})", flush=True)
    child.stdin.close()


if __name__ == "__main__":
    main()
