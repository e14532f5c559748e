"""The programs that a model is compared in: ours, llama.cpp, transformers. Each gives log-probabilities for every
token of some texts, token ids of strings, and greedy continuations."""

import json
import pathlib
import subprocess
import urllib.error
import urllib.request

import numpy as np


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


class Ours:
    """The program and the two examples beside it."""

    def __init__(self, release, model, work):
        self.release, self.model, self.work = pathlib.Path(release), model, work

    def run(self, *command, text=None):
        done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout

    def texts(self):
        """Validation text, a list of ids for each context."""
        lines = self.run(self.release / "examples/logits", self.model)
        return [json.loads(line) for line in lines.splitlines()]

    def log_probabilities(self, texts, *mode):
        out = self.work / "ours.npy"
        lines = "".join(json.dumps(ids) + "\n" for ids in texts)
        self.run(self.release / "examples/logits", self.model, out, *mode, text=lines)
        return log_softmax(np.load(out))

    def ids(self, strings):
        lines = "".join(json.dumps(string) + "\n" for string in strings)
        found = self.run(self.release / "examples/tokens", pathlib.Path(self.model) / "tokenizer.json", text=lines)
        return [json.loads(line) for line in found.splitlines()]

    def continuation(self, prompt, count):
        options = ["--temperature", "0", "--top-p", "1", "--max-tokens", count, "--json"]
        lines = self.run(self.release / "tritrain", "generate", self.model, "--prompt", prompt, *options)
        return json.loads(lines.splitlines()[-1])["text"]

    def export(self, out, *options):
        lines = self.run(self.release / "tritrain", "export", self.model, "--out", out, "--json", *options)
        return json.loads(lines.splitlines()[-1])


class Llama:
    """llama.cpp, as the server inside of xllamacpp, with keys and values in f32."""

    def __init__(self, path, vocab):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
        # More than one would wait for each other on a busy machine.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.port = 0
        params.ui, params.verbosity = False, -1
        self.server, self.vocab = xllamacpp.Server(params), vocab

    def post(self, route, body):
        data = json.dumps(body).encode()
        url = f"{self.server.listening_address}{route}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"llama.cpp {route}: {error.read().decode()}") from error

    def log_probabilities(self, texts):
        rows = []
        for ids in texts:
            for end in range(1, len(ids) + 1):
                # An end of text that is drawn has no list: it is not drawn, which changes no probability.
                answer = self.post(
                    "/completion",
                    {
                        "prompt": ids[:end],
                        "n_predict": 1,
                        "n_probs": self.vocab,
                        "temperature": 0,
                        "ignore_eos": True,
                        "cache_prompt": True,
                    },
                )
                row = np.full(self.vocab, np.nan)
                for entry in answer["completion_probabilities"][0]["top_logprobs"]:
                    row[entry["id"]] = entry["logprob"]
                rows.append(row)
        return np.array(rows)

    def ids(self, strings, parse_special=False):
        body = {"add_special": False, "parse_special": parse_special}
        return [self.post("/tokenize", {"content": string, **body})["tokens"] for string in strings]

    def continuation(self, prompt, count):
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False}
        return self.post("/completion", body)["content"]


class Transformers:
    def __init__(self, path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def log_probabilities(self, texts):
        with self.torch.no_grad():
            logits = [self.model(self.torch.tensor([ids])).logits[0].float().numpy() for ids in texts]
        return log_softmax(np.concatenate(logits))

    def ids(self, strings, parse_special=False):
        options = {"add_special_tokens": False, "split_special_tokens": not parse_special}
        return [self.tokenizer(string, **options)["input_ids"] for string in strings]

    def continuation(self, prompt, count):
        ids = self.tokenizer(prompt, return_tensors="pt")
        ids.pop("token_type_ids", None)
        # Compiled, it would be compiled anew for lengths of text.
        with self.torch.no_grad(), self.torch.compiler.set_stance("force_eager"):
            out = self.model.generate(**ids, max_new_tokens=count, do_sample=False)
        return self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
