"""Pillar 3: the recurrence. An LSTM over (z, c, a), and the context to come, for imagination."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iwm.models.aime.config import AIMEConfig
from iwm.models.aime.prior import full

Cell = tuple[Tensor, Tensor]
"""Hidden and cell state of all layers, each [layers, B, H]."""


class Recurrence(nn.Module):
    """h_t from z_t, c_t, a_t and h_(t-1); starts from a learned state at every episode."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        hidden, context = config.hidden_dim, config.perceiver_config.context_dim
        self.action_width = config.action_width
        self.input_dim = config.latent_dim + context + config.action_width
        self.lstm = nn.LSTM(self.input_dim, hidden, config.n_lstm_layers, batch_first=True)
        self.start_hidden = nn.Parameter(torch.zeros(config.n_lstm_layers, hidden))
        self.start_cell = nn.Parameter(torch.zeros(config.n_lstm_layers, hidden))
        self.start_context = nn.Parameter(torch.zeros(context))
        self.context_ahead = nn.Sequential(
            nn.Linear(hidden + context + config.latent_dim, 2 * context),
            nn.SiLU(),
            nn.Linear(2 * context, context),
        )
        loud = ((config.latent_dim + context) / max(1, config.action_dim)) ** 0.5
        self._initialise(loud, orthogonal=config.use_orthogonal)

    @torch.no_grad()
    def _initialise(self, loud: float, *, orthogonal: bool) -> None:
        """Each gate's recurrent block orthogonal (the stacked matrix is not), forget bias 1."""
        hidden = self.lstm.hidden_size
        for name, value in self.lstm.named_parameters():
            if name.startswith("weight_hh") and orthogonal:
                for gate in torch.split(value, hidden):
                    nn.init.orthogonal_(gate)
            elif name.startswith("bias"):
                value.zero_()
                if name.startswith("bias_ih"):
                    value[hidden : 2 * hidden] = 1.0  # gates stand in the order i, f, g, o
            elif name == "weight_ih_l0":
                # A one-hot is one number among hundreds: it starts as loud as z and c together.
                value[:, -self.action_width :] *= loud

    def start(self, batch: int) -> Cell:
        """The learned start state."""
        layers, hidden = self.start_hidden.shape
        shape = (layers, batch, hidden)
        return (
            self.start_hidden.unsqueeze(1).expand(shape).contiguous(),
            self.start_cell.unsqueeze(1).expand(shape).contiguous(),
        )

    def forward(self, inputs: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Cell]:
        """Run over sequences, as one call where no episode begins midway.

        Args:
            inputs: [B, T, 36 + 256 + A]: (z_t, c_t, a_t).
            starts: bool [B, T], True where t is the first step of an episode.

        Returns:
            h_(t-1) and h_t, [B, T, H] each, and the last state.
        """
        cell = self.start(len(inputs))
        begin = cell[0][-1]
        length = inputs.shape[1]
        cuts = [t for t in range(1, length) if bool(starts[:, t].any())]
        before, after = [], []
        for first, last in zip([0, *cuts], [*cuts, length], strict=True):
            if first:
                fresh = starts[:, first][None, :, None]
                cell = (
                    torch.where(fresh, self.start(len(inputs))[0], cell[0]),
                    torch.where(fresh, self.start(len(inputs))[1], cell[1]),
                )
                begin = cell[0][-1]
            hidden, cell = self._run(inputs[:, first:last], cell)
            before.append(torch.cat([begin.unsqueeze(1), hidden[:, :-1]], dim=1))
            after.append(hidden)
        return torch.cat(before, dim=1), torch.cat(after, dim=1), cell

    def _run(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Cell]:
        # In full precision: CPUs without bfloat16 units have no such LSTM.
        with torch.autocast(inputs.device.type, enabled=False):
            hidden, cell = self.lstm(full(inputs), (full(cell[0]), full(cell[1])))
        return hidden, cell

    def step(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Cell]:
        """One step: [B, I] -> h [B, H] and the state."""
        hidden, cell = self._run(inputs.unsqueeze(1), cell)
        return hidden.squeeze(1), cell

    def next_context(self, hidden: Tensor, context: Tensor, z: Tensor) -> Tensor:
        """c_t, predicted from h_(t-1), c_(t-1) and z_t: what stands in for it in imagination."""
        change: Tensor = self.context_ahead(torch.cat([hidden, context, z], dim=-1))
        return context + change


def shifted(values: Tensor, first: Tensor, starts: Tensor) -> Tensor:
    """Values of the step before: [B, T, ...], ``first`` [...] where an episode begins."""
    before = torch.cat([first.expand_as(values[:, :1]), values[:, :-1]], dim=1)
    fresh = starts.view(*starts.shape, *[1] * (values.ndim - 2))
    return torch.where(fresh, first, before)
