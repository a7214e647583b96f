"""A stack of defenses: who acts when, in which order, and what cannot stand together."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Generator, Tensor, nn

from guard import Defense, InputError, Rng, Stack, Step, ThreatModel
from guard.defense import stack

LOG: list[str] = []


class Plus(Defense):
    """Adds to the images at inference, and to the batch while training."""

    name: ClassVar[str] = "plus"
    amount: float = 1.0

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + self.amount

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        return images + self.amount, targets


class Times(Defense):
    name: ClassVar[str] = "times"
    differentiable = False
    randomized = True

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images * rng.integers(2**40).double()

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        return images * 2 * rng.integers(2**40).double()


class Wrap(Defense):
    name: ClassVar[str] = "wrap"
    label: str = "a"

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        return nn.Sequential(model, nn.Identity())

    def relax(self, model: nn.Module) -> nn.Module:
        return nn.Sequential(model, nn.Flatten())


class Around(Defense):
    name: ClassVar[str] = "around"
    label: str = "a"

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        LOG.append(f"{self.label} in")
        loss = proceed()
        LOG.append(f"{self.label} out")
        return loss


class Adversary(Defense):
    name: ClassVar[str] = "adversary"

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        return images + 5


class Other(Adversary):
    name: ClassVar[str] = "other"


class Objective(Defense):
    name: ClassVar[str] = "objective"

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        return images.sum() * 0 + 7


class Nothing(Defense):
    name: ClassVar[str] = "none"


IMAGES, TARGETS, GENERATOR = torch.ones(2, 1, 1, 1), torch.tensor([0, 1]), torch.Generator()
THREAT = ThreatModel(norm="linf", epsilon=0.1)


def rng() -> Rng:
    return Rng(0, torch.arange(2), (1, 1, 1))


def test_an_empty_stack_changes_nothing() -> None:
    empty, model = Stack(), nn.Flatten()
    assert empty.label == "none"
    assert not empty.trains
    assert empty.modify(model, IMAGES) is empty.relax(model) is model
    assert torch.equal(empty.preprocess(IMAGES, rng()), IMAGES)
    assert torch.equal(empty.adversary(model, IMAGES, TARGETS, THREAT, GENERATOR), IMAGES)
    assert empty.augment(IMAGES, TARGETS, GENERATOR) == (IMAGES, TARGETS)
    logits = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    expected = nn.functional.cross_entropy(logits(IMAGES * 3), TARGETS)
    torch.testing.assert_close(empty.loss(logits, IMAGES, IMAGES * 3, TARGETS, GENERATOR), expected)


def test_members_act_from_left_to_right() -> None:
    both = stack([Plus(amount=3), Times()])
    factor = rng().fold(1).integers(2**40).double()
    torch.testing.assert_close(both.preprocess(IMAGES, rng()), 4 * factor)
    torch.testing.assert_close(both.surrogate(IMAGES, rng()), 8 * factor)
    assert stack([Plus(amount=3), Plus(amount=4)]).augment(IMAGES, TARGETS, GENERATOR)[0].flatten().tolist() == [8, 8]
    modified = stack([Wrap(), Wrap()]).modify(nn.Flatten(), IMAGES)
    assert isinstance(modified, nn.Sequential)
    assert isinstance(modified[0][0], nn.Flatten)
    assert isinstance(stack([Wrap()]).relax(nn.Identity())[1], nn.Flatten)  # type: ignore[index]


def test_a_stack_declares_what_its_members_are() -> None:
    assert (stack(Plus()).differentiable, stack(Plus()).randomized) == (True, False)
    assert (stack([Plus(), Times()]).differentiable, stack([Plus(), Times()]).randomized) == (False, True)


def test_the_left_update_is_outermost() -> None:
    LOG.clear()
    model = nn.Linear(1, 1)
    step = Step(
        model=model,
        images=IMAGES,
        adversarial=IMAGES,
        targets=TARGETS,
        objective=lambda: torch.tensor(3.0),
        threat=THREAT,
        epoch=0,
        epochs=1,
        generator=GENERATOR,
        memory={},
    )

    def proceed() -> Tensor:
        LOG.append("step")
        return torch.tensor(3.0)

    loss = stack([Around(label="a"), Plus(), Around(label="b")]).update(step, proceed)
    assert LOG == ["a in", "b in", "step", "b out", "a out"]
    assert loss == 3


def test_the_member_that_brings_an_adversary_or_a_loss_is_found() -> None:
    both = stack([Plus(), Adversary(), Objective()])
    assert both.adversary(nn.Identity(), IMAGES, TARGETS, THREAT, GENERATOR).flatten().tolist() == [6, 6]
    assert both.loss(nn.Identity(), IMAGES, IMAGES, TARGETS, GENERATOR) == 7


def test_two_adversaries_are_refused_by_name() -> None:
    with pytest.raises(InputError) as caught:
        stack([Adversary(), Plus(), Other()])
    assert (
        str(caught.value)
        == "defenses 'adversary' and 'other' both bring their own adversary; a stack takes one of them"
    )
    with pytest.raises(InputError, match="'objective' and 'objective' both bring their own loss"):
        stack([Objective(), stack([Objective()])])


def test_stacks_are_flattened_and_no_ops_drop_out() -> None:
    flat = stack([Nothing(), stack([Plus(), Nothing()]), Wrap()])
    assert [member.name for member in flat.members] == ["plus", "wrap"]
    assert flat.label == "plus + wrap"
    assert stack(Nothing()) == stack([]) == Stack()


def test_only_members_that_preprocess_are_stages() -> None:
    assert [stage.name for stage in stack([Wrap(), Plus(), Adversary(), Times()]).stages] == ["plus", "times"]


@pytest.mark.parametrize(
    ("members", "left", "right"),
    [
        ([Wrap(), Adversary(), Times(), Wrap()], ["wrap", "adversary"], ["times", "wrap"]),
        ([Wrap(), Times()], [], ["wrap", "times"]),
        ([Times(), Around()], ["times", "around"], []),
        ([], [], []),
    ],
)
def test_a_stack_is_split_after_its_last_training_member(
    members: list[Defense], left: list[str], right: list[str]
) -> None:
    one, other = stack(members).split()
    assert [member.name for member in one.members] == left
    assert [member.name for member in other.members] == right
    assert stack(members).trains == bool(left)


@pytest.mark.parametrize(
    ("defense", "trains"),
    [(Plus(), True), (Times(), False), (Wrap(), False), (Around(), True), (Adversary(), True), (Objective(), True)],
)
def test_training_members_are_those_that_act_while_the_network_is_trained(defense: Defense, trains: bool) -> None:
    assert defense.trains is trains


def test_the_surrogate_is_preprocess_itself_where_that_is_differentiable() -> None:
    class Coarse(Plus):
        name: ClassVar[str] = "coarse"
        differentiable = False

    assert torch.equal(Plus().surrogate(IMAGES, rng()), IMAGES + 1)
    assert torch.equal(Coarse().surrogate(IMAGES, rng()), IMAGES)


def test_a_defense_that_acts_at_no_moment_is_refused() -> None:
    class Misspelt(Defense):
        name = "misspelt"

        def preproces(self, images: Tensor, rng: Rng) -> Tensor:
            return images

    with pytest.raises(InputError, match="defense 'misspelt' does nothing: it has none of modify, augment,"):
        stack([Misspelt()])
