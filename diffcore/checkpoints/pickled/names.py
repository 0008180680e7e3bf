"""Which names of a pickle are of an attack.

What is read is safe without this list, since nothing is ever called: it is so that a person hears of it.
"""

MODULES = """
os posix nt sys subprocess importlib imp runpy pkgutil shutil socket ctypes pty code codeop codecs pickle _pickle
marshal shelve commands popen2 webbrowser urllib urllib2 http requests ftplib telnetlib smtplib pip timeit pdb bdb
profile cProfile trace doctest operator _operator builtins __builtin__ asyncio multiprocessing threading _thread signal
atexit gc inspect types io _io tempfile ensurepip venv distutils setuptools idlelib xmlrpc cffi dill cloudpickle
"""
RUNNING = frozenset(MODULES.split())
"""Modules, with all that is in them, that a file of weights has no use for."""

PLAIN = "set frozenset complex bytearray bytes list dict tuple int float str bool object slice range type unicode"
BUILTINS = ("builtins", "__builtin__")
HARMLESS = {f"{module}.{name}" for module in BUILTINS for name in PLAIN.split()} | {
    "types.SimpleNamespace",
    "_io.BytesIO",
    "io.BytesIO",
}
"""Those of RUNNING that are plain data."""

NAMES = """
torch.load torch.save torch.serialization.load torch.serialization._load torch.jit.load torch.compile torch.storage.load
torch.utils.collect_env.run torch.package.PackageImporter numpy.load numpy.fromfile numpy.memmap numpy.core.memmap.memmap
functools.reduce site.main logging.config.listen
"""
FUNCTIONS = frozenset(NAMES.split())
"""In modules that are not bad as a whole."""

BELOW = "torch.hub torch.utils.cpp_extension torch._inductor torch._dynamo numpy.f2py numpy.testing numpy.distutils"
DEEP = tuple(f"{module}." for module in BELOW.split())
"""Modules below others, with all that is in them."""


def is_payload(module: str, attribute: str) -> bool:
    """Whether a file that names it wants something executed."""
    name = f"{module}.{attribute}"
    if name in HARMLESS:
        return False
    method = "." in attribute and not attribute.rpartition(".")[2][:1].isupper()  # Path.unlink; Outer.Inner is a class
    return module.partition(".")[0] in RUNNING or name in FUNCTIONS or method or name.startswith(DEEP)
