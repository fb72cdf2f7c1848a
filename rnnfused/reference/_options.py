"""What a layer may be asked for beyond torch.nn's equations."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Options:
    """The options of a layer; each stands for torch.nn's behaviour by default.

    LN is the layer norm over the last dimension, with the biased variance and 1e-5 inside the root, and s the
    sigmoid. Parameters that an option brings are given to `forward` by name: `parameters={"name": array}`.

    reset_after: of the GRU. False: r is applied before the product:
        n = tanh(W_in x + b_in + W_hn (r h) + b_hn). Source: Cho et al. 2014.
    peephole: of the LSTM: i = s(a_i + p_i c), f = s(a_f + p_f c), o = s(a_o + p_o c'). Brings weight_peephole
        [3, H], rows i, f, o; with coupled gates [2, H], rows i, o. Source: Gers, Schraudolph and Schmidhuber,
        "Learning precise timing with LSTM recurrent networks", 2002.
    coupled_gates: of the LSTM: f = 1 - i; three gates, i, g, o. Source: Greff et al., "LSTM: a search space
        odyssey", 2017.
    layer_norm: "separate" (RNN, LSTM, GRU with reset_after, LiGRU): LN(W_ih x + b_ih; g_i, b_i) +
        LN(W_hh h + b_hh; g_h, b_h), each over all G H; brings norm_ih_weight, norm_ih_bias, norm_hh_weight,
        norm_hh_bias, each [G*H]. Source: Ba, Kiros and Hinton 2016.
        "joint" (LSTM, GRU): LN(W_ih x + W_hh h; g, b), without other biases; brings norm_weight and norm_bias
        [G*H]. The GRU is then that of Hafner et al., "Dream to control", 2020, gates r, n, u:
        h' = u n + (1 - u) h, n = tanh(s(a_r) a_n), u = s(a_u + update_bias).
        "input" (LiGRU): the first of the two norms of "separate" alone.
    update_bias: of the GRU with the joint norm.
    cell_norm: of the LSTM with a layer norm: "carried": c' = LN(f c + i g); "output": h' = o tanh(LN(c')).
        Brings norm_c_weight and norm_c_bias [H].
    zoneout: probability for all states or for each (of the LSTM: h, c) that a unit keeps its previous value.
        `forward` takes what was drawn as zoneout_masks; without, p prev + (1 - p) new stands for the mean.
        The states that do so are those that are carried: h after its projection. Source: Krueger et al.,
        "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2016.
    cell_clip: of the LSTM: c' is clamped to [-x, x], after a carried norm; no gradient from beyond.
    gate_clip: what enters a gate's function is clamped likewise (peephole included), as by ONNX's `clip`.
    grad_clip: in backward alone: what a step passes back to each previous state, through W_hh and directly,
        is clamped to [-x, x]. The gradient of the output joins after, unclamped.
    num_heads: W_hh is block-diagonal, [k, G*H/k, (P|H)/k]: head j, the units from j H/k on, sees the
        j-th part of h only.
    """

    reset_after: bool = True
    peephole: bool = False
    coupled_gates: bool = False
    layer_norm: str | None = None
    update_bias: float = 0.0
    cell_norm: str | None = None
    zoneout: float | tuple[float, ...] = 0.0
    cell_clip: float | None = None
    gate_clip: float | None = None
    grad_clip: float | None = None
    num_heads: int = 1

    def asked(self) -> dict[str, object]:
        """The options that differ from torch.nn's equations."""
        pairs = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in pairs.items() if value != default}

    def keeps(self, states: int) -> tuple[float, ...]:
        """The probability of zoneout of each state."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * states
