"""DeepSeek-V3's equations read into plain NumPy, float64, one token at a time.

Written from the report and the released `model.py`, without looking at how `dsv3lab.model` does it: no batching, no
sorting by expert, no stacked layers. It reads the weights of a `dsv3lab` model and nothing else of it.
"""

from typing import Any

import numpy as np

Array = np.ndarray


def numpy(array: Any) -> Array:
    """An array of the model in float64."""
    return np.asarray(array, np.float64)


def rms_norm(x: Array, weight: Any, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2) + eps) * numpy(weight)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def frequency(i: int, width: int, theta: float, yarn: Any) -> float:
    """Radians per position of pair i: theta^(-2i/width), or YaRN's mean of that and its `factor`-th part."""
    plain = theta ** (-2 * i / width)
    if yarn is None or yarn.factor <= 1:
        return plain

    def turning(times: float) -> float:  # the pair, as a real number, that turns so often in the original context
        return width * np.log(yarn.original_max_position_embeddings / (2 * np.pi * times)) / (2 * np.log(theta))

    low, high = max(np.floor(turning(yarn.beta_fast)), 0), min(np.ceil(turning(yarn.beta_slow)), width - 1)
    slow = min(max((i - low) / max(high - low, 1e-3), 0), 1)
    return (1 - slow) * plain + slow * plain / yarn.factor


def temperature(yarn: Any, name: str) -> float:
    """YaRN's 0.1 m ln(factor) + 1 with m the setting `name`; 1 without YaRN."""
    return 1.0 if yarn is None or yarn.factor <= 1 else 0.1 * getattr(yarn, name) * np.log(yarn.factor) + 1


