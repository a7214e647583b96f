"""A function in a user's file is a model or a defense."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from guard import ContractError, InputError, Registry, Rng, Stack
from guard.classifier import assemble
from guard.errors import PluginError, UnknownName
from guard.userfile import FileDefense, FileModel

MODELS = """
import torch
from torch import nn
import guard

def plain(num_classes, image_shape):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], num_classes))

def trained(): return plain(5, (3, 6, 6))
def wrapped(image_shape, *, num_classes, width=3): return guard.model(plain(num_classes, image_shape), mean=[0.5] * 3)
def loose(**more): return plain(5, (3, 6, 6))
def demanding(num_classes, width): ...
def empty(): ...
class Net(nn.Linear):
    def __init__(self, num_classes): super().__init__(108, num_classes)
    def forward(self, images): return super().forward(images.flatten(1))
answer = 42
"""

DEFENSES = """
import torch
import torch.nn.functional as F

def half(images): return images / 2
def coarse(images): return (images * 3).round() / 3
def leaves(images): return torch.from_numpy(images.numpy() / 2)
def grey_only(images):
    if images.shape[1] != 1: raise ValueError(images.shape)
    return images.clamp(0.2, 0.8)
def noisy(images): return images + 0.1 * torch.randn_like(images)
def smaller(images): return images[..., 1:]
def nothing(images): return None
def root(images): return (images * 0).sqrt()
"""

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
RNG = Rng(0, torch.arange(4), (3, 6, 6))


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "my_models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def defenses(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(DEFENSES)
    return path


@pytest.mark.parametrize("function", ["plain", "trained", "loose", "Net"])
def test_a_model_is_called_with_what_its_signature_names(registry: Registry, models: Path, function: str) -> None:
    source = registry.create("model", f"{models}:{function}")
    assert isinstance(source, FileModel)
    assert source.trained
    assert source.label == f"my_models.py:{function}"
    assert assemble(source, 5, (3, 6, 6))(IMAGES).shape == (4, 5)


def test_a_wrapped_model_is_used_as_it_is(registry: Registry, models: Path) -> None:
    plain = assemble(registry.create("model", f"{models}:plain"), 5, (3, 6, 6))
    wrapped = assemble(registry.create("model", f"{models}:wrapped"), 5, (3, 6, 6))
    assert torch.allclose(wrapped(IMAGES), plain(IMAGES - 0.5), atol=1e-6)


def test_weights_none_means_untrained(registry: Registry, models: Path) -> None:
    assert not registry.create("model", {"name": f"{models}:plain", "weights": "none"}).trained


def test_components_go_through_json_and_pickle(registry: Registry, models: Path, defenses: Path) -> None:
    for kind, spec in (
        ("model", {"name": f"{models}:plain", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}),
        ("defense", f"{defenses}:half"),
    ):
        component = registry.create(kind, spec)
        assert registry.create(kind, component.model_dump()) == component
        assert registry.create(kind, json.loads(component.model_dump_json())) == component
        assert pickle.loads(pickle.dumps(component)) == component
    assert json.loads(Stack(members=(component,)).model_dump_json())["members"][0] == component.model_dump()


def test_the_fingerprint_is_the_files_content(registry: Registry, models: Path) -> None:
    source = registry.create("model", f"{models}:plain")
    before = source.fingerprint()
    assert before == registry.create("model", f"{models}:plain").fingerprint()
    models.write_text(MODELS.replace("manual_seed(0)", "manual_seed(1)"))
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("plan", "has no function 'plan'. Did you mean 'plain'?"),
        ("answer", "has no function 'answer'"),
        ("demanding", "'demanding' in"),
        ("empty", "returns a NoneType. Return a module"),
    ],
)
def test_refuses_functions_that_make_no_model(registry: Registry, models: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        assemble(registry.create("model", f"{models}:{function}"), 5, (3, 6, 6))


def test_refuses_a_file_that_is_not_there_or_broken(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=r"broken.py' did not load: ZeroDivisionError"):
        registry.create("model", f"{tmp_path}/broken.py:f")
    with pytest.raises(PluginError, match=r"no.py' cannot be read"):
        registry.create("defense", f"{tmp_path}/no.py:f")
    with pytest.raises(UnknownName, match="no attack is named"):
        registry.create("attack", f"{tmp_path}/broken.py:f")


@pytest.mark.parametrize(
    ("function", "flows"),
    [("half", True), ("grey_only", True), ("coarse", False), ("leaves", False), ("root", False)],
)
def test_a_defense_is_differentiable_where_gradients_flow(
    registry: Registry, defenses: Path, function: str, flows: bool
) -> None:
    defense = registry.create("defense", f"{defenses}:{function}")
    assert isinstance(defense, FileDefense)
    assert defense.name == function
    assert Stack(members=(defense,)).label == function
    assert defense.differentiable is flows
    assert defense.overrides("preprocess")
    assert not defense.trains


def test_a_defense_changes_images_and_has_a_surrogate(registry: Registry, defenses: Path) -> None:
    half, coarse = (registry.create("defense", f"{defenses}:{name}") for name in ("half", "coarse"))
    assert torch.equal(half.preprocess(IMAGES, RNG), IMAGES / 2)
    assert torch.equal(half.surrogate(IMAGES, RNG), IMAGES / 2)
    assert torch.equal(coarse.preprocess(IMAGES, RNG), (IMAGES * 3).round() / 3)
    assert torch.equal(coarse.surrogate(IMAGES, RNG), IMAGES)


def test_a_probe_leaves_the_global_generator_alone(registry: Registry, defenses: Path) -> None:
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=r"'noisy' in .* draws random numbers"):
        _ = registry.create("defense", f"{defenses}:noisy").differentiable
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("function", "what"), [("smaller", r"shape \(4, 3, 6, 5\)"), ("nothing", "a NoneType")])
def test_a_defense_that_returns_something_else_breaks_its_contract(
    registry: Registry, defenses: Path, function: str, what: str
) -> None:
    defense = registry.create("defense", f"{defenses}:{function}")
    assert not defense.differentiable or function == "smaller"
    with pytest.raises(ContractError, match=f"defense '{function}' from .* returns {what} for images of shape"):
        defense.preprocess(IMAGES, RNG)
