"""Times fusing with this project, with a copy, with candle and with the authors' libraries: whole processes, in turn.

Usage: python benches/peers.py REPFUSE [--candle CANDLE] [--rounds N] [--only TEXT] [--work DIR]
where CANDLE is what `cargo build --release --manifest-path benches/candle/Cargo.toml` builds, and Python has timm, ultralytics and
safetensors. Models get random weights and statistics. Each time is a median; each ratio the median of the ratios of the rounds.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

MODELS = [
    ("timm", "repvgg_b3"),
    ("timm", "repvgg_a2"),
    ("timm", "mobileone_s4"),
    ("timm", "fastvit_ma36"),
    ("ultralytics", "yolov8l"),
    ("ultralytics", "yolov10l"),
    ("ultralytics", "yolo11x"),
]
# The libraries take seconds, most of them to be imported.
SLOW_ROUNDS = 3


def network(library, name):
    if library == "timm":
        import timm

        return timm.create_model(name).eval()
    from ultralytics import YOLO

    return YOLO(f"{name}.yaml", verbose=False).model.eval()


def make(library, name, path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = network(library, name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def convert(library, name, path, out):
    """What a user of the library does today: build the network, load it, fuse it, save it."""
    import torch
    from safetensors.torch import load_file, save_file

    with torch.no_grad():
        model = network(library, name)
        model.load_state_dict(load_file(path))
        if library == "timm":
            from timm.models import reparameterize_model

            model = reparameterize_model(model, inplace=True)
        else:
            model = model.fuse(verbose=False)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out)


def timed(command, out):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    elapsed = time.perf_counter() - start
    os.remove(out)
    return elapsed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("repfuse")
    parser.add_argument("--candle", help="the program built from benches/candle")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="measure the models whose name contains this")
    parser.add_argument("--work", type=pathlib.Path, default="/dev/shm/repfuse-peers")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    this = [sys.executable, __file__]
    print("| model | MB | `cp` | repfuse | repfuse / `cp` | candle / repfuse | its library / repfuse |")
    print("|---|---|---|---|---|---|---|")
    for library, name in MODELS:
        if options.only not in name:
            continue
        path, out = options.work / f"{name}.safetensors", options.work / "out.safetensors"
        if not path.exists():
            # In a process of its own, for a process whose memory is large is slow to start others.
            subprocess.run([*this, "make", library, name, path], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "cp": ["cp", path, out],
            "repfuse": [options.repfuse, "fuse", "--quiet", path, out],
            "library": [*this, "convert", library, name, path, out],
        }
        if options.candle and name.startswith("repvgg"):
            commands["candle"] = [options.candle, path, out]
        times = {who: [] for who in commands}
        for round in range(options.rounds + 1):
            for who, command in commands.items():
                if who == "library" and not 0 < round <= SLOW_ROUNDS:
                    continue
                elapsed = timed(command, out)
                # The first round warms up.
                if round:
                    times[who].append(elapsed)

        def ratio(who, to):
            if who not in times:
                return ""
            rounds = sorted(a / b for a, b in zip(times[who], times[to]))
            return f"{statistics.median(rounds):.2f} ({rounds[0]:.2f} to {rounds[-1]:.2f})"

        seconds = [f"{statistics.median(times[who]):.3f} s" for who in ("cp", "repfuse")]
        ratios = [ratio("repfuse", "cp"), ratio("candle", "repfuse"), ratio("library", "repfuse")]
        print("|", " | ".join([f"{library} {name}", f"{path.stat().st_size / 1e6:.1f}", *seconds, *ratios]), "|", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(*sys.argv[2:])
    elif sys.argv[1:2] == ["convert"]:
        convert(*sys.argv[2:])
    else:
        main()
