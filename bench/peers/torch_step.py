#!/usr/bin/env python3
"""Training steps of the same model in PyTorch, on the CPU: what `tritrain bench step` is compared with.

RMSNorm, RoPE, causal attention and a gated feed-forward block, as in tritrain; with --mode bitnet also the
norms in front of every linear layer, ternary weights and int8 activations, fake-quantised in f32 with
straight-through gradients; with --mode bf16 products in bfloat16 by autocast. Prints one JSON line: tokens/s and seconds at the median step, peak memory.
"""
import argparse, json, math, resource, statistics, time
import torch
import torch.nn as nn
import torch.nn.functional as F

p = argparse.ArgumentParser()
p.add_argument("--mode", choices=["fp32", "compile", "bitnet", "bf16"], default="fp32")
for name, default in dict(dim=384, layers=6, heads=6, ffn=1024, vocab=4096, ctx=256,
                          batch=8, steps=8, warmup=2, threads=2).items():
    p.add_argument(f"--{name}", type=int, default=default)
p.add_argument("--lr", type=float, default=1e-3)
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)


class BitLinear(nn.Linear):
    def __init__(self, i, o):
        super().__init__(i, o, bias=False)
        self.norm = nn.RMSNorm(i)

    def forward(self, x):
        x = self.norm(x)
        w, s = self.weight, self.weight.abs().mean().clamp(min=1e-8)
        wq = w + ((w / s).round().clamp(-1, 1) * s - w).detach()
        sx = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
        xq = x + ((x / sx).round() * sx - x).detach()
        return F.linear(xq, wq)


def linear(i, o):
    return BitLinear(i, o) if a.mode == "bitnet" else nn.Linear(i, o, bias=False)


def rope(x, cos, sin):
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), -1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        d, f = a.dim, a.ffn
        self.n1, self.n2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.qkv, self.o = linear(d, 3 * d), linear(d, d)
        self.gu, self.down = linear(d, 2 * f), linear(f, d)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, a.heads, -1).transpose(1, 2)
                   for y in self.qkv(self.n1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        g, u = self.gu(self.n2(x)).chunk(2, -1)
        return x + self.down(F.silu(g) * u)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(a.vocab, a.dim)
        self.blocks = nn.ModuleList(Block() for _ in range(a.layers))
        self.norm, self.head = nn.RMSNorm(a.dim), nn.Linear(a.dim, a.vocab, bias=False)
        hd = a.dim // a.heads
        freq = 1e4 ** (-torch.arange(0, hd, 2) / hd)
        ang = torch.arange(a.ctx)[:, None] * freq
        self.register_buffer("cos", ang.cos())
        self.register_buffer("sin", ang.sin())

    def forward(self, x, y):
        x = self.emb(x)
        for b in self.blocks:
            x = b(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), y.flatten())


model = Model()
params = sum(t.numel() for t in model.parameters())
opt = torch.optim.AdamW(model.parameters(), lr=a.lr, fused=True)
step_fn = torch.compile(model) if a.mode == "compile" else model
times = []
for i in range(a.warmup + a.steps):
    ids = torch.randint(a.vocab, (a.batch, a.ctx + 1))
    t = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.mode == "bf16"):
        loss = step_fn(ids[:, :-1], ids[:, 1:])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad(set_to_none=True)
    if i >= a.warmup:
        times.append(time.perf_counter() - t)
sec = statistics.median(times)
print(json.dumps(dict(peer="torch", version=torch.__version__, mode=a.mode, params=params,
                      tokens_per_s=round(a.batch * a.ctx / sec, 1), step_s=round(sec, 4),
                      peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))
