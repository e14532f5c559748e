"""Exports trained models and compares them in llama.cpp and transformers with what they were trained as.

    cargo xtask interop DATA           # makes all that this needs, then calls it

Prints tables and writes interop/record/DATE.json.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil

import numpy as np
import strings
from programs import Llama, Ours, Transformers

HERE = pathlib.Path(__file__).parent
PROMPTS = """The
Once upon a time
In the beginning
def main():
fn new(
SELECT * FROM
The result of the experiment
import numpy as np
This agreement
She looked at him and
The city of
A function is
In mathematics, the
class Parser:
It is not known
The patient was
Water is
## Motivation
He said that
There are several ways to""".splitlines()
GGUF = ["f32", "f16", "tq2_0", "tq1_0", "q2_0"]
HF = {
    "autobitlinear": ["--linear-class", "autobitlinear"],
    "bitlinear": ["--linear-class", "bitlinear"],
    "online": ["--mode", "online"],
}


def main():
    args = arguments()
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ["xllamacpp", "transformers", "torch"]},
        "models": {},
    }
    path = HERE / "record" / f"{record['date']}.json"
    if path.exists():
        record["models"] = json.loads(path.read_text())["models"]
    for name, run in [("bitnet", args.bitnet), ("llama", args.llama), ("qwen2", args.qwen2)]:
        if run:
            work = pathlib.Path(args.work) / name
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            record["models"][name] = compare(Ours(args.release, run, work), name, work, args.texts)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", default="target/release", help="folder of the program and its examples")
    parser.add_argument("--bitnet", help="run folder of a model with sub-norms")
    parser.add_argument("--llama", help="run folder of a model without")
    parser.add_argument("--qwen2", help="run folder of a model without, but with biases of queries, keys and values")
    parser.add_argument("--work", default="target/interop", help="folder for what is exported")
    parser.add_argument("--texts", type=int, default=4, help="contexts of validation text")
    return parser.parse_args()


def compare(ours, name, work, count):
    # llama.cpp has no room for a token behind a whole context.
    texts = [ids[:-1] for ids in ours.texts()[:count]]
    ids = np.concatenate(texts)
    trained, floats = ours.log_probabilities(texts), ours.log_probabilities(texts, "floats")
    vocab, rows = trained.shape[1], []
    print(f"\n{name}: {len(ids)} tokens, loss {loss(texts, trained):.4f}, in floats {loss(texts, floats):.4f}")
    continuations = {"ours": [ours.continuation(prompt, 24) for prompt in PROMPTS]}
    tokens = None
    for kind in GGUF:
        path = work / f"{name}-{kind}.gguf"
        exported = ours.export(path, "--to", "gguf", "--type", kind)
        llama = Llama(path, vocab)
        found = llama.log_probabilities(texts)
        rows.append(row(f"llama.cpp {kind}", texts, trained, floats, found, exported["bytes"]))
        if kind == "tq2_0":
            continuations["llama.cpp tq2_0"] = [llama.continuation(prompt, 24) for prompt in PROMPTS]
            tokens = llama.ids(strings.all()), llama.ids(strings.all(), parse_special=True)
        del llama
    # AutoBitLinear cannot add a bias to what it has unpacked.
    classes = {kind: options for kind, options in HF.items() if name != "qwen2" or kind != "autobitlinear"}
    for kind, options in classes.items():
        path = work / f"{name}-{kind}"
        exported = ours.export(path, "--to", "hf", *options)
        program = Transformers(path)
        found = program.log_probabilities(texts)
        rows.append(row(f"transformers {kind}", texts, trained, floats, found, exported["bytes"]))
        if kind == next(iter(classes)):
            continuations["transformers"] = [program.continuation(prompt, 24) for prompt in PROMPTS]
            tokens += program.ids(strings.all()), program.ids(strings.all(), parse_special=True)
        del program
    return {
        "loss": loss(texts, trained),
        "loss_in_floats": loss(texts, floats),
        "tokens": len(ids),
        "programs": rows,
        "ids": compare_ids(ours.ids(strings.all()), *tokens),
        "continuations": show(continuations),
    }


def loss(texts, rows):
    """Mean over predicted tokens, of which the first of each text is none."""
    nats, at = [], 0
    for ids in texts:
        nats += [-rows[at + i, ids[i + 1]] for i in range(len(ids) - 1)]
        at += len(ids)
    return float(np.mean(nats))


def row(program, texts, trained, floats, found, size):
    """How far a program is from the model as trained, and from it with activations in floats."""
    same = {"program": program, "bytes": size}
    same["perplexity_ratio"] = float(np.exp(loss(texts, found) - loss(texts, trained)))
    for name, of in [("", trained), ("_of_floats", floats)]:
        same["top1" + name] = float(np.mean(of.argmax(-1) == found.argmax(-1)))
        same["divergence" + name] = float(np.mean((np.exp(of) * (of - found)).sum(-1)))
        same["largest_difference" + name] = float(np.abs(of - found).max())
    print(
        f"  {program:26} perplexity x{same['perplexity_ratio']:.5f}  top-1 {100 * same['top1']:6.2f} %"
        f"  KL {same['divergence']:.1e}  max {same['largest_difference']:.3f}"
        f" | of floats: KL {same['divergence_of_floats']:.1e}  max {same['largest_difference_of_floats']:.1e}"
        f" | {size} bytes",
        flush=True,
    )
    return same


def compare_ids(ours, llama, llama_special, transformers, transformers_special):
    """Strings on which ids are equal; the first that is not."""
    result = {"strings": len(ours)}
    pairs = {
        "ours_llama": (ours, llama),
        "ours_transformers": (ours, transformers),
        "llama_transformers_with_special": (llama_special, transformers_special),
    }
    for name, (a, b) in pairs.items():
        differ = [at for at in range(len(a)) if a[at] != b[at]]
        result[name] = len(a) - len(differ)
        for at in differ[:3]:
            print(f"  {name}: {strings.all()[at]!r}: {a[at]} and {b[at]}")
    print(f"  ids: {result}", flush=True)
    return result


def show(continuations):
    table = []
    for at, prompt in enumerate(PROMPTS):
        table.append({"prompt": prompt, **{name: texts[at] for name, texts in continuations.items()}})
        print(f"  {prompt!r}")
        for name, texts in continuations.items():
            same = len(os.path.commonprefix([texts[at], continuations["ours"][at]]))
            print(f"    {name:16} {texts[at]!r}" + ("" if name == "ours" else f"  ({same} characters equal)"))
    return table


if __name__ == "__main__":
    main()
