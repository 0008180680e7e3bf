"""Pickles of others are read as torch and Python would read them, and nothing in them ever runs."""

import argparse
import collections
import contextlib
import copyreg
import functools
import io
import json
import operator
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffcore.checkpoints import pickled
from diffcore.checkpoints.pickled import layouts, machine, weights
from diffcore.checkpoints.pickled.rebuild import DTYPES
from diffcore.core.errors import UserError
from tasks import command
from tests.conftest import randn

# ---- what is pickled


def legacy(value: Any, path: Path, protocol: int = 2) -> None:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def plain(protocol: int):
    return lambda value, path: path.write_bytes(pickle.dumps(value, protocol))


WRITERS = {
    "archive": torch.save,
    "archive, protocol 4": functools.partial(torch.save, pickle_protocol=4),
    "before 1.6": legacy,
    "before 1.6, protocol 4": functools.partial(legacy, protocol=4),
    **{f"pickle {protocol}": plain(protocol) for protocol in range(6)},
}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def written(write, value: Any, folder: Path, name: str = "x.pkl") -> Path:
    write(value, folder / name)
    return folder / name


def same(a: Any, b: Any) -> bool:
    """Values and types, to the last bit; numpy's arrays are tensors in `a`, its numbers Python's."""
    if isinstance(b, np.ndarray):
        b = torch.from_numpy(np.array(b, order="C"))
    if isinstance(b, np.generic):
        b = b.item()
    if isinstance(b, Tensor):
        equal = isinstance(a, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return equal and bits(a) == bits(b.detach())
    if isinstance(b, dict):
        return type(a) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        kind = list if isinstance(b, list) else tuple
        return type(a) is kind and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def bits(x: Tensor) -> bytes:
    return (
        x.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b""
    )


X = randn(4, 6).float()
Z = torch.complex(X, -X)
CONTENT = {
    "plain": X,
    "turned": X.T[1:, ::2],
    "one of it": X[2, 3],
    "spread": X[:1].expand(5, 6),
    "empty": torch.empty(0, 3),
    "conjugate": Z.conj(),
    "negative": Z.conj().imag,
    "truth": X > 0,
    "parameter": nn.Parameter(X.half()),
    "numbers": [1, -1, 255, 65536, -(2**31), 2**70, -(2**2100), 0.5, float("inf"), True, False, None, 2 - 3j],
    "texts": ["", "a", "ä\n'\"\\", "\U0001f600", "b" * 300, b"", b"\x00\xff", b"c" * 300, bytearray(b"d")],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), torch.Size([2, 3])],
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "dicts": {1: 2, (1, "a"): {}, None: collections.OrderedDict(b=1), "d": collections.defaultdict(list, e=[1])},
    "arrays": [np.arange(6, dtype=np.int16).reshape(2, 3), np.asfortranarray(X.numpy()), np.array(3.5), X.numpy() > 0],
    "numpy's": [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1 + 2j)],
    "state": nn.Linear(2, 3).state_dict(),
}


@writers
@pytest.mark.parametrize("key", CONTENT)
def test_what_was_written_is_read_as_it_was(key, write, tmp_path):
    file = pickled.read(written(write, CONTENT[key], tmp_path))
    assert same(file.content, plain_bytes(CONTENT[key]))
    assert file.refused == {}


def plain_bytes(value: Any) -> Any:
    return (
        [bytes(each) if isinstance(each, bytearray) else each for each in value] if isinstance(value, list) else value
    )


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@writers
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back_to_the_last_bit(dtype, write, tmp_path):
    memory = torch.arange(64, dtype=torch.uint8)
    x = (memory % 2 if dtype == torch.bool else memory).view(dtype)[1:].as_strided((2,), (2,))
    assert same(pickled.read(written(write, x, tmp_path)).content, x)


def test_most_dtypes_are_among_those():
    names = {name.removeprefix("torch.") for name in DTYPES}
    assert names > {
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "complex64",
        "complex128",
    }
    assert names > {"bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"}


