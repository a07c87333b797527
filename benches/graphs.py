"""Counts convs and norms of exported networks, and times them, before and after `repfuse fuse`.

Usage: python benches/graphs.py REPFUSE [MODEL …]
Each timm model gets random weights and statistics and is exported to ONNX in training form, with every norm in it. Latencies are
medians of 15 runs of onnxruntime on one thread. Needs timm, onnx, onnxruntime and onnxsim.
"""

import collections
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
import onnxsim
import timm
import torch

MODELS = ["mobileone_s0", "fastvit_t8", "repvgg_a0"]


def export(name, path):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.6, 1.6)
    size = model.default_cfg["input_size"][-1]
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        keep = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(model, image, path, training=keep, dynamo=False, verbose=False)
    return image.numpy()


def counts(model):
    found = collections.Counter(node.op_type for node in model.graph.node)
    return f"{found['Conv']} + {found['BatchNormalization']}"


def milliseconds(path, image):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    feed = {session.get_inputs()[0].name: image}
    output, times = session.run(None, feed)[0], []
    for _ in range(15):
        begin = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - begin)
    return output, 1e3 * statistics.median(times)


def main():
    repfuse, *models = sys.argv[1:]
    print("| model | convs + norms | after onnxsim | after repfuse | latency |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in models or MODELS:
            slow, fast = (str(pathlib.Path(folder, f"{end}.onnx")) for end in ("slow", "fast"))
            image = export(name, slow)
            command = [repfuse, "fuse", slow, fast, "--force", "--verify", "--quiet"]
            subprocess.run(command, check=True)
            exported = onnx.load(slow)
            simplified, _ = onnxsim.simplify(exported)
            (before, old), (after, new) = milliseconds(slow, image), milliseconds(fast, image)
            assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
            columns = [counts(exported), counts(simplified), counts(onnx.load(fast))]
            latency = f"{old:.1f} → {new:.1f} ms ({old / new:.1f} ×)"
            print("|", " | ".join([name, *columns, latency]), "|", flush=True)


if __name__ == "__main__":
    main()
