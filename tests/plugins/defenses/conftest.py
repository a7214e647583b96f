"""A network with BatchNorm, and one update of the weights without a training loop."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Generator, Tensor, nn

from guard import Defense, Registry, Step, ThreatModel
from guard.defense import stack

LR = 0.3

Make = Callable[..., Defense]
Update = Callable[..., Step]


@pytest.fixture
def make(registry: Registry) -> Make:
    """make(name, **parameters) -> a registered defense."""
    return lambda name, **parameters: registry.create("defense", {"name": name, **parameters})


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.fixture
def linf() -> ThreatModel:
    return ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture
def network() -> nn.Module:
    """Smooth, in float64 and train mode, for images (3, 4, 4) and 4 classes; its BatchNorm has seen other images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(
            *(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)),
        ).double()
        model(torch.rand(16, 3, 4, 4).double() * 0.5)
    return model.train()


@pytest.fixture
def update() -> Update:
    """update(defenses, model, images, targets, threat, seed=0, epoch=0, memory={}, watch=None) -> the step, done: plain
    SGD at a learning rate of 0.3. `watch` is called with the step each time that it proceeds."""

    def run(
        defenses: Defense | Sequence[Defense],
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        threat: ThreatModel,
        *,
        seed: int = 0,
        epoch: int = 0,
        memory: dict[str, Tensor] | None = None,
        watch: Callable[[Step], None] = lambda step: None,
    ) -> Step:
        members, generator = stack(defenses), Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), LR)
        images, targets = members.augment(images, targets, generator)
        adversarial = members.adversary(model, images, targets, threat, generator)

        def objective() -> Tensor:
            return members.loss(model, step.images, step.adversarial, step.targets, generator)

        def proceed() -> Tensor:
            watch(step)
            optimizer.zero_grad()
            loss = objective()
            loss.backward()
            optimizer.step()
            return loss.detach()

        memory = {} if memory is None else memory
        step = Step(model, images, adversarial, targets, objective, threat, epoch, 10, generator, memory)
        loss = members.update(step, proceed)
        assert loss.shape == ()
        assert not loss.requires_grad
        return step

    return run


@pytest.fixture
def descended() -> Callable[[nn.Module, Callable[[nn.Module], Tensor]], nn.Module]:
    """descended(model, loss) -> a copy of the model, one step of 0.3 down the gradient of loss(copy)."""

    def run(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> nn.Module:
        model = copy.deepcopy(model)
        weights = list(model.parameters())
        gradients = torch.autograd.grad(loss(model), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= LR * gradient
        return model

    return run


@pytest.fixture
def same() -> Callable[[nn.Module, nn.Module], None]:
    """same(one, other): weights and running statistics agree to 1e-10."""

    def check(one: nn.Module, other: nn.Module) -> None:
        expected = other.state_dict()
        for key, value in one.state_dict().items():
            torch.testing.assert_close(
                value, expected[key], rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
            )

    return check


@pytest.fixture
def ascent() -> Callable[..., Tensor]:
    """ascent(model, point, loss) -> the gradient of loss(model(point)) by the point."""

    def run(model: nn.Module, point: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = point.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(leaf)), leaf)
        return gradient

    return run