def test_what_older_libraries_called_it_is_read_too(tmp_path):
    """numpy before 2, a GPU's storage by torch before 1.6, and Python 2's bytes, which were its texts."""
    array = np.arange(200, 206, dtype=np.uint8)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(array, 2).replace(b"numpy._core.", b"numpy.core."))
    assert same(pickled.read(tmp_path / "x.pkl").content, array)
    assert b"numpy.core." in (tmp_path / "x.pkl").read_bytes()
    content = pickle.dumps(array, 3).replace(b"C\x06" + array.tobytes(), b"U\x06" + array.tobytes())
    assert b"C\x06" not in content
    (tmp_path / "x.pkl").write_bytes(content.replace(b"C\x01b", b"U\x01b"))
    assert same(pickled.read(tmp_path / "x.pkl").content, array)
    content = before(X).replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
    (tmp_path / "x.pkl").write_bytes(content.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0"))
    assert b"cuda:0" in (tmp_path / "x.pkl").read_bytes()
    assert same(pickled.read(tmp_path / "x.pkl").content, X)


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_tensors_of_one_memory_still_share_it(write, tmp_path):
    x = randn(4, 3)
    read = pickled.read(written(write, {"all": x, "row": x[1], "turned": x.T}, tmp_path)).content
    read["row"].zero_()
    assert read["all"][1].eq(0).all()
    assert read["turned"][:, 1].eq(0).all()
    assert read["all"][0].eq(x[0]).all()


def in_parts(path: Path, count: int) -> Tensor:
    """Ten numbers, and `count` of a part, the fifth to the seventh, from its second one on. As torch wrote it before 0.4:
    ("storage", class, name, device, count, (name of the part, first, length))."""
    x = randn(10).float()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            part = ("view", 4, 3) if value == "part" else None
            return ("storage", torch.FloatStorage, "0", "cpu", 10, part) if value in ("whole", "part") else None

    def rebuilt(*arguments) -> Wicked:
        return Wicked(torch._utils._rebuild_tensor, *arguments)

    head = [pickle.dumps(each, 2) for each in (layouts.MAGIC, layouts.PROTOCOL, {"little_endian": True})]
    body = io.BytesIO()
    Pickler(body, 2).dump([rebuilt("whole", 0, (10,), (1,)), rebuilt("part", 1, (count,), (1,))])
    path.write_bytes(
        b"".join([*head, body.getvalue(), pickle.dumps(["0"], 2), struct.pack("<q", 10), x.numpy().tobytes()])
    )
    return x


def test_of_a_storage_before_1_6_a_part_may_be_a_storage(tmp_path):
    x = in_parts(tmp_path / "x.pt", 2)
    read = pickled.read(tmp_path / "x.pt").content
    assert same(read, [x, x[5:7]])
    assert same(torch.load(tmp_path / "x.pt", weights_only=True), read)
    in_parts(tmp_path / "x.pt", 3)
    with pytest.raises(UserError, match="a tensor in it reaches beyond its storage"):
        pickled.read(tmp_path / "x.pt")


def test_a_real_unpickler_agrees_on_what_python_writes_by_text():
    """Opcodes that no Python of today writes, and one by one: the machine is Python's."""
    for content in TEXTS:
        builder = layouts.Rebuild(0)
        assert same(machine.Machine(content, builder).run()[0], pickle.loads(content, encoding="ascii")), content


TEXTS = [
    b"I01\n.",
    b"I00\n.",
    b"I-17\n.",
    b"L99L\n.",
    b"F-1.5\n.",
    b"S'a\\x41\\n'\n.",
    b"V\\u00e4\\n\n.",
    b"(I1\nI2\nl.",
    b"(I1\nI2\nt.",
    b"(S'a'\nI2\nd.",
    b"(lp0\nI1\nag0\n0.",
    b"(dp7\nS'a'\nI1\nsg7\n0.",
    b"U\x01a.",
    b"T\x02\x00\x00\x00ab.",
    b"K\x01K\x022\x86\x86.",
    b"(K\x01K\x021K\x03.",
    b"(K\x010K\x031K\x04.",
    b"\x8b\x02\x00\x00\x00\xff\xfe.",
    b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00]\x94.",
    b"]q\x05j\x05\x00\x00\x000h\x05.",
    b"ccollections\nOrderedDict\n)R.",
    b"c__builtin__\nset\n((K\x05ltR.",
    b"ccollections\nOrderedDict\n)\x81S'a'\nI1\ns.",
    b"ccollections\nOrderedDict\n)}\x92.",
    b"(icollections\nOrderedDict\n.",
    b"(ccollections\nOrderedDict\no.",
    b"(c__builtin__\ncomplex\nK\x01K\x02o.",
    b"ccollections\nOrderedDict\n)R}S'x'\nI1\nsb.",
]

# ---- networks of others

SOURCE = "open('canary', 'w')\n"


def rebuild_persistent(meta):
    raise ZeroDivisionError("an object was made")


@pytest.fixture
def persistence(monkeypatch):
    """EDM's module of that name, as far as pickle looks at it."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    rebuild_persistent.__module__, rebuild_persistent.__qualname__ = (
        "torch_utils.persistence",
        "_reconstruct_persistent_obj",
    )
    module._reconstruct_persistent_obj = rebuild_persistent
    monkeypatch.setitem(sys.modules, "torch_utils", package)
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = EasyDict
    EasyDict.__module__ = "dnnlib.util"
    monkeypatch.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))
    monkeypatch.setitem(sys.modules, "dnnlib.util", util)


class EasyDict(dict):
    pass


class Persistent:
    """What EDM's decorator adds to a class: what it was made with, and how it is pickled."""

    def __reduce__(self):
        state = object.__reduce__(self)[2]
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(self).__name__, "state": state}
        return rebuild_persistent, (meta,), None


class Loss(Persistent):
    def __init__(self):
        self.sigma_data = 0.5


