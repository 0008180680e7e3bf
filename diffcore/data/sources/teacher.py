"""Images that a teacher drew, N of them: what the stage `draw` wrote."""

from dataclasses import replace

from diffcore.data import drawn
from diffcore.data.captions import is_template
from diffcore.data.prompt_file import FORM
from diffcore.data.sources import Kind, Source
from diffcore.data.sources.npz import Npz
from diffcore.data.split import Split

MOST = 10**9


class Teacher(Kind):
    """N is how many images. Their captions are the prompts of the file that `data.captions` names, each in turn."""

    place = "N"
    caption_names = (FORM, "a file of prompts (.txt, .csv, .jsonl or .parquet)")

    @classmethod
    def fault(cls, place: str) -> str | None:
        if place.isascii() and place.isdecimal() and len(place) < len(str(MOST)) and int(place) > 0:
            return None
        return f"source teacher:N says how many images a teacher shall draw, 1 to {MOST - 1}, not {place!r}"

    def find(self, place: str, labels: str | None, split: Split | None) -> Source:
        if self.drawn is None:
            raise ValueError("what a teacher drew needs a folder")
        about = drawn.read(self.drawn, f"teacher:{place}")
        captions = self.captions if is_template(self.captions) or self.captions is None else drawn.CAPTIONS
        source = Npz(tell=self.tell, captions=captions).find(f"{self.drawn}/*.npz", labels, split)
        files = [self.drawn / drawn.ABOUT, *source.files]
        return replace(source, classes=about.classes, files=files, drawn=about.by)
