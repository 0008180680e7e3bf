"""The feature network: deterministic, batch-independent, honest about what it learned, and unforgeable on disk."""

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore.core.errors import UserError
from diffcore.data.feed import to_float
from diffcore.data.read import Images
from diffcore.metrics import features as eyes
from diffcore.metrics.features import Config, Features, extract, load, save, train
from tests.conftest import seeded

QUICK = Config(channels=8, dimension=16, iterations=60, batch=32, lr=4e-3, seed=0)
ONE = dataclasses.replace(QUICK, iterations=1)


def learn(images: Tensor, labels: Tensor | None, config: Config, *words) -> Features:
    return train(Images(images, labels, None), config, *words)


def bars(count: int = 200, side: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy pictures of a bright bar: labels say whether it stands (1) or lies (0). It lies or stands off centre."""
    labels = torch.arange(count) % 2
    x = torch.rand(count, channels, side, side, generator=seeded()) * 100
    x[labels == 0, :, 1] += 150
    x[labels == 1, :, :, 1] += 150
    return x.to(torch.uint8), labels


@pytest.fixture(scope="module")
def network() -> Features:
    torch.set_num_threads(1)  # as one_thread does, which comes too late for a fixture of the module
    return learn(*bars(), QUICK)


def test_tells_classes_apart_on_held_out_images(network):
    assert network.card.task == "classes"
    assert network.card.outputs == 2
    assert (network.card.images, network.card.held_out) == (200, 20)
    assert network.card.accuracy == 1.0


def test_held_out_images_train_nothing_and_are_what_accuracy_is_of(network):
    images, labels = bars()
    seen, held_out = eyes._split(200, QUICK.seed)
    assert sorted([*seen.tolist(), *held_out.tolist()]) == list(range(200))
    labels[held_out] = 1 - labels[held_out]
    fooled = learn(images, labels, QUICK)
    assert fooled.digest == network.digest
    assert fooled.card.accuracy == 0.0
    images[held_out] = 0
    assert learn(images, labels, QUICK).digest == network.digest


def test_without_labels_learns_rotations():
    images, _ = bars()
    lying = images[::2]  # the bar lies at the top: each quarter turn puts it elsewhere
    card = learn(lying, None, QUICK).card
    assert (card.task, card.outputs) == ("rotations", 4)
    assert card.accuracy > 0.9


def test_labels_of_one_class_are_no_labels():
    images, _ = bars(40)
    assert learn(images, torch.full((40,), 7), ONE).card.task == "rotations"


def test_labels_may_have_gaps():
    images, labels = bars(40)
    with_gaps, without = learn(images, labels * 5 - 3, QUICK), learn(images, labels, QUICK)
    assert with_gaps.digest == without.digest


@pytest.mark.parametrize("labelled", [True, False])
def test_looking_up_fewer_images_at_a_time_changes_nothing(monkeypatch, labelled):
    images, labels = bars(40)
    config = dataclasses.replace(QUICK, iterations=5)
    whole = learn(images, labels if labelled else None, config)
    for ahead in (1, 2 * 32 * 64):  # a batch at a time, two batches
        monkeypatch.setattr(eyes, "AHEAD", ahead)
        assert learn(images, labels if labelled else None, config).digest == whole.digest


def test_a_network_near_chance_is_told_from_one_that_learned(network):
    assert network.card.chance == 0.55  # of the 20 held out
    assert network.card.skill.warning is None
    for classes, accuracy, chance, near in [
        ("classes", 0.133, 0.1, True),  # found on digits: a tenth of the classes each
        ("classes", 0.279, 0.1, True),
        ("classes", 0.281, 0.1, False),
        ("rotations", 0.26, 0.25, True),
        ("rotations", 0.41, 0.25, False),
        ("classes", 0.83, 0.8, True),  # four fifths are of one class
    ]:
        skill = dataclasses.replace(network.card, task=classes, outputs=10, accuracy=accuracy, chance=chance).skill
        assert skill.is_near_chance == near
        assert (skill.warning is not None) == near
    warning = dataclasses.replace(network.card, outputs=10, accuracy=0.133, chance=0.1).skill.warning
    assert "10 classes apart hardly better than chance (accuracy 0.133, chance 0.100)" in warning


def test_chance_is_the_most_frequent_answers_share():
    images, labels = bars(200)
    _, held_out = eyes._split(200, ONE.seed)
    labels = (torch.arange(200) % 10 == 0).long()
    card = learn(images, labels, ONE).card
    assert card.chance == (labels[held_out] == 0).double().mean().item()
    assert learn(images, None, ONE).card.chance == 0.25


def test_all_quarter_turns_of_the_central_square():
    x = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(2, 1, 3, 5)
    turned = eyes._rotated(x)
    assert torch.equal(turned[0], x[..., 1:4])
    for k in range(1, 4):
        assert torch.equal(turned[k], torch.rot90(x[..., 1:4], k, (2, 3)))


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 64), (1, 5), (1, 3)])
def test_any_shape_of_image(channels, side):
    network = learn(*bars(20, side, channels), ONE)
    x = to_float(bars(6, side, channels)[0])
    assert extract(network, x).shape == (6, 16)
    larger = F.interpolate(x, size=(side + 3, side + 7))
    assert extract(network, larger).shape == (6, 16)


def test_batch_law(network):
    x = to_float(bars(9)[0])
    alone = torch.cat([extract(network, one[None]) for one in x])
    for batch in (2, 9):
        torch.testing.assert_close(extract(network, x, batch), alone, rtol=0, atol=1e-5)


def test_same_seed_same_network_and_the_global_dice_stay_where_they_are():
    before = torch.get_rng_state()
    first = learn(*bars(40), QUICK)
    torch.rand(3)
    moved = torch.get_rng_state()
    assert learn(*bars(40), QUICK).digest == first.digest
    assert torch.equal(torch.get_rng_state(), moved)
    torch.set_rng_state(before)
    assert learn(*bars(40), dataclasses.replace(QUICK, seed=1)).digest != first.digest


def test_digest_covers_every_weight_and_the_config(network):
    for value in network.state_dict().values():
        kept = value.clone()
        before = network.digest
        value.add_(1)
        assert network.digest != before
        value.copy_(kept)
    other = Features(dataclasses.replace(network.card, config=dataclasses.replace(QUICK, lr=1.0)))
    other.load_state_dict(network.state_dict())
    assert other.digest != network.digest


def test_features_are_standardised(network):
    seen, _ = eyes._split(200, QUICK.seed)
    found = extract(network, to_float(bars()[0][seen]))
    torch.testing.assert_close(found.mean(0), torch.zeros(16).double(), rtol=0, atol=1e-5)
    assert found.var(0).mean().item() == pytest.approx(1, abs=1e-5)


def test_progress_is_reported_at_each_iteration():
    seen = []
    learn(*bars(40), QUICK, lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(QUICK.iterations))
    assert seen[-1][1] < seen[0][1] / 2


def test_round_trip_on_disk(network, tmp_path):
    save(network, tmp_path / "eyes")
    again = load(tmp_path / "eyes")
    x = to_float(bars(5)[0])
    assert torch.equal(extract(again, x), extract(network, x))
    assert (again.card, again.digest) == (network.card, network.digest)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert sorted(path.name for path in (tmp_path / "eyes").iterdir()) == ["card.json", "features.safetensors"]


def test_the_same_network_is_the_same_bytes(network, tmp_path):
    save(network, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    for name in ("card.json", "features.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_load_refuses_what_its_card_does_not_vouch_for(network, tmp_path):
    folder = tmp_path / "eyes"
    with pytest.raises(UserError, match="holds no feature network"):
        load(folder)
    save(network, folder)
    weights, card = (folder / eyes.WEIGHTS).read_bytes(), (folder / eyes.CARD).read_text()
    (folder / eyes.WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match="not the file its card vouches for"):
        load(folder)
    (folder / eyes.WEIGHTS).unlink()
    with pytest.raises(UserError, match="not the file its card vouches for"):
        load(folder)
    (folder / eyes.WEIGHTS).write_bytes(weights)
    stored = json.loads(card)
    for change, message in [
        ({"digest": "0" * 64}, "not its network's"),
        ({"config": {**stored["config"], "lr": 0.5}}, "not its network's"),
        ({"config": {**stored["config"], "dimension": 8}}, "does not fit"),
        ({"config": {**stored["config"], "channels": 9}}, "not the card of a feature network"),
        ({"schema": 2}, "not the card of a feature network"),
        ({"files": {}}, "not the card of a feature network"),
    ]:
        (folder / eyes.CARD).write_text(json.dumps({**stored, **change}))
        with pytest.raises(UserError, match=message):
            load(folder)
    (folder / eyes.CARD).write_text(card[:-20])
    with pytest.raises(UserError, match="not the card of a feature network"):
        load(folder)


def test_mistakes(network):
    with pytest.raises(UserError, match="at least 10 images"):
        learn(*bars(9), QUICK)
    with pytest.raises(UserError, match=r"lower features\.lr"):
        learn(*bars(40), dataclasses.replace(QUICK, lr=1e30))
    with pytest.raises(UserError, match="no difference between the images"):
        learn(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), None, ONE)
    with pytest.raises(UserError, match="1 channels and is shown 3"):
        extract(network, torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="labels of shape"):
        learn(bars(20)[0], torch.zeros(19, dtype=torch.int64), ONE)


@pytest.mark.parametrize(
    "change",
    [
        *({"channels": bad} for bad in (0, -8, 4, 12)),
        *({name: bad} for name in ("dimension", "iterations", "batch") for bad in (0, -1)),
        *({"lr": bad} for bad in (0.0, -1e-3, math.inf, math.nan)),
    ],
)
def test_config_is_checked(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(QUICK, **change)


FIELDS = {
    "config": dataclasses.replace(QUICK, lr=1.0),
    "shape": (1, 8, 9),
    "task": "rotations",
    "outputs": 2,
    "images": 201,
    "held_out": 21,
    "accuracy": 0.5,
    "chance": 0.25,
}


def test_the_digest_is_of_what_a_network_was_made_from_not_of_how_well_it_did(network):
    """Each field of its card alone, and of its config: the same weights made otherwise are another network."""
    assert set(FIELDS) == {field.name for field in dataclasses.fields(eyes.Card)}
    before, card = network.digest, network.card
    changes = [{name: value} for name, value in FIELDS.items() if value != getattr(card, name)]
    changes += [
        {"config": dataclasses.replace(QUICK, **{field.name: 2 * getattr(QUICK, field.name) or 1})}
        for field in dataclasses.fields(Config)
    ]
    assert len(changes) == 7 + 6
    try:
        for change in changes:
            network.card = dataclasses.replace(card, **change)
            assert (network.digest == before) == (next(iter(change)) in ("accuracy", "chance")), change
    finally:
        network.card = card


def test_the_rate_falls_along_half_a_cosine(monkeypatch):
    made, rates = [], []

    class Spy(eyes.AdamW):
        def __init__(self, parameters, **options):
            made.append((self, options))
            super().__init__(parameters, **options)

        def step(self, lr):
            rates.append(lr)
            super().step(lr)

    monkeypatch.setattr(eyes, "AdamW", Spy)
    learn(*bars(40), dataclasses.replace(QUICK, iterations=4, lr=0.01))
    ((_, options),) = made
    assert options["weight_decay"] == 0.01
    assert options["betas"] == (0.9, 0.99)
    assert rates == pytest.approx([0.01, 0.01 * (0.5 + 0.5**1.5), 0.005, 0.01 * (0.5 - 0.5**1.5)])


def test_of_many_images_enough_serve_and_every_one_of_these_counts(monkeypatch):
    """More than fit in one look: 300 held out for the accuracy, 600 for centre and scale."""
    monkeypatch.setattr(eyes, "ENOUGH", 300)
    images, labels = bars(3200)
    labels = labels + 2 * (torch.arange(3200) % 3 == 0)
    found = learn(images, labels, ONE)
    seen, held_out = eyes._split(3200, ONE.seed)
    assert (len(seen), len(held_out), found.card.held_out, found.card.images) == (2900, 300, 300, 3200)
    right = found.logits(to_float(images[held_out])).argmax(1) == labels[held_out]
    assert found.card.accuracy == right.double().mean().item()
    centred = extract(found, to_float(images[seen[:600]]))
    torch.testing.assert_close(centred.mean(0), torch.zeros(16).double(), rtol=0, atol=1e-5)
    assert centred.var(0).mean().item() == pytest.approx(1, abs=1e-5)
    assert extract(found, to_float(images[seen[:1200]])).mean(0).abs().max() > 1e-4
    turns = learn(images, None, ONE)
    asked = eyes._rotated(to_float(images[held_out]))
    right = [(turns.logits(asked[k]).argmax(1) == k).double().mean().item() for k in range(4)]
    assert turns.card.accuracy == pytest.approx(sum(right) / 4, abs=1e-12)


@pytest.mark.parametrize("text", ["[]", "1", "null", '{"schema": 1}', "[" * 100, "[" * 100_000])
def test_a_card_that_is_none_is_a_mistake(network, tmp_path, text):
    save(network, tmp_path / "eyes")
    (tmp_path / "eyes" / eyes.CARD).write_text(text)
    with pytest.raises(UserError, match="not the card of a feature network"):
        load(tmp_path / "eyes")


def card(side: tuple[int, int] = (8, 8), config: Config = QUICK, channels: int = 1) -> eyes.Card:
    return eyes.Card(config, (channels, *side), "rotations", 4, 100, 10)


@pytest.mark.parametrize("labelled", [True, False])
def test_every_iteration_looks_at_images_and_turns_of_its_own(labelled):
    images, labels = bars(100)
    seen = torch.arange(90)
    config = dataclasses.replace(QUICK, iterations=40, batch=16)
    batches = list(eyes._batches(Images(images, labels if labelled else None, None), seen, config))
    assert len(batches) == 40
    assert len({tuple(rows.tolist()) for _, rows, _ in batches}) == 40
    assert torch.cat([rows for _, rows, _ in batches]).unique().tolist() == seen.tolist()
    for x, rows, _ in batches:
        assert torch.equal(x, images[rows])
    turns = {tuple(torch.randint(4, (16,), generator=each).tolist()) for _, _, each in batches}
    assert len(turns) == 40
    again, other = (
        next(eyes._batches(Images(images, None, None), seen, dataclasses.replace(config, seed=seed)))[1]
        for seed in (config.seed, config.seed + 1)
    )
    assert torch.equal(again, batches[0][1])
    assert not torch.equal(other, again)


def test_the_seed_decides_on_the_first_weights_and_on_what_is_held_out():
    """So that networks of several seeds are independent ones; of one seed they are the same."""
    first, again, other = (
        eyes._build(card(config=dataclasses.replace(QUICK, seed=seed))).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim > 1]
    assert len(drawn) > 5
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    splits = [eyes._split(100, seed) for seed in (0, 0, 1)]
    for one, same, another in zip(*splits):
        assert torch.equal(one, same)
        assert sorted(one.tolist()) != sorted(another.tolist())


@pytest.mark.parametrize("side", [(5, 5), (7, 9), (9, 6), (17, 11)])
def test_every_pixel_counts_at_every_halving_the_last_row_and_column_too(side):
    """Of an odd side the last row stands for itself, as if it were there twice."""
    network, given, made = eyes._build(card(side)).eval(), [], []
    for stage in network.stages:
        stage.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        stage.register_forward_hook(lambda module, inputs, output: made.append(output))
    extract(network, torch.randn(2, 1, *side, generator=seeded()))
    assert len(given) > 1
    for before, after in zip(made, given[1:]):
        height, width = before.shape[2:]
        even = F.pad(before, (0, width % 2, 0, height % 2), mode="replicate")
        torch.testing.assert_close(after, F.avg_pool2d(even, 2))


@pytest.mark.parametrize(
    ("side", "times"),
    [
        ((4, 4), [1, 2]),
        ((8, 8), [1, 2]),
        ((9, 64), [1, 2, 4]),
        ((64, 64), [1, 2, 4, 4, 4]),
        ((256, 300), [1, 2] + [4] * 5),
    ],
)
def test_layers_are_doubled_at_the_first_two_halvings_and_no_more(side, times):
    """Whatever the images' size; they are halved until the shorter side has at most four pixels."""
    network = eyes._empty(card(side, channels=3))
    assert (network.stem.in_channels, network.stem.out_channels) == (3, 8)
    assert [stage.conv2.out_channels for stage in network.stages] == [8 * each for each in times]
    assert [stage.conv1.in_channels for stage in network.stages] == [8, *(8 * each for each in times[:-1])]
    assert network.embed.in_features == 8 * times[-1]


def test_a_step_goes_down_the_gradient_of_its_own_batch_alone():
    config = dataclasses.replace(QUICK, iterations=3, batch=8)
    images, labels = bars(40)
    seen, _ = eyes._split(40, 0)
    made = dataclasses.replace(card(config=config), task="classes", outputs=2)
    found, plain = eyes._build(made), eyes._build(made)
    eyes._fit(found, Images(images, labels, None), seen, labels, lambda step, loss: None)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01)
    for step, (x, rows, _) in enumerate(eyes._batches(Images(images, labels, None), seen, config)):
        optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / 3))
        for parameter in plain.parameters():
            parameter.grad = None
        F.cross_entropy(plain.logits(to_float(x)), labels[rows]).backward()
        optimizer.step()
    for (name, one), (_, other) in zip(found.named_parameters(), plain.named_parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_a_card_without_any_of_its_keys_is_a_mistake(network, tmp_path):
    save(network, tmp_path / "eyes")
    path = tmp_path / "eyes" / eyes.CARD
    stored = json.loads(path.read_text())
    assert {"schema", "digest", "files"} < set(stored)
    for key in stored:
        path.write_text(json.dumps({name: value for name, value in stored.items() if name != key}))
        with pytest.raises(
            UserError, match=r"not the card of a feature network .*make it again with the stage `features`"
        ):
            load(tmp_path / "eyes")
    for key in stored["config"]:
        config = {name: value for name, value in stored["config"].items() if name != key}
        path.write_text(json.dumps({**stored, "config": config}))
        with pytest.raises(UserError, match="not the card of a feature network"):
            load(tmp_path / "eyes")


def test_ten_images_are_enough():
    assert learn(*bars(10), ONE).card.images == 10