class Block(Persistent, nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self._init_args, self._init_kwargs = (width,), {}
        self.weight = nn.Parameter(randn(width, width).half())
        self.bias = None
        self.register_parameter("gain", None)
        self.register_buffer("filter", torch.ones(2))
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.skip = None


class EDMPrecond(Persistent, nn.Module):
    def __init__(self, *arguments, **keywords):
        super().__init__()
        self._init_args, self._init_kwargs = arguments, keywords
        self.model = nn.ModuleDict(
            {"in": Block(3), "out": nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))}
        )
        self.model["tied"] = self.model["in"]


def edm(**keywords) -> tuple[dict, EDMPrecond]:
    net = EDMPrecond(8, **keywords).eval().requires_grad_(False)
    options = EasyDict(path="x.zip", xflip=False)
    return EasyDict(ema=net, loss_fn=Loss(), augment_pipe=None, dataset_kwargs=options), net


@pytest.mark.usefixtures("persistence")
@pytest.mark.parametrize("write", [plain(3), plain(4), torch.save, legacy])
def test_a_network_of_edm_is_its_state_dict_and_what_it_was_made_with(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, net = edm(
        sigma_data=0.5, sizes=(1, 2), options=EasyDict(use_fp16=True), mean=np.zeros(2), level=float("inf")
    )
    file = pickled.read(written(write, content, tmp_path))
    network = pickled.network(file)
    assert same(network.tensors, dict(net.state_dict()))
    assert "model.in.cache" not in network.tensors
    assert (network.part, network.cls, network.arguments) == ("ema", "EDMPrecond", [8])
    assert network.keywords == {
        "sigma_data": 0.5,
        "sizes": [1, 2],
        "options": {"use_fp16": True},
        "mean": "tensor of torch.float64, shape [2]",
        "level": "inf",
    }
    assert file.content["dataset_kwargs"] == {"path": "x.zip", "xflip": False}
    assert {"EDMPrecond": 1, "Block": 1, "Loss": 1}.items() <= file.refused.items()
    assert file.refused["torch.nn.modules.container.ModuleDict"] == 1
    assert not Path("canary").exists()  # the source is never read
    assert SOURCE not in repr(file.content)


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_of_score_sde_the_averages_take_the_names_of_the_parameters(write, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(randn(5), requires_grad=False)
            self.layers = nn.ModuleList([nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)])
            self.register_buffer("sigmas", randn(7))

    net = nn.Sequential(Net())
    names = [name for name, each in net.named_parameters() if each.requires_grad]
    shadow = [randn(*each.shape, seed=k).float() for k, each in enumerate(net.parameters()) if each.requires_grad]
    model = {f"module.{name}": each for name, each in net.state_dict().items()}
    content = {"optimizer": {"state": {}}, "model": model, "ema": {"decay": 0.9, "shadow_params": shadow}, "step": 3}
    file = pickled.read(written(write, content, tmp_path))
    network = pickled.network(file)
    assert same(network.tensors, dict(net.state_dict()) | dict(zip(names, shadow, strict=True)))
    assert (network.part, network.others) == ("ema", ("model",))
    assert network.notes == ("ema.shadow_params for 6 of the 11 tensors of model, the rest from model itself",)
    assert same(pickled.network(file, "model").tensors, dict(net.state_dict()))


FORMS = {
    "none left": ([1, 2, 3], [1, 2, 3], [0, 1, 2]),
    "one left out": ([1, 2, 3, 4], [1, 2, 4], [0, 1, 3]),
    "the first left out": ([9, 2, 2, 3], [2, 2, 3], [1, 2, 3]),
    "one of two alike left out": ([1, 2, 2, 3], [1, 2, 3], None),
    "another order": ([1, 2, 3], [1, 3, 2], None),
    "more than there are": ([1, 2], [1, 2, 3], None),
    "another shape": ([1, 2, 3], [1, 2, 4], None),
    "none of it": ([1], [], []),
}


@pytest.mark.parametrize(("model", "shadow", "places"), FORMS.values(), ids=FORMS)
def test_averages_that_fit_in_no_way_or_in_two_are_refused(model, shadow, places, tmp_path):
    state = {f"n{k}": torch.zeros(size) for k, size in enumerate(model)}
    averages = [torch.ones(size) for size in shadow]
    torch.save({"model": state, "ema": {"shadow_params": averages}}, tmp_path / "x.pth")
    file = pickled.read(tmp_path / "x.pth")
    if places is None:
        with pytest.raises(UserError, match=r"x\.pth: ema\.shadow_params has .* do not fit .* take --part model"):
            pickled.network(file)
        return
    tensors = pickled.network(file).tensors
    assert [k for k in range(len(model)) if tensors[f"n{k}"].eq(1).all()] == places


def test_which_network_is_taken_and_which_are_there_beside_it(tmp_path):
    def parts(*names: str, **more) -> pickled.Pickled:
        states = {name: {"w": torch.full((1,), k)} for k, name in enumerate(names)}
        torch.save(states | more, tmp_path / "x.pt")
        return pickled.read(tmp_path / "x.pt")

    assert pickled.network(parts("D", "G", "G_ema")).part == "G_ema"
    assert pickled.network(parts("model", "ema")).others == ("model",)
    assert pickled.network(parts("odd", epoch=3)).part == "odd"
    assert pickled.network(parts("a", "b"), "b").tensors["w"].item() == 1
    with pytest.raises(UserError, match=r"x\.pt has several networks: a, b; choose one with --part"):
        pickled.network(parts("a", "b"))
    with pytest.raises(UserError, match=r"x\.pt has no network 'c'; it has a, b"):
        pickled.network(parts("a", "b"), "c")
    with pytest.raises(UserError, match=r"x\.pt holds no network"):
        pickled.network(parts(epoch=3, best=[torch.ones(1)]))
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    assert pickled.network(pickled.read(tmp_path / "x.pt")).part == ""


def test_a_parameter_that_is_no_plain_tensor_is_named(tmp_path):
    net = nn.Linear(2, 2)
    net.weight = None
    del net._parameters["weight"]
    net._buffers["weight"] = torch.ones(2).to_sparse()
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"net": net}))
    with pytest.raises(
        UserError, match=r"x\.pkl: weight is torch\._utils\._rebuild_sparse_tensor, which is not read here"
    ):
        pickled.network(pickled.read(tmp_path / "x.pkl"))


