"""The cells: each a formula of a few lines, with its source. Vectors are rows; U takes the input, W the state."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pellucid.formula.draws import noise
from pellucid.formula.initializers import constant, ones, zeros
from pellucid.nn.recurrence.cell import cell


@cell
def rnn(x, h, *, U, W, b=zeros):
    """Elman network. Elman 1990, Finding structure in time."""
    return torch.tanh(x @ U + h @ W + b)


@cell
def rnn_relu(x, h, *, U, W, b=zeros):
    """Elman network with rectified units. Le, Jaitly & Hinton 2015, arXiv:1504.00941."""
    return torch.relu(x @ U + h @ W + b)


@cell
def lstm(x, h, c, *, U, W, b=zeros):
    """Long short-term memory, gates in the order i, f, g, o. Hochreiter & Schmidhuber 1997; Gers et al. 2000."""
    i, f, g, o = (x @ U + h @ W + b).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, c


@cell
def lstm_projected(x, h: "proj", c: "hidden", *, U, W, P, b=zeros):  # type: ignore[name-defined]
    """LSTM whose state h is projected to a smaller size. Sak, Senior & Beaufays 2014, arXiv:1402.1128."""
    i, f, g, o = (x @ U + h @ W + b).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = (torch.sigmoid(o) * torch.tanh(c)) @ P
    return h, c


@cell
def lstm_peephole(x, h, c, *, U, W, p_i=zeros, p_f=zeros, p_o=zeros, b=zeros):
    """LSTM whose gates see the memory. Gers & Schmidhuber 2000, Recurrent nets that time and count."""
    i, f, g, o = (x @ U + h @ W + b).chunk(4, -1)
    i = torch.sigmoid(i + p_i * c)
    f = torch.sigmoid(f + p_f * c)
    c = f * c + i * torch.tanh(g)
    h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
    return h, c


@cell
def lstm_coupled(x, h, c, *, U, W, b=zeros):
    """LSTM that forgets as much as it takes in. Greff et al. 2017, LSTM: a search space odyssey, arXiv:1503.04069."""
    f, g, o = (x @ U + h @ W + b).chunk(3, -1)
    f = torch.sigmoid(f)
    c = f * c + (1 - f) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, c


@cell
def gru(x, h, *, U, W, b=zeros, c=zeros):
    """Gated recurrent unit as torch.nn has it: r acts after the product with the state. Cho et al. 2014."""
    r_x, z_x, n_x = (x @ U + b).chunk(3, -1)
    r_h, z_h, n_h = (h @ W + c).chunk(3, -1)
    r = torch.sigmoid(r_x + r_h)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


@cell
def gru_original(x, h, *, U, W, U_n, W_n, b=zeros, b_n=zeros):
    """Gated recurrent unit as first published: r acts on the state. Cho et al. 2014, arXiv:1406.1078."""
    r, z = torch.sigmoid(x @ U + h @ W + b).chunk(2, -1)
    n = torch.tanh(x @ U_n + (r * h) @ W_n + b_n)
    return (1 - z) * n + z * h


@cell
def minimal_gated(x, h, *, U, W, U_n, W_n, b=zeros, b_n=zeros):
    """Minimal gated unit: one gate. Zhou et al. 2016, arXiv:1603.09420."""
    f = torch.sigmoid(x @ U + h @ W + b)
    n = torch.tanh(x @ U_n + (f * h) @ W_n + b_n)
    return (1 - f) * h + f * n


@cell
def indrnn(x, h, *, U, w, b=zeros):
    """Independently recurrent network: a weight a unit instead of a matrix. Li et al. 2018, arXiv:1803.04831."""
    return torch.relu(x @ U + w * h + b)


@cell
def layernorm_rnn(x, h, *, U, W, gamma=ones, beta=zeros):
    """Elman network with a normalized sum. Ba, Kiros & Hinton 2016, arXiv:1607.06450."""
    return torch.tanh(F.layer_norm(x @ U + h @ W, h.shape[-1:], gamma, beta))


@cell
def layernorm_lstm(
    x, h, c, *, U, W, gamma_x=ones, beta_x=zeros, gamma_h=ones, beta_h=zeros, gamma_c=ones, beta_c=zeros
):
    """LSTM with normalized input, state and memory. Ba, Kiros & Hinton 2016, arXiv:1607.06450, equations 20 to 22."""
    size = h.shape[-1]
    a = F.layer_norm(x @ U, (4 * size,), gamma_x, beta_x) + F.layer_norm(h @ W, (4 * size,), gamma_h, beta_h)
    i, f, g, o = a.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(F.layer_norm(c, (size,), gamma_c, beta_c))
    return h, c


@cell
def layernorm_gru(
    x, h, *, U, W, U_n, W_n,
    gamma_x=ones, beta_x=zeros, gamma_h=ones, beta_h=zeros,
    gamma_xn=ones, beta_xn=zeros, gamma_hn=ones, beta_hn=zeros,
):  # fmt: skip
    """GRU with normalized input and state. Ba, Kiros & Hinton 2016, arXiv:1607.06450, its supplement."""
    size = h.shape[-1]
    gates = F.layer_norm(x @ U, (2 * size,), gamma_x, beta_x) + F.layer_norm(h @ W, (2 * size,), gamma_h, beta_h)
    r, z = torch.sigmoid(gates).chunk(2, -1)
    x_n = F.layer_norm(x @ U_n, (size,), gamma_xn, beta_xn)
    h_n = F.layer_norm(h @ W_n, (size,), gamma_hn, beta_hn)
    return (1 - z) * h + z * torch.tanh(x_n + r * h_n)


@cell
def slstm(x, h, c, n, m, *, U, W, b=zeros):
    """LSTM with an exponential input gate. Beck et al. 2024, xLSTM, arXiv:2405.04517, equations 8 to 17.

    The memory c is read relative to the normalizer n; both are kept divided by exp(m), so that no gate overflows.
    """
    i, f, g, o = (x @ U + h @ W + b).chunk(4, -1)
    kept = torch.where(n > 0, F.logsigmoid(f) + m, -math.inf)  # how much of c and n stays, as a logarithm
    m = torch.maximum(kept, i)
    f = torch.exp(kept - m)
    i = torch.exp(i - m)
    c = f * c + i * torch.tanh(g)
    n = f * n + i
    h = torch.sigmoid(o) * c / n
    return h, c, n, m


@cell
def mlstm(
    x, C: "key*hidden", n: "key", m: "1", *,  # type: ignore[name-defined,valid-type]
    U_q: "input key", U_k: "input key", U_v: "input hidden", U_g: "input 2", U_o: "input hidden",  # type: ignore[valid-type]
    b_g=zeros, b_o=zeros,
):  # fmt: skip
    """LSTM whose memory is a matrix. Beck et al. 2024, xLSTM, arXiv:2405.04517, equations 19 to 27.

    The value v is stored under the key k and read by the query q, both of the size key. The memory C and its normalizer
    n are kept divided by exp(m), so that no gate overflows.
    """
    q, k, v = x @ U_q, x @ U_k / math.sqrt(n.shape[-1]), x @ U_v
    i, f = (x @ U_g + b_g).chunk(2, -1)
    kept = F.logsigmoid(f) + m
    m = torch.maximum(kept, i)
    f = torch.exp(kept - m)
    i = torch.exp(i - m)
    memory = f.unsqueeze(-1) * C.unflatten(-1, (-1, v.shape[-1])) + (i * k).unsqueeze(-1) * v.unsqueeze(-2)
    n = f * n + i * k
    read = (q.unsqueeze(-1) * memory).sum(-2)
    size = torch.maximum((q * n).sum(-1, keepdim=True).abs(), torch.exp(-m))
    return torch.sigmoid(x @ U_o + b_o) * read / size, (memory.flatten(-2), n, m)


@cell
def delta_rule(
    x, S: "key*hidden", *,  # type: ignore[valid-type]
    U_q: "input key", U_k: "input key", U_v: "input hidden", U_b: "input 1", b=zeros,  # type: ignore[valid-type]
):  # fmt: skip
    """Fast weights, corrected at each step where its key reads them. Schlag, Irie & Schmidhuber 2021, arXiv:2102.11174.

    The keys k and queries q, of the size key, have length 1, as in Yang et al. 2024, arXiv:2406.06484.
    """
    q, k, v = F.normalize(x @ U_q, dim=-1), F.normalize(x @ U_k, dim=-1), x @ U_v
    weights = S.unflatten(-1, (-1, v.shape[-1]))
    found = (k.unsqueeze(-1) * weights).sum(-2)
    weights = weights + k.unsqueeze(-1) * (torch.sigmoid(x @ U_b + b) * (v - found)).unsqueeze(-2)
    return (q.unsqueeze(-1) * weights).sum(-2), weights.flatten(-2)


@cell
def leaky(x, h, *, U, W, b=zeros, tau: float = 10.0):
    """Leaky unit: the state moves by 1/tau of the way. Jaeger et al. 2007, Leaky-integrator echo state networks."""
    return h + (torch.tanh(x @ U + h @ W + b) - h) / tau


@cell
def continuous_time(x, h, *, U, W, b=zeros, log_tau=constant(1.0), dt: float = 1.0):
    """Continuous-time network with a learned time constant a unit, one Euler step. Beer 1995; Yang et al. 2019."""
    rate = dt / (dt + torch.exp(log_tau))
    return (1 - rate) * h + rate * torch.relu(x @ U + h @ W + b)


@cell
def cfc(x, dt: "1", /, h, *, U, W: "hidden hidden", V, b=zeros, d=zeros):  # type: ignore[valid-type]
    """Closed-form continuous-time network: dt is the time since the step before, ``layer(x, dt=gaps)``.

    The gap decides how far the state is on its way from g to k; the shared layer z is as wide as the state. Hasani et
    al. 2022, Closed-form continuous-time neural networks, arXiv:2106.13898.
    """
    z = torch.tanh(x @ U + h @ W + b)
    f, g, k = (z @ V + d).chunk(3, -1)
    gate = torch.sigmoid(-f * dt)
    return gate * torch.tanh(g) + (1 - gate) * torch.tanh(k)


@cell
def dale(x, h, *, U, W, b=zeros, log_tau=constant(1.0), dt: float = 1.0, sigma: float = 0.15, excitatory: float = 0.8):
    """Continuous-time network of excitatory units, the first ones, and inhibitory units, with a private noise each.

    All that a unit sends out has its sign (Dale's law); inhibition is stronger by as much as its units are fewer.
    The output are the rates. Song, Yang & Wang 2016, Training excitatory-inhibitory recurrent neural networks.
    """
    size = h.shape[-1]
    first = round(excitatory * size)
    r = torch.relu(h)
    r = torch.cat([r[:, :first], -first / max(size - first, 1) * r[:, first:]], -1)
    rate = dt / (dt + torch.exp(log_tau))
    h = (1 - rate) * h + rate * (x @ U + r @ W.abs() + b) + torch.sqrt(2 * rate) * noise(h, sigma)
    return torch.relu(h), (h,)
