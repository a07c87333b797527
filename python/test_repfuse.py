"""What the package promises, checked on the installed one: `python test_repfuse.py FIXTURES PAGE...`.

The pages are Markdown; what they show of it must run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import typing
from pathlib import Path

import repfuse
from repfuse import _command, _documents

FIXTURES = Path(sys.argv[1]).resolve()
PAGES = [Path(page).resolve() for page in sys.argv[2:]]
TRAIN = FIXTURES / "plain.train.safetensors"
assert "torch" not in sys.modules and "safetensors" not in sys.modules, "importing the package imports neither"


def fails(*part, with_=repfuse.Error):
    """A context in which an error must be raised whose text has all parts."""

    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, _):
            assert kind is not None, f"nothing was raised; expected {part}"
            assert issubclass(kind, with_), kind
            assert all(text in str(error) for text in part), str(error)
            self.error = error
            return True

    return Failing()


def test_files(folder):
    out = folder / "deploy.safetensors"
    summary = repfuse.fuse(TRAIN, out, verify=True)
    assert summary["recipe"] == "repvgg" and summary["verified"] and out.is_file(), summary
    verdict = repfuse.verify(TRAIN, out)
    assert verdict["accepted"] and len(verdict["blocks"]) == summary["blocks_fused"]
    wrong = repfuse.verify(TRAIN, out, bn_eps=1e-2)
    assert not wrong["accepted"], "a wrong eps is an answer, not an error"
    assert repfuse.inspect(TRAIN)["blocks"][0]["name"] == summary["blocks"][0]["name"]
    half = repfuse.fuse(str(TRAIN), str(folder / "half.safetensors"), dtype="f16", only=[summary["blocks"][0]["name"]])
    assert half["blocks_fused"] == 1 and half["blocks"][0]["outputs"][0]["dtype"].lower() == "f16", half


def test_errors(folder):
    with fails("deploy.safetensors", "exists") as failing:
        repfuse.fuse(TRAIN, folder / "deploy.safetensors")
    assert failing.error.exit_status == 2 and failing.error.causes
    with fails("nothing.safetensors"):
        repfuse.inspect(folder / "nothing.safetensors")
    with fails("--no-such-option"):
        repfuse.inspect(TRAIN, no_such_option=True)


def same_fields(of, schema, defs, where):
    """Whether a typed dict, and those in it, have the fields of a schema."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rsplit("/", 1)[-1]]
    fields = typing.get_type_hints(of)
    assert set(fields) == set(schema["properties"]), (where, set(fields) ^ set(schema["properties"]))
    for name, field in fields.items():
        inner = schema["properties"][name]
        inner = next((x for x in inner.get("anyOf", []) if x != {"type": "null"}), inner)
        inner = inner.get("items", inner)
        while getattr(field, "__args__", None):
            field = field.__args__[0]
        if isinstance(field, type) and hasattr(field, "__total__"):
            same_fields(field, inner, defs, f"{where}.{name}")


def test_documents(folder):
    for name, of in [("fuse", _documents.FuseSummary), ("verify", _documents.Verdict), ("inspect", _documents.Inspection)]:
        schema = json.loads(subprocess.run([_command.find(), "schema", name], capture_output=True, check=True).stdout)
        same_fields(of, schema, schema.get("$defs", {}), name)


def test_command(folder):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "repfuse", *arguments], capture_output=True, text=True)

    assert run("--version").stdout.startswith("repfuse ")
    assert run("fuse", "a").returncode == 2
    assert run("verify", str(TRAIN), str(folder / "deploy.safetensors"), "--bn-eps", "1e-2").returncode == 1