# ---- attacks

TOUCH = b"S'touch canary'\n"
NAMESPACE = b"cargparse\nNamespace\n)\x81"


class Wicked:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class SetsState:
    def __setstate__(self, state):
        Path("canary").touch()


def set_state() -> SetsState:
    value = SetsState()
    value.x = 1
    return value


def in_archive(value: Any) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def before(value: Any) -> bytes:
    torch.save(value, file := io.BytesIO(), _use_new_zipfile_serialization=False)
    return file.getvalue()


TOUCHING = Wicked(os.system, "touch canary")
IN_THE_LIST = before(torch.ones(2)).replace(b"]q\x00X", b"cos\nsystem\n" + TOUCH + b"\x85R0]q\x00X", 1)
ATTACKS = {
    "REDUCE": (b"cos\nsystem\n(" + TOUCH + b"tR.", "os.system"),
    "REDUCE of posix": (pickle.dumps(TOUCHING, 2), "posix.system"),
    "STACK_GLOBAL": (pickle.dumps(TOUCHING, 4), "posix.system"),
    "STACK_GLOBAL with a dot": (pickle.dumps(Wicked(Path.touch, Path("canary")), 4), "pathlib.Path.touch"),
    "INST": (b"(" + TOUCH + b"ios\nsystem\n.", "os.system"),
    "OBJ": (b"(cos\nsystem\n" + TOUCH + b"o.", "os.system"),
    "OBJ of eval": (b"(cbuiltins\neval\nS'open(\"canary\", \"w\").close()'\no.", "builtins.eval"),
    "BUILD": (NAMESPACE + b"}S'__setstate__'\ncos\nsystem\nsb" + TOUCH + b"b.", "os.system"),
    "thrown away": (b"cos\nsystem\n(" + TOUCH + b"tR0N.", "os.system"),
    "getattr": (b"cbuiltins\ngetattr\n(cos\nabc\nVx\ntR.", "builtins.getattr"),
    "attrgetter": (pickle.dumps(Wicked(operator.attrgetter("a.touch"), 1), 2), "operator.attrgetter"),
    "methodcaller": (pickle.dumps(Wicked(operator.methodcaller("touch"), Path("canary")), 4), "operator.methodcaller"),
    "in a list of many": (pickle.dumps([1, {"a": (torch.ones(2), TOUCHING)}], 4), "posix.system"),
    "torch.load": (pickle.dumps(Wicked(torch.load, "wicked.pt", None), 4), "torch.serialization.load"),
    "a pickle as a storage": (pickle.dumps(Wicked(torch.storage._load_from_bytes, before(TOUCHING)), 4), "posix.system"),
    "in torch's archive": (in_archive({"a": torch.ones(2), "b": TOUCHING}), "posix.system"),
    "before 1.6": (before({"a": torch.ones(2), "b": TOUCHING}), "posix.system"),
    "in the list of storages": (IN_THE_LIST, "os.system"),
}  # fmt: skip
"""Each with what it names; all but those of UNWILLING run when Python or torch opens them."""

UNWILLING = {"getattr", "attrgetter", "torch.load", "in torch's archive", "before 1.6", "in the list of storages"}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_named_and_does_not_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content, whose = ATTACKS[name]
    Path("x.pkl").write_bytes(content)
    with pytest.raises(UserError) as refused:
        pickled.read(Path("x.pkl"))
    assert str(refused.value).startswith(
        f"x.pkl names {whose}, which whoever unpickles it would run; nothing of it was run"
    )
    assert command.main(["read", "x.pkl", "out"]) == 2
    heard = capsys.readouterr()
    assert (heard.out, heard.err) == ("", f"error: {refused.value}\n")
    assert sorted(os.listdir()) == ["x.pkl"]


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in UNWILLING])
def test_python_would_have_run_it(name, tmp_path, monkeypatch):
    """Else the test above could not fail."""
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(
        TypeError, AttributeError, RuntimeError, pickle.UnpicklingError
    ):  # of the rest of the pickle
        pickle.loads(ATTACKS[name][0])
    assert Path("canary").exists()


