"""MSR-VTT (Xu et al. 2016): videos with twenty captions each, in the forms that go round."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from cmdvid.data.files import files_below, is_empty, listed_missing, report_missing, report_rows
from cmdvid.data.tables import clean_caption, csv_rows, read_lines, read_text
from cmdvid.types import VideoEntry


class MSRVTT(Dataset[VideoEntry]):
    """Captioned videos named by MSR-VTT's annotations; one caption of each video by default.

    Captions are read from the official json (``videos`` and ``sentences``, such as
    ``test_videodatainfo.json``) or from a csv with ``video_id`` and ``sentence``, such as
    ``MSRVTT_JSFUSION_test.csv`` of the 1k-A test set. Videos may lie at any depth below ``root``.

    Args:
        captions: The json or csv file.
        root: Folder of the videos ``video7010.mp4``; by default that of ``captions``.
        ids: File whose first column names the videos to use, such as ``MSRVTT_test.full.csv``; by
            default all videos with captions.
        seed: Draws the one caption of each video that is used; none for every caption as a row.

    Raises:
        ValueError: If a file is missing or of another form, or no video is there.
    """

    def __init__(
        self,
        captions: str,
        *,
        root: str | None = None,
        ids: str | None = None,
        seed: int | None = 0,
    ) -> None:
        said = _captions(captions, ids, seed)
        folder = Path(root) if root else Path(captions).parent
        found = {path.stem: str(path) for path in files_below(folder)}
        missing = [str(folder / f"{name}.mp4") for name in said if name not in found]
        self.empty = [found[name] for name in said if name in found and is_empty(found[name])]
        for path in self.empty:
            del found[Path(path).stem]
        self.classes: list[str] | None = None
        self.entries = [
            VideoEntry(found[name], caption)
            for name, texts in said.items()
            if name in found
            for caption in texts
        ]
        self.num_missing = report_missing(
            Path(ids or captions), missing, len(missing), len(self.entries), self.empty
        )
        self.missing = listed_missing(Path(ids or captions), missing)
        num_bare = sum(entry.condition == "" for entry in self.entries)
        report_rows(Path(captions), num_bare=num_bare)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


class MSRVTTPrompts(Dataset[str]):
    """The captions that ``MSRVTT`` gives, to generate from where there are no videos.

    Args:
        captions: The json or csv file.
        ids: File whose first column names the videos to use; by default all.
        seed: Draws the one caption of each video that is used; none for every caption.

    Raises:
        ValueError: If a file is missing or of another form.
    """

    def __init__(self, captions: str, *, ids: str | None = None, seed: int | None = 0) -> None:
        self.entries = [text for each in _captions(captions, ids, seed).values() for text in each]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> str:
        return self.entries[index]


def _captions(captions: str, ids: str | None, seed: int | None) -> dict[str, list[str]]:
    """The captions to use of each wanted video, in the order of the videos."""
    said = _json(Path(captions)) if captions.endswith(".json") else _csv(Path(captions))
    wanted = _ids(Path(ids)) if ids else list(said)
    if silent := [name for name in wanted if name not in said]:
        raise ValueError(
            f"{ids}: {len(silent)} of {len(wanted)} videos have no caption in {captions}, such "
            f"as {', '.join(silent[:5])}: give the annotations of this split"
        )
    return {
        name: said[name] if seed is None else [_drawn(said[name], name, seed)] for name in wanted
    }


def _drawn(captions: list[str], name: str, seed: int) -> str:
    """One of a video's captions, whichever other videos there are."""
    rng = np.random.default_rng([seed, *name.encode()])
    return captions[rng.integers(len(captions))]


def _json(path: Path) -> dict[str, list[str]]:
    """Captions by video, in the order of the sentences."""
    said: dict[str, list[str]] = defaultdict(list)
    try:
        for sentence in json.loads(read_text(path))["sentences"]:
            said[str(sentence["video_id"])].append(clean_caption(sentence["caption"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: needs MSR-VTT\'s form {{"sentences": [{{"video_id": "video0", "caption": '
            f'"..."}}]}}, stopped at {error!r}'
        ) from error
    return dict(said)


def _csv(path: Path) -> dict[str, list[str]]:
    said: dict[str, list[str]] = defaultdict(list)
    for name, sentence in csv_rows(path, "video_id", "sentence"):
        said[name].append(clean_caption(sentence))
    return dict(said)


def _ids(path: Path) -> list[str]:
    """The first column of a list, with or without a heading."""
    names = [line.split(",")[0].strip() for line in read_lines(path)]
    return names[1:] if names[0] == "video_id" else names
