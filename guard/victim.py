"""Victim: the only door from an attack to a model."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from guard.counts import Counts
from guard.errors import ContractError
from guard.goal import Goal
from guard.layers import recorded, shapes
from guard.losses import cross_entropy
from guard.rng import Rng
from guard.stage import Stage, bridged

Access = Literal["gradients", "logits", "labels", "transfer"]
Transform = Callable[[Tensor, Tensor], Tensor]
ACCESS: tuple[Access, ...] = ("transfer", "labels", "logits", "gradients")
"""From what asks least of a model to what asks most."""


_BLIND = "the model gives no gradient: something before its logits is not differentiable"


class Victim:
    """A model, its stack's preprocesses in front, bound to the images of one call to an attack.

    Calls take one row per image, or k rows per image, image-major; each row counts as one query of its image.
    `victim[keep]`, `goal[keep]` and `rng[keep]` go together: a mask over the images, or an index that may repeat.
    Where a preprocess is not differentiable, its backward goes through its surrogate (BPDA, Athalye et al. 2018).
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        rng: Rng,
        *,
        stages: Sequence[Stage] = (),
        access: Access = "gradients",
        drop: bool = True,
        eot: int = 1,
        search: nn.Module | None = None,
        bf16: bool = False,
        max_queries: int | None = None,
    ) -> None:
        """`rng` feeds randomized stages. `drop`: whether an attack may stop at an image that reached its goal.
        `eot`: draws of a randomized victim that gradients and
        logits are averaged over; each is counted. `search`: the same model, executed faster,
        and `bf16`: with gradients in bfloat16; both answer while an attack searches, and `reached` confirms what they
        claim. `max_queries`: how many rows each image may be asked about; more is a ContractError. A confirmation would
        be a query too, so that the model itself then answers all of them."""
        if max_queries is not None:
            search, bf16 = None, False
        self.drop = drop
        self._model, self._stages, self._access, self._rng = model, tuple(stages), access, rng
        self._search, self._bf16 = model if search is None else search, bf16
        self._eot = 1 if max_queries is not None else eot  # a query is one draw
        self._maps: tuple[tuple[Transform, Tensor], ...] = ()  # the newest first, each with the images it is bound to
        self._rows = torch.arange(len(images), device=images.device)
        self._blank = images.new_zeros((2, *images.shape[1:]))
        self._max_queries = max_queries
        self.counts = Counts(len(images), images.device)
        self._sinks: tuple[Counts, ...] = (self.counts,)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, keep: Tensor) -> "Victim":
        part = copy.copy(self)
        part._rows, part._rng = self._rows[keep], self._rng[keep]
        part._maps = tuple((transform, images[keep]) for transform, images in self._maps)
        return part

    @property
    def remaining(self) -> Tensor | None:
        """How many queries each image has left, int64 (N,); None where there is no limit."""
        return None if self._max_queries is None else self._max_queries - self.counts.forwards[self._rows]

    @property
    def memory(self) -> dict[str, Tensor]:
        """What it keeps of the calls so far, by name: counts, and how much was drawn. Writing there takes it back."""
        counts = self.counts
        return {
            "forwards": counts.forwards,
            "backwards": counts.backwards,
            "unusable": counts.unusable,
            "draws": self._rng.draws,
        }

    def part(self, name: str, *, access: Access | None = None, bf16: bool = True) -> "Victim":
        """The same door for one part of an attack: what it costs is also counted under that name.

        It gives no more than `access`, and answers in bfloat16 only where both the attack and its part may search so.
        """
        part = copy.copy(self)
        counts = self._sinks[-1].part(name)
        counts.tried[self._rows] = True
        part._sinks, part._bf16 = (*self._sinks, counts), self._bf16 and bf16
        part._access = self._access if access is None else min(self._access, access, key=ACCESS.index)
        return part

    def credit(self, part: str, keep: Tensor) -> None:
        """Note that a part of the attack brought these images to their goal."""
        self._sinks[-1].part(part).broke[self._rows[keep]] = True

    def leave_undecided(self, keep: Tensor) -> None:
        """Note that the attack stops at these images although they might still fall; the report says how many."""
        self.counts.undecided[self._rows[keep]] = True

    def logits(self, points: Tensor) -> Tensor:
        """Logits (k N, K) of points (k N, C, H, W), without a gradient."""
        self._require("logits")
        with torch.no_grad():
            (logits,) = self._mean(lambda: [self._forward(points)])
        return logits

    def labels(self, points: Tensor) -> Tensor:
        """Predicted classes, int64 (k N,); of a randomized victim that of one draw."""
        self._require("labels")
        with torch.no_grad():
            return self._forward(points).argmax(1)

    def reached(self, points: Tensor, goal: Goal, logits: Tensor) -> Tensor:
        """Which points reach the goal, bool (k N,): those whose logits, just answered by this victim, claim it.

        A claim of a faster execution is confirmed by a forward of the model as it is scored.
        """
        claimed = goal.reached(logits)
        if self._search is self._model and not self._bf16:
            return claimed
        index = claimed.nonzero().squeeze(1)
        if not len(index):
            return claimed
        images = index // max(len(points) // len(self), 1)
        with torch.no_grad():
            again = self[images]._forward(points[index], self._model)
        return claimed.index_copy(0, index, goal[index].reached(again))

    def gradient(
        self,
        points: Tensor,
        goal: Goal,
        loss: Callable[..., Tensor] = cross_entropy,
        layers: Sequence[str] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of each image's loss at its point, the losses (N,) and the logits (N, K).

        One forward and one backward. `loss(logits, goal)` returns one value per row; where `layers` are named, it is
        called as `loss(logits, goal, features)` with a mapping from each layer's name to its answer.
        """
        self._require("gradients")

        def draw() -> Sequence[Tensor]:
            leaf = points.detach().requires_grad_()
            with torch.autocast(leaf.device.type, torch.bfloat16) if self._bf16 else nullcontext():
                logits, features = self._observed(leaf, layers)
            logits = logits.to(leaf.dtype)
            values = loss(logits, goal, features) if layers else loss(logits, goal)
            return self._backward(values, leaf), values.detach(), logits.detach()

        with torch.enable_grad():
            gradient, values, logits = self._mean(draw)
        return gradient, values, logits

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """The layers that may be named, in the order in which they run, each with the shape of its answer to one image.

        Names are those of the user's own network. Left out is what runs before the first layer with parameters, and
        what does not answer with a row for each image. Found by a forward of blank images past all preprocesses, which
        is not counted: it tells how the model is built and nothing about an image.
        """
        self._require("gradients")
        return shapes(self._model, self._blank)

    def features(self, points: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """What the named layers answer to points (k N, C, H, W), each (k N, ...), without a gradient; one forward.

        Raises InputError for an unknown layer and for one that does not answer with a row for each point.
        """
        self._require("gradients")
        with torch.no_grad():
            return self._observed(points, layers)[1]

    def jacobian(self, points: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (N, c, C, H, W) of the logits of `classes` int64 (N, c), and the logits (N, K).

        One forward and c backwards.
        """
        self._require("gradients")

        def draw() -> Sequence[Tensor]:
            leaf = points.detach().requires_grad_()
            logits = self._forward(leaf)
            chosen = logits.gather(1, classes)
            rows = []
            for column in range(classes.shape[1]):
                rows.append(self._backward(chosen[:, column], leaf, keep=column + 1 < classes.shape[1]))
            return torch.stack(rows, 1), logits.detach()

        with torch.enable_grad():
            jacobian, logits = self._mean(draw)
        return jacobian, logits

    def through(self, transform: Transform, images: Tensor) -> "Victim":
        """The same door with every point x first mapped by a differentiable transform(x, images)."""
        part = copy.copy(self)
        part._maps = ((transform, images), *self._maps)
        return part

    @property
    def module(self) -> nn.Module:
        """The victim as a module: counted and differentiable, for attacks that build their own graph; each call of a
        randomized victim is one draw."""
        self._require("gradients")
        return _Door(self)

    def _require(self, needed: Access) -> None:
        if ACCESS.index(needed) > ACCESS.index(self._access):
            raise ContractError(f"it declares access = '{self._access}' and asked the victim for {needed}")

    def _mean(self, draw: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Of several draws where the victim draws."""
        total = draw()
        for _ in range(self._eot - 1):
            total = [a + b for a, b in zip(total, draw(), strict=True)]
        return [part / self._eot for part in total] if self._eot > 1 else total

    def _forward(self, points: Tensor, model: nn.Module | None = None) -> Tensor:
        draws = len(points) // max(len(self), 1)
        if draws * len(self) != len(points) or (len(self) and not draws):
            raise ContractError(f"it asked about {len(points)} points for {len(self)} images; pass k rows per image")
        rows = self._rows if draws == 1 else self._rows.repeat_interleave(draws)
        for counts in self._sinks:
            counts.add_forward(rows)
        if self._max_queries is not None and (self.counts.forwards > self._max_queries).any():
            raise ContractError(f"it asked about an image more often than max_queries = {self._max_queries} allows")
        for transform, images in self._maps:
            points = transform(points, images if draws == 1 else images.repeat_interleave(draws, 0))
        if self._stages:
            points = self._preprocessed(points, draws)
        logits: Tensor = (self._search if model is None else model)(points)
        return logits

    def _observed(self, points: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and what the named layers answer; these are the model's own, never a faster execution's."""
        if not layers:
            return self._forward(points), {}
        with recorded(self._model, layers, len(points)) as features:
            return self._forward(points, self._model), features

    def _preprocessed(self, points: Tensor, draws: int) -> Tensor:
        rng = self._rng
        if draws > 1:
            rng = rng[torch.arange(len(self), device=points.device).repeat_interleave(draws)]
        return bridged(self._stages, points, rng.spawn())

    def _backward(self, values: Tensor, leaf: Tensor, keep: bool = False) -> Tensor:
        if not values.requires_grad:
            raise ContractError(_BLIND)
        (gradient,) = torch.autograd.grad(values.sum(), leaf, retain_graph=keep)
        self._count_backward(gradient)
        return gradient

    def _count_backward(self, gradient: Tensor) -> None:
        draws = len(gradient) // max(len(self), 1)
        rows = self._rows if draws == 1 else self._rows.repeat_interleave(draws)
        finite = (gradient * 0).sum(tuple(range(1, gradient.dim()))) == 0  # flattened, channels_last would be copied
        for counts in self._sinks:
            counts.add_backward(rows, finite)


class _Door(nn.Module):
    """A victim in the shape of a module."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self._victim = [victim]  # in a list: nn.Module must not register what hangs on it

    def forward(self, points: Tensor) -> Tensor:
        points = points.view_as(points)  # a node of this call's own: a leaf that is used again would count again
        if points.requires_grad:
            points.register_hook(self._victim[0]._count_backward)
        logits = self._victim[0]._forward(points)
        if points.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise ContractError(_BLIND)
        return logits