HARMLESS = {
    "__setstate__": (set_state, "tests.test_pickled.SetsState"),
    "partial": (lambda: functools.partial(os.getcwd), None),
    "an array of objects": (lambda: np.array([{}, 1], dtype=object), "numpy.ndarray"),
    "a class of the file": (lambda: argparse.Namespace(lr=1), "argparse.Namespace"),
    "a function that nobody knows": (lambda: Wicked(rebuild_unknown, 1), "tests.test_pickled.rebuild_unknown"),
}


def rebuild_unknown(value):
    Path("canary").touch()


@writers
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_known_attack_is_a_record_and_does_not_run_either(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, whose = HARMLESS[name]
    path = written(write, {"a": make(), "w": torch.ones(2)}, tmp_path)
    if whose is None:  # what it would call is an attack
        with pytest.raises(UserError, match=r"names posix\.getcwd"):
            pickled.read(path)
        return
    file = pickled.read(path)
    assert file.refused == {whose: 1}
    assert isinstance(file.content["a"], pickled.Object)
    assert file.content["a"].name == whose
    assert same(file.content["w"], torch.ones(2))
    assert not Path("canary").exists()


def test_no_module_is_imported_by_the_wish_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "innocent.py").write_text("open('canary', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for content in (
        b"cinnocent\nThing\n.",
        b"cinnocent\nThing\n)R.",
        b"(iinnocent\nThing\n.",
        b"\x8c\x08innocent\x8c\x01x\x93)\x81.",
    ):
        Path("x.pkl").write_bytes(content)
        assert list(pickled.read(Path("x.pkl")).refused) in (["innocent.Thing"], ["innocent.x"])
    assert "innocent" not in sys.modules
    assert not Path("canary").exists()


def test_a_number_of_the_registry_of_extensions_is_an_attack(tmp_path, monkeypatch):
    copyreg.add_extension("os", "system", 77)
    try:
        (tmp_path / "x.pkl").write_bytes(b"\x82\x4d(" + TOUCH + b"tR.")
        with pytest.raises(UserError, match="names number 77 of copyreg's registry"):
            pickled.read(tmp_path / "x.pkl")
    finally:
        copyreg.remove_extension("os", "system", 77)


