"""MTP modules a second time, in float64 and in the plainest way: whole sequences, one row and one head after another.

Written from the papers (DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437; YaRN, arXiv 2309.00071; MiMo,
arXiv 2505.07608; GLM-4.5, arXiv 2508.06471) and from ``checkpoints.md``; nothing of specproxy is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / root mean square * weight."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def yarn_frequencies(width: int, theta: float, rules: dict[str, Any]) -> list[float]:
    """Each dimension between interpolated (slow ones) and untouched (fast ones), along a ramp between two bounds."""
    trained = rules["original_max_position_embeddings"]

    def bound(rotations: float) -> float:
        return width * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(bound(rules["beta_fast"])), 0), min(math.ceil(bound(rules["beta_slow"])), width - 1)
    found = []
    for i in range(width // 2):
        plain = theta ** (-2 * i / width)
        slow = min(max((i - low) / (max(high - low, 0.001)), 0.0), 1.0)
        found.append(plain * (1 - slow) + plain / rules["factor"] * slow)
    return found


def yarn_mscale(factor: float, weight: float) -> float:
    """YaRN's factor for attention."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def rotate(x: Tensor, position: int, frequencies: list[float], factor: float, *, interleaved: bool) -> Tensor:
    """Vectors [..., W] of one position, their first 2 * len(frequencies) dimensions turned, in place of where they
    were."""
    out, half = x.clone(), len(frequencies)
    for i, frequency in enumerate(frequencies):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        c, s = math.cos(position * frequency) * factor, math.sin(position * frequency) * factor
        out[..., a], out[..., b] = x[..., a] * c - x[..., b] * s, x[..., b] * c + x[..., a] * s
    return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Causal attention q [T, Hq, W], k [T, Hk, W], v [T, Hk, V] -> [T, Hq * V], row by row and head by head."""
    rows = []
    for t in range(q.shape[0]):
        first = 0 if window is None else max(0, t - window + 1)
        heads = []
        for h in range(q.shape[1]):
            kh = h * k.shape[1] // q.shape[1]
            scores = k[first : t + 1, kh] @ q[t, h] * scale
            if sinks is not None:
                scores = torch.cat([scores, sinks[h : h + 1]])
            weights = torch.exp(scores - scores.max())
            weights = (weights / weights.sum())[: t + 1 - first]
            heads.append(weights @ v[first : t + 1, kh])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@dataclass
class Reference:
    """The modules of ``kind`` in ``tensors``; ``embedding``, ``output``: the target's [V, H]."""

    kind: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    num_layers: int
    embedding: Tensor
    output: Tensor
    chosen: list[list[int]] = field(default_factory=list)

    def run(self, ids: Tensor, hidden: Tensor, positions: Tensor, module: int = 0) -> Tensor:
        """States behind the last norm [T, H] of a module over a whole sequence of entries."""
        return getattr(self, f"_{self.kind}")(ids, hidden, [int(p) for p in positions], module)

    def scores(self, states: Tensor, module: int = 0) -> Tensor:
        """[N, V]."""
        own = f"model.layers.{self.num_layers + module}.shared_head.head.weight"
        return states @ self.tensors.get(own, self.output).T

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        out = x @ self.tensors[f"{name}.weight"].T
        return out if bias is None else out + bias

    def _mimo(self, ids: Tensor, hidden: Tensor, positions: list[int], module: int) -> Tensor:
        at, eps = f"model.mtp_layers.{module}", self.config["rms_norm_eps"]
        t = self.tensors
        tokens = rms(self.embedding[ids], t[f"{at}.token_layernorm.weight"], eps)
        states = rms(hidden, t[f"{at}.hidden_layernorm.weight"], eps)
        x = self._linear(f"{at}.input_proj", torch.cat([states, tokens], 1))
        normed = rms(x, t[f"{at}.input_layernorm.weight"], eps)
        x = x + self._grouped(f"{at}.self_attn", normed, positions, self.config["rope_theta"], 1.0)
        x = x + self._swiglu(f"{at}.mlp", rms(x, t[f"{at}.post_attention_layernorm.weight"], eps))
        return rms(x, t[f"{at}.final_layernorm.weight"], eps)

    def _mimo_v2(self, ids: Tensor, hidden: Tensor, positions: list[int], module: int) -> Tensor:
        at, eps, config = f"model.mtp.layers.{module}", self.config["layernorm_epsilon"], self.config
        t = self.tensors
        tokens = rms(self.embedding[ids], t[f"{at}.enorm.weight"], eps)
        states = rms(hidden, t[f"{at}.hnorm.weight"], eps)
        x = self._linear(f"{at}.eh_proj", torch.cat([tokens, states], 1))
        normed = rms(x, t[f"{at}.input_layernorm.weight"], eps)
        width = config["swa_head_dim"]
        q, k = (self._linear(f"{at}.self_attn.{n}_proj", normed).unflatten(1, (-1, width)) for n in "qk")
        v = self._linear(f"{at}.self_attn.v_proj", normed).unflatten(1, (-1, config["swa_v_head_dim"]))
        rotated = int(width * config["partial_rotary_factor"])
        q, k = (self._turned(x, positions, config["swa_rope_theta"], rotated) for x in (q, k))
        sinks = t.get(f"{at}.self_attn.attention_sink_bias")
        v = v * config["attention_value_scale"]
        out = attend(q, k, v, width**-0.5, config["sliding_window"], sinks)
        x = x + self._linear(f"{at}.self_attn.o_proj", out)
        x = x + self._swiglu(f"{at}.mlp", rms(x, t[f"{at}.pre_mlp_layernorm.weight"], eps))
        return rms(x, t[f"{at}.final_layernorm.weight"], eps)

    def _deepseek(self, ids: Tensor, hidden: Tensor, positions: list[int], module: int) -> Tensor:
        return self._next_layer(ids, hidden, positions, module, self._latent)

    def _glm(self, ids: Tensor, hidden: Tensor, positions: list[int], module: int) -> Tensor:
        def attention(at: str, x: Tensor, positions: list[int]) -> Tensor:
            partial = self.config.get("partial_rotary_factor", 0.5)
            return self._grouped(at, x, positions, self.config["rope_theta"], partial)

        return self._next_layer(ids, hidden, positions, module, attention)

    def _next_layer(self, ids: Tensor, hidden: Tensor, positions: list[int], module: int, attention: Any) -> Tensor:
        at, eps, t = f"model.layers.{self.num_layers + module}", self.config["rms_norm_eps"], self.tensors
        embedded = t.get(f"{at}.embed_tokens.weight", self.embedding)[ids].clone()
        for row, position in enumerate(positions):
            if position == 0:
                embedded[row] = 0
        tokens, states = rms(embedded, t[f"{at}.enorm.weight"], eps), rms(hidden, t[f"{at}.hnorm.weight"], eps)
        x = self._linear(f"{at}.eh_proj", torch.cat([tokens, states], 1))
        x = x + attention(f"{at}.self_attn", rms(x, t[f"{at}.input_layernorm.weight"], eps), positions)
        normed = rms(x, t[f"{at}.post_attention_layernorm.weight"], eps)
        mlp = f"{at}.mlp"
        x = x + (self._sigmoid_experts(mlp, normed) if f"{mlp}.gate.weight" in t else self._swiglu(mlp, normed))
        return rms(x, t[f"{at}.shared_head.norm.weight"], eps)

    def _qwen_next(self, ids: Tensor, hidden: Tensor, positions: list[int], module: int) -> Tensor:
        at, eps, t, config = f"mtp.layers.{module}", self.config["rms_norm_eps"], self.tensors, self.config

        def norm(x: Tensor, name: str) -> Tensor:
            return rms(x, 1 + t[f"{name}.weight"], eps)

        tokens, states = norm(self.embedding[ids], "mtp.pre_fc_norm_embedding"), norm(hidden, "mtp.pre_fc_norm_hidden")
        x = self._linear("mtp.fc", torch.cat([tokens, states], 1))
        normed, width = norm(x, f"{at}.input_layernorm"), config["head_dim"]
        q_gate = self._linear(f"{at}.self_attn.q_proj", normed).unflatten(1, (-1, 2 * width))
        q, gate = q_gate[..., :width], q_gate[..., width:].flatten(1)
        k, v = (self._linear(f"{at}.self_attn.{n}_proj", normed).unflatten(1, (-1, width)) for n in "kv")
        rotated = int(width * config["partial_rotary_factor"])
        q, k = (
            self._turned(norm(x, f"{at}.self_attn.{n}_norm"), positions, config["rope_theta"], rotated)
            for x, n in ((q, "q"), (k, "k"))
        )
        out = attend(q, k, v, width**-0.5) / (1 + torch.exp(-gate))
        x = x + self._linear(f"{at}.self_attn.o_proj", out)
        normed = norm(x, f"{at}.post_attention_layernorm")
        experts = f"{at}.mlp.gate.weight" in t
        x = x + (self._softmax_experts if experts else self._swiglu)(f"{at}.mlp", normed)
        return norm(x, "mtp.norm")

    def _turned(self, x: Tensor, positions: list[int], theta: float, width: int) -> Tensor:
        """x [T, Hn, W], the first ``width`` dimensions of each head turned."""
        frequencies = [theta ** (-2 * i / width) for i in range(width // 2)]
        return torch.stack(
            [
                rotate(row, position, frequencies, 1.0, interleaved=False)
                for row, position in zip(x, positions, strict=True)
            ]
        )

    def _grouped(self, at: str, x: Tensor, positions: list[int], theta: float, partial: float) -> Tensor:
        width = self.config.get("head_dim") or x.shape[1] // self.config["num_attention_heads"]
        q, k, v = (self._linear(f"{at}.{n}_proj", x).unflatten(1, (-1, width)) for n in "qkv")
        if f"{at}.q_norm.weight" in self.tensors:
            q, k = (
                rms(y, self.tensors[f"{at}.{n}_norm.weight"], self.config["rms_norm_eps"])
                for y, n in ((q, "q"), (k, "k"))
            )
        q, k = (self._turned(y, positions, theta, int(width * partial)) for y in (q, k))
        return self._linear(f"{at}.o_proj", attend(q, k, v, width**-0.5))

    def _latent(self, at: str, x: Tensor, positions: list[int]) -> Tensor:
        """Equations 37 to 47 of DeepSeek-V2."""
        c, t = self.config, self.tensors
        rope, nope, value, rank = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        if c["q_lora_rank"] is None:
            q = self._linear(f"{at}.q_proj", x)
        else:
            latent_q = rms(self._linear(f"{at}.q_a_proj", x), t[f"{at}.q_a_layernorm.weight"], 1e-6)
            q = self._linear(f"{at}.q_b_proj", latent_q)
        q = q.unflatten(1, (-1, nope + rope))
        both = self._linear(f"{at}.kv_a_proj_with_mqa", x)
        latent, shared = rms(both[:, :rank], t[f"{at}.kv_a_layernorm.weight"], 1e-6), both[:, rank:]
        kv = self._linear(f"{at}.kv_b_proj", latent).unflatten(1, (-1, nope + value))
        rules, scale, factor = c.get("rope_scaling"), (nope + rope) ** -0.5, 1.0
        frequencies = [c["rope_theta"] ** (-2 * i / rope) for i in range(rope // 2)]
        if rules:
            frequencies = yarn_frequencies(rope, c["rope_theta"], rules)
            factor = yarn_mscale(rules["factor"], rules["mscale"]) / yarn_mscale(
                rules["factor"], rules["mscale_all_dim"]
            )
            scale *= yarn_mscale(rules["factor"], rules["mscale_all_dim"]) ** 2
        interleaved = c.get("rope_interleave", True)
        queries, keys = q.clone(), torch.cat([kv[..., :nope], kv.new_zeros(*kv.shape[:2], rope)], 2)
        for row, position in enumerate(positions):
            key = rotate(shared[row], position, frequencies, factor, interleaved=interleaved)
            turned = rotate(q[row, :, nope:], position, frequencies, factor, interleaved=interleaved)
            queries[row, :, nope:], keys[row, :, nope:] = turned, key
        return self._linear(f"{at}.o_proj", attend(queries, keys, kv[..., nope:], scale))

    def _swiglu(self, at: str, x: Tensor) -> Tensor:
        gated = silu(self._linear(f"{at}.gate_proj", x)) * self._linear(f"{at}.up_proj", x)
        return self._linear(f"{at}.down_proj", gated)

    def _expert(self, at: str, expert: int, x: Tensor) -> Tensor:
        fused = self.tensors.get(f"{at}.experts.gate_up_proj")
        if fused is None:
            return self._swiglu(f"{at}.experts.{expert}", x)
        gate, up = (fused[expert] @ x).chunk(2)
        down: Tensor = self.tensors[f"{at}.experts.down_proj"][expert]
        return down @ (silu(gate) * up)

    def _sigmoid_experts(self, at: str, x: Tensor) -> Tensor:
        """Equations 12 to 16 of DeepSeek-V3, with node-limited routing: the best groups by their two best experts."""
        c = self.config
        count, groups = c["n_routed_experts"], c["n_group"]
        size, rows = count // groups, []
        for row in x:
            affinity = [1 / (1 + math.exp(-float(centroid @ row))) for centroid in self.tensors[f"{at}.gate.weight"]]
            bias = self.tensors[f"{at}.gate.e_score_correction_bias"]
            biased = [a + float(b) for a, b in zip(affinity, bias, strict=True)]
            worth = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
            allowed = sorted(range(groups), key=lambda g: -worth[g])[: c["topk_group"]]
            pool = [e for e in range(count) if e // size in allowed]
            chosen = sorted(pool, key=lambda e: -biased[e])[: c["num_experts_per_tok"]]
            self.chosen.append(sorted(chosen))
            total = sum(affinity[e] for e in chosen) if c["norm_topk_prob"] else 1.0
            routed = [affinity[e] / total * c["routed_scaling_factor"] * self._expert(at, e, row) for e in chosen]
            rows.append(torch.stack(routed).sum(0))
        return torch.stack(rows) + self._swiglu(f"{at}.shared_experts", x)

    def _softmax_experts(self, at: str, x: Tensor) -> Tensor:
        c, rows = self.config, []
        for row in x:
            logits = self.tensors[f"{at}.gate.weight"] @ row
            probabilities = [float(p) for p in torch.exp(logits) / torch.exp(logits).sum()]
            chosen = sorted(range(len(probabilities)), key=lambda e: -probabilities[e])[: c["num_experts_per_tok"]]
            self.chosen.append(sorted(chosen))
            total = sum(probabilities[e] for e in chosen) if c["norm_topk_prob"] else 1.0
            rows.append(torch.stack([probabilities[e] / total * self._expert(at, e, row) for e in chosen]).sum(0))
        opening = 1 / (1 + torch.exp(-self._linear(f"{at}.shared_expert_gate", x)))
        return torch.stack(rows) + opening * self._swiglu(f"{at}.shared_expert", x)
