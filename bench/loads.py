"""Does the registered model load where there is only what it asks for, and draw there what `distill sample` draws here?

python bench/loads.py [FOLDER] [ALIAS] [IMAGES]

Of the project in FOLDER (here), the version that holds ALIAS (challenger), 16 images. Its files as MLflow keeps them go
into a new folder, with a new virtual environment beside them that holds what the model's requirements.txt names and
nothing else: no project, and no variable of this environment. Another process there calls mlflow.pyfunc.load_model and
predict. Printed are what was installed of the requirements, where `diffcore` came from, and how many bytes of the
images differ from those of `distill sample`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from tasks import named

SEED = 3

DRAW = """
import json, sys
from importlib.metadata import distributions, version
import mlflow, numpy
model = mlflow.pyfunc.load_model("model")
images = model.predict({"num_images": [int(sys.argv[1])]}, {"seed": int(sys.argv[2])})
numpy.save("images.npy", images)
import diffcore
names = [line.partition("==")[0] for line in open("model/requirements.txt").read().split()]
versions = {name: version(name) for name in names}
print(json.dumps({"diffcore": diffcore.__file__, "installed": len(list(distributions())), "versions": versions}))
"""


def main() -> None:
    folder, alias, images = [*sys.argv[1:], *[".", "challenger", "16"][len(sys.argv) - 1 :]]
    os.chdir(folder)
    each = named.find(f"@{alias.removeprefix('@')}")
    print(each.title)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name).resolve()
        shutil.copytree(each.folder.parents[1], room / "model", ignore=shutil.ignore_patterns("__pycache__"))
        python = alone(room)
        surroundings = {"PATH": os.defpath, "HOME": str(room)}
        done = subprocess.run(
            [python, "-c", DRAW, images, str(SEED)], cwd=room, env=surroundings, check=True, stdout=subprocess.PIPE
        )
        about = json.loads(done.stdout.splitlines()[-1])
        print(", ".join(f"{package} {there}" for package, there in about["versions"].items()))
        print(f"{about['installed']} packages there; diffcore is {Path(about['diffcore']).relative_to(room)}")
        theirs = np.load(room / "images.npy")
        ours = here(alias, images, each.card.classes, room / "ours.npz")
    print(f"{theirs.shape}, {np.count_nonzero(theirs != ours)} of {ours.size} bytes differ, seed {SEED}")


def alone(room: Path) -> str:
    """A new virtual environment with what the model in `room` asks for; its interpreter."""
    venv.create(room / "venv", with_pip=True)
    python = str(room / "venv/bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", room / "model/requirements.txt"], check=True)
    return python


def here(alias: str, images: str, classes: list | None, target: Path) -> np.ndarray:
    """The same images by `distill sample`, each class in turn as the model asks for them."""
    turns = ["--classes", ",".join(map(str, range(len(classes))))] if classes else []
    words = [alias, "--images", images, "--seed", str(SEED), "--out", str(target), *turns]
    subprocess.run([sys.executable, "-m", "tasks", "sample", *words], check=True, stdout=subprocess.DEVNULL)
    with np.load(target) as arrays:
        return arrays["arr_0"]


if __name__ == "__main__":
    main()