def test_a_name_with_control_characters_stays_on_its_line(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x8c\x02os\x8c\x08a\n\x1b[31mb\x93.")
    with pytest.raises(UserError) as refused:
        pickled.read(tmp_path / "x.pkl")
    assert r"names os.a\n\x1b[31mb, which" in str(refused.value)
    assert str(refused.value).isprintable()


# ---- bombs and damage


def tensor_of(storage: bytes, *shape: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(shape) + b"\x89ccollections\nOrderedDict\n)RtR."


def big_archive(**changes) -> bytes:
    """torch's archive of one tensor, its members written anew by zipfile."""
    source, target = zipfile.ZipFile(io.BytesIO(in_archive({"w": torch.ones(1000)}))), io.BytesIO()
    with zipfile.ZipFile(target, "w", changes.pop("compression", zipfile.ZIP_STORED)) as archive:
        for name in source.namelist():
            archive.writestr(
                name, changes.get(name.partition("/")[2].replace("/", "_").replace(".", "_"), source.read(name))
            )
        for name in changes.get("more", ()):
            archive.writestr(name, b"x")
    return target.getvalue()


def directory(content: bytes, place: int, change: bytes) -> bytes:
    """The archive with other bytes at `place` in the entry of its last member in the central directory."""
    start = content.rindex(b"PK\x01\x02") + place
    return content[:start] + change + content[start + len(change) :]


def doubled(depth: int) -> bytes:
    """A tuple of the same tuple twice, and so on: 2^depth values in few bytes."""
    return b"N" + b"2\x86" * depth


def from_bytes(value: Any) -> Wicked:
    return Wicked(torch.storage._load_from_bytes, before(value))


def storage(count: int) -> bytes:
    return before(torch.ones(4)).replace(struct.pack("<q", 4), struct.pack("<q", count))


OUTWARDS = b"(Vstorage\nctorch\nFloatStorage\nV../../x\nVcpu\nK\x01tQ."
BAD = {
    "empty": (b"", "it ends early, at byte 0"),
    "no pickle": (b"\x00\x00\x00", "byte 0 is no instruction"),
    "text": (b"hello world", "cannot be read"),
    "cut": (pickle.dumps(CONTENT["texts"])[:-20], "it ends early"),
    "more than a pickle": (pickle.dumps(1) + b"x", "it goes on after its end, at byte 5 of 6"),
    "a length beyond the end": (b"\x8e" + struct.pack("<Q", 2**63) + b"x.", "it ends early"),
    "a negative length": (b"T\xff\xff\xff\xff.", "it ends early"),
    "a persistent id": (b"Vabc\nQ.", "it refers to what lies outside"),
    "an outside buffer": (b"\x97.", "written to another place"),
    "a tuple of tuples as key": (b"}" + doubled(60) + b"Ns.", "is a key in it"),
    "a number of a million digits as key": (b"}\x8b" + b"\x00\x01\x06\x00" + b"\x01" * 0x60100 + b"Ns.", "a int is a key"),
    "two states": (NAMESPACE + b"}b}b.", "an object in it has two states"),
    "a list as key": (b"}]Ns.", "a list is a key"),
    "a tensor without storage": (tensor_of(b"N", b"K\x00", b"K\x01\x85", b"K\x01\x85"), "has no storage"),
    "more numbers than the file": (storage(2**50), "cannot be read"),
    "sizes that differ": (storage(3), "cannot be read"),
    "a packed archive": (big_archive(compression=zipfile.ZIP_DEFLATED), "its archive is compressed"),
    "an archive of something else": (big_archive(more=["two/data.pkl"]), "an archive without data.pkl"),
    "a TorchScript": (big_archive(more=["archive/constants.pkl"]), "it is a program of TorchScript"),
    "a big-endian archive": (big_archive(byteorder=b"big"), "big-endian"),
    "a short storage": (big_archive(data_0=b"1234"), "more or fewer bytes"),
    "an encrypted archive": (directory(big_archive(), 8, b"\x01"), "its archive is encrypted"),
    "members in one place": (directory(big_archive(), 42, b"\x00\x00\x00\x00"), "one name or one place"),
    "a member larger than the file": (directory(big_archive(), 20, b"\xff\xff\xff\x0f\xff\xff\xff\x0f"), "cannot be read"),
    "a path out of the archive": (big_archive(data_pkl=OUTWARDS), "no item named 'archive/data/../../x' in the archive"),
    "a quantized tensor": (big_archive(data_pkl=OUTWARDS.replace(b"Float", b"QInt8")), "QInt8Storage"),
    "a big-endian array": (pickle.dumps(np.ones(2, ">f4")), "big-endian"),
    "big-endian before 1.6": (before([]).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-endian"),
    "a pickle in a pickle in a pickle": (pickle.dumps(from_bytes(from_bytes(torch.ones(1)))), "in a pickle"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(name, tmp_path):
    content, words = BAD[name]
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        pickled.read(tmp_path / "x.pt")
    assert str(refused.value).startswith(f"{tmp_path}/x.pt cannot be read as pickled weights: ")
    assert "; " in str(refused.value)
    assert str(refused.value).isprintable()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none.pkl", ".", "pipe"):
        with pytest.raises(UserError, match=r" is no file; name a \.pkl"):
            pickled.read(tmp_path / name)


def test_truth_values_are_zero_or_one(tmp_path):
    for write in (torch.save, legacy, plain(2)):
        content = written(write, {"b": torch.tensor([True, False] * 8)}, tmp_path).read_bytes()
        place = content.index(b"\x01\x00" * 8)
        (tmp_path / "y.pt").write_bytes(content[:place] + b"\x02" + content[place + 1 :])
        with pytest.raises(
            UserError, match="a truth value in it is neither 0 nor 1" if write is not torch.save else "CRC"
        ):
            pickled.read(tmp_path / "y.pt")


@pytest.mark.usefixtures("without_shape_checks")
def test_deep_nesting_is_read_and_no_stack_runs_over(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"N" + b"\x85" * 50_000 + b".")
    value, depth = pickled.read(tmp_path / "x.pkl").content, 0
    while value is not None:
        (value,) = value
        depth += 1
    assert depth == 50_000


def test_instructions_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MOST", 1000)
    (tmp_path / "x.pkl").write_bytes(b"(" + b"\x8f" * 1001 + b"t.")
    with pytest.raises(UserError, match="more than 1000 instructions"):
        pickled.read(tmp_path / "x.pkl")


def shape(*sizes: int) -> bytes:
    return pickle.dumps(tuple(sizes), 2)[2:-1]


STORAGE_OF_4 = pickle.dumps(torch.ones(4).untyped_storage(), 2)[2:-1]
VIEWS = {
    "beyond its end": (shape(2), shape(0), shape(1)),
    "a stride too long": (shape(0), shape(2), shape(16)),
    "more strides": (shape(0), shape(2), shape(1, 1)),
    "a huge size": (shape(0), shape(2**61, 2), shape(0, 0)),
    "a negative size": (shape(0), shape(-1), shape(1)),
    "a huge stride": (shape(0), shape(1), shape(2**63)),
    "a text": (shape(0), b"X\x01\x00\x00\x00a", shape(1)),
}


@pytest.mark.parametrize("name", [*VIEWS, "right"])
def test_a_tensor_stays_within_its_storage(name, tmp_path):
    _, size, stride = VIEWS.get(name, (shape(0), shape(16), shape(1)))
    offset = b"K\x11" if name == "beyond its end" else b"K\x00"
    size = shape(1) if name == "beyond its end" else size
    (tmp_path / "x.pkl").write_bytes(tensor_of(STORAGE_OF_4, offset, size, stride))
    if name == "right":
        assert pickled.read(tmp_path / "x.pkl").content.view(torch.float32).eq(1).all()
        return
    with pytest.raises(UserError, match="cannot be read"):
        pickled.read(tmp_path / "x.pkl")


def test_numbers_that_repeat_without_end_are_no_network(tmp_path):
    """Read they are, since they take no memory; what would be written of them does not fit."""
    torch.save({"w": torch.ones(1).expand(2**40)}, tmp_path / "x.pt")
    file = pickled.read(tmp_path / "x.pt")
    assert file.content["w"].shape == (2**40,)
    with pytest.raises(UserError, match=r"x\.pt: its tensors would take 4\.4e\+12 bytes of a file of \d+; it repeats"):
        pickled.network(file)


ENDLESS = tensor_of(STORAGE_OF_4, b"K\x00", shape(2**40, 2), shape(0, 0))[:-1] + b"q\xc8"
"""A tensor of one number, 2^41 times, which takes no memory until somebody goes through it."""

GOING_THROUGH = {
    "as pairs": b"ccollections\nOrderedDict\n(h\xc8tR.",
    "as a set": b"c__builtin__\nset\n(h\xc8tR.",
    "as a size": b"ctorch\nSize\n(h\xc8tR.",
    "as a shape": tensor_of(STORAGE_OF_4, b"K\x00", b"h\xc8", shape(1)),
    "as strides": tensor_of(STORAGE_OF_4, b"K\x00", shape(1), b"h\xc8"),
    "as a first number": tensor_of(STORAGE_OF_4, b"h\xc8", shape(1), shape(1)),
    "as a key": b"}h\xc8Ns.",
    "as an argument": b"carg\nName\nh\xc8R.",
    "as a class": b"h\xc8)R.",
}


@pytest.mark.parametrize("name", GOING_THROUGH)
def test_nothing_goes_through_a_tensor(name, tmp_path):
    (tmp_path / "x.pkl").write_bytes(ENDLESS + GOING_THROUGH[name])
    with pytest.raises(UserError, match="cannot be read"):
        pickled.read(tmp_path / "x.pkl")


IN_BYTES = pickle.dumps(before(torch.ones(2000).untyped_storage()), 3)[2:-1]
AGAIN = {
    "pairs": (b"]q\x01(" + shape(1, 2) * 300 + b"e0", b"ccollections\nOrderedDict\nh\x01\x85R0"),
    "text": (b"X" + struct.pack("<I", 9999) + b"a" * 9999 + b"q\x010", b"c_codecs\nencode\nh\x01\x85R0"),
    "arguments": (b"(" + b"K\x01" * 5000 + b"tq\x010", b"cargparse\nNamespace\nh\x01R0"),
    "a storage": (IN_BYTES + b"q\x010", b"ctorch.storage\n_load_from_bytes\nh\x01\x85R0"),
}  # fmt: skip


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("name", AGAIN)
def test_a_file_cannot_have_the_same_things_copied_without_end(name, tmp_path):
    """Each copy costs the file a few bytes."""
    once, copy = AGAIN[name]
    (tmp_path / "x.pkl").write_bytes(once + copy * 2 + b"N.")
    assert pickled.read(tmp_path / "x.pkl").content is None
    (tmp_path / "x.pkl").write_bytes(once + copy * 600 + b"N.")
    with pytest.raises(UserError, match="it copies more than it holds"):
        pickled.read(tmp_path / "x.pkl")


@pytest.mark.usefixtures("without_shape_checks")
def test_a_module_in_itself_or_twice_in_each_other_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MOST_MODULES", 1000)
    net = nn.Module()
    net._modules["again"] = net
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"net": net}))
    with pytest.raises(UserError, match="it has more than 1000 modules"):
        pickled.network(pickled.read(tmp_path / "x.pkl"))
    net = nn.Module()
    for _ in range(60):
        outer = nn.Module()
        outer.a = outer.b = net
        net = outer
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"net": net}))
    with pytest.raises(UserError, match="it has more than 1000 modules"):
        pickled.network(pickled.read(tmp_path / "x.pkl"))