def network(torch):
    """A network of one's own with blocks of diverse branches, which no recipe knows."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.wide = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c, eps=1e-3))
            self.point = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))
            self.mean = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(c))
            self.skip = nn.BatchNorm2d(c)

        def forward(self, x):
            return functional.silu(self.wide(x) + self.point(x) + self.mean(x) + self.skip(x) + x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.eval()


def plain_block(torch, width=3):
    return torch.nn.Sequential(torch.nn.Conv2d(width, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()


def masked(torch):
    class Masked(torch.nn.Module):
        """Gives an infinite number, and none that is a number."""

        def forward(self, x):
            return (x.relu() - 1e9).sqrt(), torch.log(x.relu() * 0)

    return Masked()


def test_module(folder):
    try:
        import torch
    except ImportError:
        print("python: modules not tested, there is no PyTorch")
        return
    model, x = network(torch), torch.randn(2, 3, 16, 16)
    fast = repfuse.fuse(model, (x,))
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), rtol=1e-4, atol=1e-5)
    operators = [str(node.target) for node in fast.graph.nodes if node.op == "call_function"]
    assert sum("conv2d" in name for name in operators) == 3, operators
    assert not any("batch_norm" in name or "pool2d" in name and "adaptive" not in name for name in operators), operators
    batch = torch.export.Dim("batch", min=1, max=64)
    any_batch = repfuse.fuse(model, (x,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        assert any_batch(torch.randn(5, 3, 16, 16)).shape == (5, 5)
    assert not fast.training and fast.eval() is fast
    whole = torch.nn.Sequential(repfuse.fuse(plain_block(torch), (x,)), plain_block(torch, 8)).eval()
    with torch.no_grad():
        assert torch.allclose(repfuse.fuse(whole, (x,))(x), whole(x), rtol=1e-4, atol=1e-5), "a fused module is a part like any other"
    with fails("no training form", with_=NotImplementedError):
        fast.train()
    repfuse.fuse(torch.nn.Sequential(plain_block(torch), masked(torch)).eval(), (x,))
    with fails("training mode", "model.eval()"):
        repfuse.fuse(network(torch).train(), (x,))
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    assert torch.equal(repfuse.fuse(plain, (x,))(x), plain(x)), "where nothing can be folded, the module is copied"
    with fails("expected a path or a torch.nn.Module", with_=TypeError):
        repfuse.fuse({"weight": x}, (x,))


def test_record(folder):
    try:
        import torch
    except ImportError:
        return
    model, x = network(torch), torch.randn(1, 3, 16, 16)
    names = repfuse.record(model, (x,), folder / "sample.safetensors", blocks=["1", "2"])
    assert names == ["1", "2"]
    text = (folder / "sample.safetensors").read_bytes()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    assert sorted(header) == ["1.input", "1.output", "2.input", "2.output"]
    start, end = header["2.input"]["data_offsets"]
    base = 8 + int.from_bytes(text[:8], "little")
    stored = torch.frombuffer(bytearray(text[base + start : base + end]), dtype=torch.float32).view(header["2.input"]["shape"])
    with torch.no_grad():
        assert torch.equal(stored, model[:2](x))
    assert repfuse.record(model, (x,), folder / "found.safetensors") == ["1", "2"]
    with fails("no module `9`"):
        repfuse.record(model, (x,), folder / "none.safetensors", blocks=["9"])


def test_pages(folder):
    """Each page from top to bottom, in a folder with the files that it names."""
    try:
        import torch
    except ImportError:
        print("python: pages not tested, there is no PyTorch")
        return
    for page in PAGES:
        here = folder / page.stem
        here.mkdir()
        names = {"model": network(torch), "x": torch.randn(1, 3, 16, 16)}
        (here / "train.safetensors").write_bytes(TRAIN.read_bytes())
        torch.export.save(torch.export.export(names["model"], (names["x"],)), str(here / "model.pt2"))
        from repfuse import _record

        _record.save(names["model"].state_dict(), here / "trained.safetensors")
        before = os.getcwd()
        os.chdir(here)
        examples = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        # Others show what to do with the file in other libraries.
        examples = [example for example in examples if "repfuse" in example]
        assert examples, f"{page.name} shows nothing of repfuse"
        for example in examples:
            exec(compile(example, f"{page.name}: {example.splitlines()[0]}", "exec"), names)
        os.chdir(before)
        if "fast" in names:
            with torch.no_grad():
                assert torch.allclose(names["fast"](names["x"]), names["model"](names["x"]), rtol=1e-4, atol=1e-5)
            convs = sum("conv" in str(node.target) for node in names["fast"].graph.nodes)
            print(f"   {page.name}: {len(examples)} examples, {convs} convs are left")


def main():
    with tempfile.TemporaryDirectory() as folder:
        for name, test in list(globals().items()):
            if name.startswith("test_"):
                test(Path(folder))
                print(f"ok {name}")


main()
