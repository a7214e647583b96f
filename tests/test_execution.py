"""The faster execution of a model is the same function, keeps its layers' names, and steps aside where it cannot be."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import guard
from guard.execution import LARGEST, batch_size, faster


class Net(nn.Module):
    """Two convolutions with BatchNorm behind them, one that is used twice, and a BatchNorm behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.bn4 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        y = self.bn2(self.conv2(x))
        z = self.conv3(y)
        return self.linear(F.relu(self.bn4(self.bn3(z) + z)).mean((2, 3)))


class Branching(Net):
    """Cannot be traced as a whole."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.detach().sum()) > 0 else images + 1)


def trained(net: nn.Module) -> nn.Module:
    """With statistics that are not those of a new BatchNorm."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return net.eval()


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_folds_what_only_feeds_a_batchnorm_and_answers_the_same(batch: Tensor) -> None:
    net = guard.model(trained(Net()), mean=[0.5] * 3, std=[0.2] * 3).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = faster(net, batch)
    torch.testing.assert_close(twin(batch), net(batch), rtol=1e-4, atol=1e-5)
    layers = dict(twin.named_modules())
    kinds = {name.rsplit(".", 1)[-1]: type(layer) for name, layer in layers.items()}
    assert [kinds[name] for name in ("bn1", "bn2", "bn3", "bn4")] == [nn.Identity] * 2 + [nn.BatchNorm2d] * 2
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())  # the model is untouched
    images = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(images)[:, 1].sum(), images)
    (gradient,) = torch.autograd.grad(twin(images)[:, 1].sum(), images)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_where_the_whole_cannot_be_traced_its_parts_are(batch: Tensor) -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = block, Branching()

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.block(images).clamp(0, 1))

    net = trained(Outer())
    twin = faster(net, batch)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in twin.modules()) == 4  # Branching's own
    torch.testing.assert_close(twin(batch), net(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_layer_with_a_hook_is_left_alone(kind: str, batch: Tensor) -> None:
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    if kind == "forward":
        net[0].register_forward_hook(lambda layer, given, output: output * 2)  # type: ignore[operator, union-attr]
    else:
        net[1].register_full_backward_hook(lambda layer, given, output: (given[0] * 3,))  # type: ignore[operator, union-attr]
    twin = faster(net, batch)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in twin.modules()) == 1
    gradients = []
    for model in (net, twin):
        images = batch.clone().requires_grad_()
        logits = model(images)
        gradients.append(torch.autograd.grad(logits.square().sum(), images)[0])
        torch.testing.assert_close(logits, net(batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_a_batch_that_shrinks_meets_few_sizes_and_the_same_answers() -> None:
    net, sizes = trained(Net()), set()
    images = torch.rand(128, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    twin = faster(net, images[:4])
    twin.get_submodule("model.conv2").register_forward_hook(lambda layer, given, output: sizes.add(len(output)))
    expected = net(images)
    for count in range(1, 129):
        some = images[:count].clone().requires_grad_()
        logits = twin(some)
        torch.testing.assert_close(logits, expected[:count], rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), some)
        assert gradient.shape == some.shape
    assert sizes == {*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8)}
    whole = images.clone().requires_grad_()
    (exact,) = torch.autograd.grad(twin(whole)[:, 1].sum(), whole)
    some = images[:100].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(twin(some)[:, 1].sum(), some)  # 104 were computed
    torch.testing.assert_close(gradient, exact[:100], rtol=1e-4, atol=1e-6)


def test_without_convolutions_or_in_float64_the_model_stays_as_it_is(batch: Tensor) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert faster(plain, batch) is plain
    net = trained(Net()).double()
    assert faster(net, batch.double()) is net


@pytest.mark.parametrize(("channels", "expected"), [(8, False), (256, True)])
def test_only_nets_of_some_size_are_put_in_channels_last(channels: int, expected: bool, batch: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, channels, 3), nn.Flatten()).eval()
    twin = faster(net, batch)
    assert (twin is not net) == expected
    first = next(layer for layer in twin.modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.is_contiguous(memory_format=torch.channels_last) == expected
    torch.testing.assert_close(twin(batch), net(batch), rtol=1e-4, atol=1e-5)


def test_a_copy_that_answers_differently_is_not_used(batch: Tensor) -> None:
    class Moody(Net):
        def __deepcopy__(self, memo: object) -> nn.Module:
            return trained(Net()).requires_grad_(False)

    net = trained(Moody())
    nn.init.normal_(net.linear.weight, std=5)  # type: ignore[arg-type, union-attr]
    assert faster(net, batch) is net


def test_a_model_that_cannot_be_copied_is_used_itself(batch: Tensor) -> None:
    class Single(Net):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("there is only one")

    net = trained(Single())
    assert faster(net, batch) is net


def test_a_batch_is_as_large_as_the_largest_layer_allows() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3, stride=2))
    for side, size in ((8, 128), (16, 64), (32, 16), (512, 1)):
        image = torch.zeros(1, 3, side, side)
        assert batch_size(net, image, 128) == size
        assert size * 64 * side * side * 4 <= LARGEST or size == 1
    assert batch_size(net, torch.zeros(1, 3, 8, 8), 100) == 100