# ---- whatever happens to the bytes


def small() -> dict:
    return {
        "ema": {"w": X[:2, 1:3].T, "b": torch.ones(2).bfloat16(), "n": torch.tensor(3)},
        "step": 7,
        "a": np.ones(3),
        "s": "ä",
    }


VALID = {"archive": torch.save, "before 1.6": legacy, **{f"pickle {k}": plain(k) for k in (0, 2, 4)}}


def damaged(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    place = rng.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + rng.randrange(1, 5) :]
    if kind == 2:
        other = rng.randrange(len(content))
        return content[:place] + content[other : other + 8] + content[place:]
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def network_or_line(path: Path) -> pickled.Network | str:
    """The network of the file, whose values are all read; or the one line that refuses it."""
    try:
        network = pickled.network(pickled.read(path))
    except UserError as error:
        line = str(error)
    else:
        assert all(isinstance(bits(each), bytes) for each in network.tensors.values())
        return network
    assert line.isprintable()
    return line


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", VALID)
def test_damage_is_refused_or_harmless_and_nothing_else(name, seed, tmp_path):
    """Five files each, 300 in all. An archive has sums, so what is read of it is right; the others may hold other numbers."""
    content = written(VALID[name], small(), tmp_path).read_bytes()
    rng = random.Random(f"{name} {seed}")
    for _ in range(5):
        (tmp_path / "y.pt").write_bytes(damaged(content, rng))
        network = network_or_line(tmp_path / "y.pt")
        if name == "archive" and not isinstance(network, str):
            assert same(network.tensors, small()["ema"])