def rope(x: Array, position: int, config: Any) -> Array:
    """Pairs (x[2i], x[2i+1]) as complex numbers, turned by position * frequency."""
    yarn, width = config.rope_scaling, len(x)
    length = temperature(yarn, "mscale") / temperature(yarn, "mscale_all_dim")
    angles = [position * frequency(i, width, config.rope_theta, yarn) for i in range(width // 2)]
    turned = [(x[2 * i] + 1j * x[2 * i + 1]) * length * np.exp(1j * angle) for i, angle in enumerate(angles)]
    return np.array([part for z in turned for part in (z.real, z.imag)])


def rope_halves(x: Array, position: int, config: Any) -> Array:
    """The convention of Hugging Face: pairs (x[i], x[i + width / 2]) with the angles of `rope`."""
    half = len(x) // 2
    turned = rope(np.array([part for pair in zip(x[:half], x[half:], strict=True) for part in pair]), position, config)
    return np.append(turned[::2], turned[1::2])


def rope_scores(query: Array, key: Array, distances: Array, frequencies: Array) -> Array:
    """Re sum_i q_i conj(k_i) e^(i d f_i): the score of a query that stands d positions after its key."""
    product = (query[::2] + 1j * query[1::2]) * np.conj(key[::2] + 1j * key[1::2])
    return np.array([(product * np.exp(1j * d * frequencies)).sum().real for d in distances])


def mla(layer: Any, x: Array, config: Any) -> Array:
    """Eq. 1-11 for one sequence [seq, width]; positions 0, 1, ..."""
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    rope_width, latent_width = config.qk_rope_head_dim, config.kv_lora_rank
    queries, keys, values = [], [], []
    for t, h in enumerate(x):
        c_q = h
        if config.q_lora_rank is not None:
            c_q = rms_norm(h @ numpy(layer.query_down), layer.query_norm.weight, config.latent_norm_eps)
        q = (c_q @ numpy(layer.query_up)).reshape(heads, nope + rope_width)
        queries.append([np.append(row[:nope], rope(row[nope:], t, config)) for row in q])
        down = h @ numpy(layer.latent_down)
        c_kv = rms_norm(down[:latent_width], layer.latent_norm.weight, config.latent_norm_eps)
        k_rope = rope(down[latent_width:], t, config)
        up = (c_kv @ numpy(layer.latent_up)).reshape(heads, nope + value)
        keys.append([np.append(row[:nope], k_rope) for row in up])
        values.append(up[:, nope:])
    out, scale = [], temperature(config.rope_scaling, "mscale_all_dim") ** 2 / np.sqrt(nope + rope_width)
    for t in range(len(x)):
        mixed = []
        for n in range(heads):
            scores = np.array([queries[t][n] @ keys[j][n] for j in range(t + 1)]) * scale
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            mixed.append(sum(w * values[j][n] for j, w in enumerate(weights)))
        out.append(np.concatenate(mixed) @ numpy(layer.out))
    return np.array(out)


def select(scores: Array, bias: Array, *, top: int, groups: int, top_groups: int, best_of: int = 2) -> list[int]:
    """The experts of one token, best first; of equals the lower index. A group is as strong as its `best_of` best."""
    biased = scores + bias
    size = len(scores) // groups
    allowed = range(len(scores))
    if top_groups < groups:
        strength = [sum(sorted(biased[g * size : (g + 1) * size])[-best_of:]) for g in range(groups)]
        best = sorted(range(groups), key=lambda g: (-strength[g], g))[:top_groups]
        allowed = [i for i in allowed if i // size in best]
    return sorted(allowed, key=lambda i: (-biased[i], i))[:top]


def gates(scores: Array, chosen: list[int], *, scale: float, normalise: bool = True) -> Array:
    """Eq. 13: the unbiased scores of the chosen experts, normalised (V2: as they are), times the routed scaling factor."""
    return scores[chosen] / (scores[chosen].sum() + 1e-20 if normalise else 1) * scale


def affinities(u: Array, centroids: Any, config: Any) -> Array:
    """Eq. 15 for one token; V2: softmax over all experts."""
    products = u @ numpy(centroids)
    if config.scoring_func == "softmax":
        exponential = np.exp(products - products.max())
        return exponential / exponential.sum()
    return 1 / (1 + np.exp(-products))


def swiglu(x: Array, gate_up: Any, down: Any) -> Array:
    gate_up = numpy(gate_up)
    return (silu(x @ gate_up[:, 0]) * (x @ gate_up[:, 1])) @ numpy(down)


def moe(layer: Any, x: Array, config: Any) -> tuple[Array, list[list[int]], Array]:
    """Eq. 12 for one sequence: output, chosen experts and scores of each token."""
    out, everything, all_scores = [], [], []
    for u in x:
        scores = affinities(u, layer.router.weight, config)
        v3 = config.topk_method == "noaux_tc"
        chosen = select(
            scores,
            numpy(layer.router.bias) if v3 else np.zeros_like(scores),
            top=config.num_experts_per_tok,
            groups=config.n_group,
            top_groups=config.topk_group,
            best_of=2 if v3 else 1,
        )
        weights = gates(scores, chosen, scale=config.routed_scaling_factor, normalise=config.norm_topk_prob)
        y = np.zeros_like(u)
        for i, gate in zip(chosen, weights, strict=True):
            y += gate * swiglu(u, layer.experts.gate_up[i], layer.experts.down[i])
        if layer.shared is not None:
            y += swiglu(u, layer.shared.gate_up, layer.shared.down)
        out.append(y)
        everything.append(chosen)
        all_scores.append(scores)
    return np.array(out), everything, np.array(all_scores)


def balance(scores: Array, *, top: int) -> float:
    """Eq. 17-20 without alpha, for one sequence [seq, experts]: f from the top-k of the unbiased scores."""
    seq, experts = scores.shape
    f, p = np.zeros(experts), np.zeros(experts)
    for s in scores:
        for i in sorted(range(experts), key=lambda i: (-s[i], i))[:top]:
            f[i] += experts / (top * seq)
        p += s / s.sum() / seq
    return float(f @ p)


def switch(scores: Array, chosen: list[list[int]]) -> float:
    """The Switch loss (arXiv:2101.03961, Eq. 4-6) of tokens [tokens, experts], for several experts of each token."""
    tokens, experts = scores.shape
    f, p = np.zeros(experts), np.zeros(experts)
    for s, ids in zip(scores, chosen, strict=True):
        for i in ids:
            f[i] += 1 / (len(ids) * tokens)
        p += s / s.sum() / tokens
    return float(experts * (f @ p))


def v2_losses(scores: Array, chosen: list[list[int]], *, groups: int, top_groups: int) -> tuple[float, float, float]:
    """V2's three balance losses of one sequence without their alphas (V2 report, Eq. 23-31): expert, device, communication.

    Devices are the groups of experts D, of which a token reaches at most M.
    """
    (seq, experts), top = scores.shape, len(chosen[0])
    size = experts // groups
    share = scores / scores.sum(axis=1, keepdims=True)
    p = [sum(share[t, i] for t in range(seq)) / seq for i in range(experts)]
    f = [experts / (top * seq) * sum(i in chosen[t] for t in range(seq)) for i in range(experts)]
    members = [range(d * size, (d + 1) * size) for d in range(groups)]
    f_device = [sum(f[i] for i in those) / size for those in members]
    p_device = [sum(p[i] for i in those) for those in members]
    sent = [sum(any(i in chosen[t] for i in those) for t in range(seq)) for those in members]
    f_sent = [groups / (top_groups * seq) * count for count in sent]
    return float(np.dot(f, p)), float(np.dot(f_device, p_device)), float(np.dot(f_sent, p_device))


def bias_update(bias: Array, loads: Array, *, speed: float) -> Array:
    """Down by `speed` where a layer's expert got more than the layer's mean, up where it got less (2.1.2)."""
    new = bias.copy()
    for layer, counts in enumerate(loads):
        mean = counts.sum() / len(counts)
        for i, count in enumerate(counts):
            new[layer, i] += speed * (0 if count == mean else 1 if count < mean else -1)
    return new


def block(layer: Any, h: Array, config: Any, *, counted: int) -> tuple[Array, Array | None, float]:
    """One block on one sequence; loads and balance of its first `counted` tokens (None and 0 for a dense one)."""
    eps = config.rms_norm_eps
    h = h + mla(layer.attention, np.array([rms_norm(x, layer.attention_norm.weight, eps) for x in h]), config)
    x = np.array([rms_norm(x, layer.ffn_norm.weight, eps) for x in h])
    if not hasattr(layer.ffn, "router"):
        return h + np.array([swiglu(u, layer.ffn.gate_up, layer.ffn.down) for u in x]), None, 0.0
    out, chosen, scores = moe(layer.ffn, x, config)
    loads = np.bincount(np.ravel(chosen[:counted]), minlength=config.n_routed_experts)
    return h + out, loads, balance(scores[:counted], top=config.num_experts_per_tok)


def forward(model: Any, layers: list[Any], tokens: Array, config: Any) -> tuple[Array, list[Array], Array, float]:
    """One sequence: final hidden states, those of each MTP depth, loads of each MoE layer, and the balance sum."""
    table, eps, seq = numpy(model.embedding), config.rms_norm_eps, len(tokens)
    h, loads, total = table[tokens], [], 0.0
    for layer in layers:
        h, counts, one = block(layer, h, config, counted=seq)
        loads += [] if counts is None else [counts]
        total += one
    hidden = np.array([rms_norm(x, model.norm.weight, eps) for x in h])
    previous, depths = hidden, []
    for k, module in enumerate(model.mtp, start=1):
        joined = []
        for i in range(seq):
            ahead = table[tokens[i + k]] if i + k < seq else table[0]
            halves = [
                rms_norm(ahead, module.embedding_norm.weight, eps),
                rms_norm(previous[i], module.hidden_norm.weight, eps),
            ]
            joined.append(np.concatenate(halves) @ numpy(module.project))
        h, counts, one = block(module.block, np.array(joined), config, counted=seq - k)
        loads.append(counts)
        total += one
        previous = np.array([rms_norm(x, module.norm.weight, eps) for x in h])
        depths.append(previous)
    return hidden, depths, np.array(loads), total
