"""AD and DPT with the published tokens, as the gridworld code of DICP has them (jaehyeon-son/dicp), for parity.

    ad    n − 1 tokens W (s, one-hot a, r, s'), then E[s_query]; the action is read at the last
    dpt   W (s_query, 0, 0, 0), then the n − 1 tokens; the action is read at each of them but the first
    world one token more, E[a]; reward (two classes) and next state (one of all cells) are read there

One window has one query: AD's loss is at a single position; DPT's n − 1 losses have one label. States are numbers in
W and free codes in E and in the world model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robotics.icrl.models.batch import Arrays, Window
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.models.trunk import Trunk
from shared.errors import UsageError


class Legacy(nn.Module):
    """See the module. Raises `UsageError` where observations are no grid or actions are reals."""

    def __init__(self, config: ModelConfig, spaces: Spaces) -> None:
        super().__init__()
        if not (spaces.cells and spaces.actions):
            raise UsageError("model.legacy: true; a grid and discrete actions wanted; set it to false")
        self.config, self.spaces, self.query_first = config, spaces, config.method == "dpt"
        dim, width = config.dim, spaces.obs_width
        self.trunk = Trunk(config)
        self.embed_context = nn.Linear(2 * width + spaces.actions + 1, dim)
        # DPT's code builds this map and the embedding of actions, and uses neither without dynamics.
        self.embed_query_state = (
            nn.Linear(width, dim) if self.query_first else nn.Embedding(spaces.codes, dim)
        )
        self.pred_action = nn.Linear(dim, spaces.actions)
        if self.query_first or config.world:
            self.embed_query_action = nn.Embedding(spaces.actions, dim)
        if config.world:
            self.pred_reward = nn.Linear(dim, 2)
            self.pred_next_state = nn.Linear(dim, spaces.codes)

    def fit_scaling(self, arrays: Arrays) -> None:
        """Nothing is scaled. Raises `UsageError` for rewards that are not 0 or 1, which the two classes cannot say."""
        if self.config.world and not ((arrays.reward == 0) | (arrays.reward == 1)).all():
            raise UsageError(
                "model.legacy: true with rewards other than 0 and 1; those wanted; set it to false"
            )

    # ------------------------------------------------------------ tokens

    def code(self, obs: Tensor) -> Tensor:
        """(…, O) → (…): one number a cell, the last coordinate fastest."""
        found = torch.zeros_like(obs[..., 0])
        for at, n in enumerate(self.spaces.cells):
            found = found * n + obs[..., at]
        return found

    def cell(self, code: Tensor) -> Tensor:
        """The inverse of `code`."""
        parts = []
        for n in reversed(self.spaces.cells):
            parts.append(code % n)
            code = code // n
        return torch.stack(parts[::-1], -1)

    def transitions(self, obs: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
        """(…, O), (…), (…), (…, O) → (…, d)."""
        kind = self.embed_context.weight.dtype
        parts = [obs, F.one_hot(action, self.spaces.actions), reward[..., None], after]
        return self.embed_context(torch.cat([part.to(kind) for part in parts], -1))  # type: ignore[no-any-return]

    def query(self, obs: Tensor) -> Tensor:
        """(…, O) → (…, d)."""
        if not self.query_first:
            return self.embed_query_state(self.code(obs))  # type: ignore[no-any-return]
        width = self.embed_context.in_features
        return self.embed_context(F.pad(obs.to(self.embed_context.weight.dtype), (0, width - obs.shape[-1])))  # type: ignore[no-any-return]

    def sequence(self, context: Tensor, query: Tensor) -> Tensor:
        """(B, m, d), (B, d) → (B, m + 1, d) in the method's order."""
        parts = [query[:, None], context] if self.query_first else [context, query[:, None]]
        return torch.cat(parts, 1)

    # ------------------------------------------------------------ what comes out

    def losses(self, window: Window) -> Mapping[str, Tensor]:
        """`loss` and its parts for windows of n steps, the last of which is the query."""
        context = self.transitions(window.obs, window.action, window.reward, window.after)[:, :-1]
        x = self.sequence(context, self.query(window.obs[:, -1]))
        length = x.shape[1]
        if self.config.world:
            x = torch.cat([x, self.embed_query_action(window.action[:, -1])[:, None]], 1)
        hidden = self.trunk(x)
        read = hidden[:, 1:length] if self.query_first else hidden[:, length - 1 : length]
        logits = self.pred_action(read).float()
        label = window.label[:, -1:].expand(-1, read.shape[1])
        action = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view(label.shape)
        found = {
            "action": (action * window.weight[:, None]).mean(),
            "accuracy": (logits.argmax(-1) == label).float().mean(),
        }
        total = found["action"]
        if self.config.world:
            for name, map_, target in (
                ("reward", self.pred_reward, window.reward[:, -1].long()),
                ("after", self.pred_next_state, self.code(window.after[:, -1])),
            ):
                miss = F.cross_entropy(map_(hidden[:, -1]).float(), target, reduction="none")
                found[name] = (miss * window.weight).mean()
                total = total + self.config.dynamics_strength * found[name]
        return {"loss": total, **found}