@pytest.mark.usefixtures("persistence", "without_shape_checks")
@pytest.mark.parametrize("seed", range(12))
def test_damage_to_a_pickle_of_edm_is_refused_or_harmless(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, _ = edm(sigma_data=0.5)
    whole, rng = pickle.dumps(content), random.Random(seed)
    for _ in range(5):
        (tmp_path / "y.pkl").write_bytes(damaged(whole, rng))
        network_or_line(tmp_path / "y.pkl")
    assert not Path("canary").exists()


# ---- the command


@pytest.mark.usefixtures("persistence")
def test_the_command_lists_a_file_and_writes_its_network(tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    content, net = edm(sigma_data=0.5)
    Path("edm.pkl").write_bytes(pickle.dumps(content))
    assert command.main(["read", "edm.pkl"]) == 0
    lines = capsys.readouterr().out
    assert "  ema             EDMPrecond\n" in lines
    assert "  dataset_kwargs  dict of 2\n" in lines
    assert "left as names, not imported and not called: Block (1), EDMPrecond (1), Loss (1) and " in lines
    assert "the network ema is EDMPrecond: 10 tensors, 37 numbers, 116 bytes\n" in lines
    assert "  model.in.weight                  float16 [3, 3]\n" in lines
    assert sorted(os.listdir()) == ["edm.pkl"]
    assert command.main(["read", "edm.pkl", "out"]) == 0
    assert capsys.readouterr().out.endswith("out: model.safetensors and config.json\n")
    tensors, own = load_file("out/model.safetensors"), net.state_dict()
    assert same({name: tensors[name] for name in own}, dict(own))
    assert len(tensors) == len(own)
    about = json.loads(Path("out/config.json").read_text())
    assert {key: about[key] for key in ("class", "arguments", "keywords", "part")} == {
        "class": "EDMPrecond",
        "arguments": [8],
        "keywords": {"sigma_data": 0.5},
        "part": "ema",
    }
    assert about["source"]["file"] == "edm.pkl"


def test_a_file_without_a_network_is_listed_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 3, "a\x1b": argparse.Namespace(), "best": [1, 2]}, "x.pt")
    assert command.main(["read", "x.pt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["  step   3", r"  a\x1b  argparse.Namespace", "  best   list of 2"]
    assert lines[4:] == [
        "left as names, not imported and not called: argparse.Namespace (1)",
        "x.pt holds no network: neither a state dict of tensors nor an object of modules",
    ]


REFUSED = {
    "there already": (["edm.pt", "there"], "there exists and is not replaced"),
    "no such part": (["edm.pt", "--part", "b"], "edm.pt has no network 'b'; it has ema"),
    "no such file": (["none.pt"], "none.pt is no file"),
    "no network": (["numbers.pt", "out"], "numbers.pt holds no network"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_command_refuses_changes_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": {"w": torch.ones(2)}}, "edm.pt")
    torch.save([1, 2], "numbers.pt")
    Path("there").mkdir()
    words, line = REFUSED[name]
    assert command.main(["read", *words]) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    assert heard.err.startswith(f"error: {line}")
    assert sorted(os.listdir()) == ["edm.pt", "numbers.pt", "there"]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_command_takes_every_dtype_or_says_that_safetensors_cannot(dtype, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    x = torch.arange(32, dtype=torch.uint8).remainder(2).view(dtype)
    torch.save({"w": x}, "x.pt")
    code, heard = command.main(["read", "x.pt", "out"]), capsys.readouterr()
    assert (code, heard.err) == (0, "") or heard.err.startswith("error: x.pt: safetensors cannot hold its tensors (")
    assert Path("out").exists() == (code == 0)
    assert code or same(load_file("out/model.safetensors")["w"], x)


def test_the_command_says_where_weights_are_not_finite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = {name: torch.ones(2) for name in "abcde"}
    for name in "abcd":
        bad[name][1] = float("nan")
    bad["f8"] = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    torch.save(bad, "x.pt")
    assert command.main(["read", "x.pt"]) == 0
    assert "NaN or infinite values in 5 tensors: a, b, c and 2 more\n" in capsys.readouterr().out
